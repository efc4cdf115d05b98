"""How many threads XLA has on the CPU."""

import os

import jax


def xla_threads() -> int:
    """The threads of XLA for computations on the CPU: as NPROC says, else one for each core that this process may use.

    With several CPU devices there are at least as many threads.
    """
    try:
        threads = int(os.environ["NPROC"])
    except (KeyError, ValueError):  # XLA passes over what is no number
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        threads = len(cores)
    try:
        return max(threads, jax.local_device_count("cpu"))
    except RuntimeError:  # no CPU device, which is reported elsewhere
        return threads
