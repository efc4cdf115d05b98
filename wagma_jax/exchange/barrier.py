"""A barrier that sleeps: MPI's own spins, and takes CPU time from ranks that still compile or load."""

import time

from mpi4py import MPI

_LONGEST_SLEEP = 5e-3  # seconds


def barrier(comm: MPI.Intracomm) -> None:
    """Waits until all processes of a communicator have called it."""
    request = comm.Ibarrier()
    delay = 2e-5
    while not request.Test():
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_SLEEP)
