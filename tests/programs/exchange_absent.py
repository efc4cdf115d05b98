"""Rank 1 leaves before it has loaded what an exchange needs, while rank 0 waits in the constructor."""

import os
import sys
import time

import numpy as np
from mpi4py import MPI

import wagma_jax as wagma
from wagma_jax import leaving

leaving.GOODBYE_SECONDS = 1.0  # longer for users
os.write(1, f"pid {os.getpid()}\n".encode())
if MPI.COMM_WORLD.rank == 1:
    caught = []
    try:
        sys.exit(4)
    except SystemExit as error:  # so that it ends nothing
        caught += [error.code, str(error), repr(error)]
    assert caught == [4, "4", "SystemExit(4)"], caught
    time.sleep(0.5)
    os.write(1, f"ends at {time.time()}\n".encode())
    sys.exit(3)
wagma.GroupExchange(None, {"w": np.zeros(3, np.float32)}, group_size=2)
