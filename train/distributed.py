"""Several processes that train together: joining them, and agreeing before anything is lost.

Uses ``jax.distributed``; the processes find each other from the environment of Slurm, of a TPU pod or of MPI, or from
explicit options. Nothing here is needed, or done, where there is one process.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

INITIALIZATION_TIMEOUT = 300
"""Seconds in which all processes must have come."""

HEARTBEAT_TIMEOUT = 30
"""Seconds after which a process that has died is missed."""

T = TypeVar("T")
N = TypeVar("N", int, float)

_MAX_MESSAGE = 4096


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
    found = launched(environment)
    if found is not None:
        if found.method == "mpi4py" and importlib.util.find_spec("mpi4py") is None:
            raise ValueError(
                f"started by MPI as one of {found.processes} processes, but mpi4py, by which they find each other, is "
                "not installed: run make setup or pip install 'wagma_jax[mpi]', or give --coordinator, --processes "
                "and --process-id"
            )
        _join(cluster_detection_method=found.method)
        if found.alone_on_host:  # JAX gives each process one accelerator of its host
            for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
                jax.config.update(name, "all")
        return found.processes
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        _join()
        return jax.process_count()
    return 1


class Launched(NamedTuple):
    """What a launcher tells in the environment.

    Attributes:
        processes: How many.
        method: How JAX is to find them.
        alone_on_host: Whether this one has the accelerators of its host for itself.
    """

    processes: int
    method: str
    alone_on_host: bool


def launched(environment: Mapping[str, str]) -> Launched | None:
    """What Slurm or MPI tell about the processes of the run; None if there is one."""
    # Open MPI before Slurm, under which its daemons are started; PMI after it, which Slurm speaks too.
    for launcher in (_open_mpi, _slurm, _pmi):
        found = launcher(environment)
        if found is not None and found.processes > 1:
            return found
    return None


def _open_mpi(environment: Mapping[str, str]) -> Launched | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return Launched(int(environment["OMPI_COMM_WORLD_SIZE"]), "mpi4py", alone)


def _slurm(environment: Mapping[str, str]) -> Launched | None:
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_PROCID" not in environment:
        return None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # as 1(x16)
    return Launched(int(environment.get("SLURM_NTASKS", 1)), "slurm", re.fullmatch(r"1(\(x\d+\))?", tasks) is not None)


def _pmi(environment: Mapping[str, str]) -> Launched | None:
    if "PMI_SIZE" not in environment:
        return None
    return Launched(int(environment["PMI_SIZE"]), "mpi4py", environment.get("MPI_LOCALNRANKS") == "1")


def _join(**arguments: Any) -> None:
    jax.distributed.initialize(
        initialization_timeout=INITIALIZATION_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **arguments
    )


def mpi_processes(environment: Mapping[str, str]) -> int:
    """How many processes mpirun, ``wagma launch`` or another that speaks PMI has started; 1 if none has."""
    launchers = (_open_mpi(environment), _pmi(environment))
    return next((found.processes for found in launchers if found is not None), 1)


_mpi_rank: int | None = None  # where every process is a program of its own


def set_mpi_rank(rank: int) -> None:
    """Tells :func:`is_first` which of several programs this is."""
    global _mpi_rank
    _mpi_rank = rank


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return _mpi_rank == 0 if _mpi_rank is not None else jax.process_index() == 0


class ProcessError(RuntimeError):
    """What was to be done by all processes failed on some; the message is the first one's."""


def agree(error: Exception | None) -> None:
    """Raises on all processes if there is an error on any: nobody goes on alone and waits for ever.

    Raises:
        ValueError: The error of the first process that has one; on that process itself its own.
        ProcessError: Likewise for other errors.
    """
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    kind = "ValueError" if isinstance(error, ValueError) else "other"
    text = "" if error is None else f"{kind}:{str(error) or repr(error)}"
    messages = [_decode(row) for row in multihost_utils.process_allgather(_encode(text))]
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message:
            kind, _, reason = message.partition(":")
            raise (ValueError if kind == "ValueError" else ProcessError)(f"process {process}: {reason}")


def agreed(function: Callable[[], T]) -> T:
    """Calls a function on all processes, and returns its result only if it worked on all.

    Raises:
        ValueError: What the function raised, or another process's.
        ProcessError: For errors of other kinds, where there are several processes.
    """
    if jax.process_count() == 1:
        return function()
    result, error = attempt(function)
    agree(error)
    return cast(T, result)


def attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What a function returns, or its error to tell others: whatever it is, they must not wait for this process."""
    try:
        return function(), None
    except ValueError as problem:
        return None, problem
    except Exception as problem:
        error = ProcessError(in_a_line(problem))
        error.__cause__ = problem
        return None, error


def in_a_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, which libraries make long."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def check_same(what: Mapping[str, Any]) -> None:
    """Raises ValueError on all processes if any value, by its name, differs from the first process's."""
    mine = {name: str(value) for name, value in what.items()}
    error = None
    if jax.process_count() > 1:
        digests = {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in mine.items()}
        first = json.loads(from_first(json.dumps(digests)))
        different = [name for name in digests if first.get(name) != digests[name]]
        if different:
            listed = ", ".join(f"{name}: {mine[name][:60]}" for name in different)
            error = ValueError(f"differs from process 0: {listed}; start all processes with the same options and data")
    agree(error)


class KeepsTogether(Exception):
    """What all processes raise at the same time."""


@contextlib.contextmanager
def ending_together(*expected: type[Exception]) -> Iterator[None]:
    """With several processes, an unexpected exception ends this one at once: the others learn of it and end too.

    Without it they would wait, inside of a collective, for a process that waits for them to shut down.

    Args:
        expected: Kinds of exceptions that all processes raise at the same time.
    """
    try:
        yield
    except Exception as problem:
        alone = jax.process_count() == 1 and _mpi_rank is None
        if alone or isinstance(problem, (KeepsTogether, *expected)):
            raise
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if _mpi_rank is not None:
            from wagma_jax.exchange import MPI

            MPI.COMM_WORLD.Abort(1)
        os._exit(1)


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


def highest(number: N) -> N:
    """The highest number that any process has; to be called by all."""
    if jax.process_count() == 1:
        return number
    return type(number)(multihost_utils.process_allgather(np.asarray(number)).max())


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
