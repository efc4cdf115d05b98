"""Bodies for the tests of the pool of ranks itself."""

import os
import time


def whereabouts(comm):
    return (comm.rank, comm.size), os.getpid()


def fails(comm, how):
    if comm.rank == 1 and how == "raises":
        raise LookupError("on purpose")
    if comm.rank == 1 and how == "dies":
        os._exit(3)
    time.sleep(30)
