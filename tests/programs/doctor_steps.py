"""What `wagma doctor` starts on a rank, as it must cope with it: links hang, the exchange crashes, the end hangs.

Speaks as ``wagma_jax.commands.doctor.checkup`` does, without JAX.
"""

import json
import os
import sys
import time

from mpi4py import MPI

marker, steps = sys.argv[2], sys.argv[5:]
rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def say(**facts):
    os.write(1, f"{marker} {json.dumps(facts)}\n".encode())


gpus = {"count": 0, "local_rank": rank, "visible": None, "fraction": None}
here = {
    "rank": rank,
    "size": size,
    "host": "h",
    "cores": 2,
    "threads": 2,
    "thread_level": 3,
    "versions": {},
    "gpus": gpus,
}
say(here=here)
MPI.COMM_WORLD.Barrier()
if rank == 0:
    for step in steps:
        say(begin=step)
        if step == "links":
            time.sleep(200)
        elif step == "exchange":
            os.abort()
        result = {"straggle_seconds": 1.0, "longest_seconds": 0.1, "median_seconds": 0.01, "met": 1}
        say(end=step, result=result)
    say(begin="end")
time.sleep(200)
