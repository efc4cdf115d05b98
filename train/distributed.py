"""Several processes that train together: joining them, and agreeing before anything is lost.

Uses ``jax.distributed``; the processes find each other from the environment of Slurm, of a TPU pod or of MPI, or from
explicit options. Nothing here is needed, or done, where there is one process.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

INITIALIZATION_TIMEOUT = 300
"""Seconds in which all processes must have come."""

_MAX_MESSAGE = 4096

# The number of processes as the launchers of MPI programs tell it: Open MPI; MPICH, Intel MPI and Cray by PMI.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Args:
        coordinator: "host:port" of process 0; None: found from the environment.
        num_processes: How many processes; with ``coordinator``.
        process_id: Which of them this is, from 0; with ``coordinator``.
        environment: Where Slurm and MPI have left what they know.

    Returns:
        The number of processes: 1 if nothing in the arguments or the environment says otherwise.

    Raises:
        ValueError: The arguments are incomplete or out of range, or something that is needed is not installed.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator is None or num_processes is None or process_id is None:
            raise ValueError(
                "--coordinator, --processes and --process-id belong together, got "
                f"{coordinator}, {num_processes} and {process_id}: give all three, or none under Slurm or MPI"
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}")
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process-id must be in [0, {num_processes}), got {process_id}")
        _join(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
        return num_processes
    if "SLURM_STEP_NODELIST" in environment and (size := int(environment.get("SLURM_NTASKS", 1))) > 1:
        _join(cluster_detection_method="slurm")
        return size
    size = max((int(environment[name]) for name in _MPI_SIZES if name in environment), default=1)
    if size > 1:
        if importlib.util.find_spec("mpi4py") is None:
            raise ValueError(
                f"started by MPI as one of {size} processes, but mpi4py, through which they find each other, is not "
                "installed: run make setup or pip install 'wagma_jax[mpi]', or give --coordinator, --processes and "
                "--process-id"
            )
        _join(cluster_detection_method="mpi4py")
        return size
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        _join()
        return jax.process_count()
    return 1


def _join(**arguments: Any) -> None:
    jax.distributed.initialize(initialization_timeout=INITIALIZATION_TIMEOUT, **arguments)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def agree(error: Exception | None) -> None:
    """Raises on all processes if there is an error on any: nobody goes on alone and waits for ever.

    Raises:
        ValueError: The first process's error, in order of the processes.
    """
    message = "" if error is None else str(error) or repr(error)
    if jax.process_count() == 1:
        messages = [message]
    else:
        messages = [_decode(row) for row in multihost_utils.process_allgather(_encode(message))]
    for process, text in enumerate(messages):
        if text:
            here = process == jax.process_index()
            raise ValueError(text if here else f"process {process}: {text}") from (error if here else None)


def from_first(text: str) -> str:
    """A short text of the first process, on all processes."""
    if jax.process_count() == 1:
        return text
    return _decode(multihost_utils.broadcast_one_to_all(_encode(text)))


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
    """The tree as NumPy arrays, whole, on every process; to be called by all."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def highest(number: int) -> int:
    """The highest number that any process has; to be called by all."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number)).max())


def union(numbers: set[int]) -> set[int]:
    """The numbers, none of them negative, of all processes together; to be called by all."""
    if jax.process_count() == 1:
        return numbers
    most = highest(len(numbers))
    if most == 0:
        return numbers
    padded = np.full(most, -1, np.int32)
    padded[: len(numbers)] = sorted(numbers)
    return {int(n) for n in np.ravel(multihost_utils.process_allgather(padded)) if n >= 0}


def _encode(text: str) -> np.ndarray:
    data = text.encode(errors="replace")[:_MAX_MESSAGE]
    return np.frombuffer(data.ljust(_MAX_MESSAGE, b"\0"), np.uint8)


def _decode(row: Any) -> str:
    return np.asarray(row).tobytes().rstrip(b"\0").decode(errors="replace")
