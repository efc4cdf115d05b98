"""How an exchange begins: arguments are checked, ranks agree, and models are made equal."""

import hashlib
import re
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from mpi4py import MPI

from wagma_jax import cpus
from wagma_jax.averaging import PolicyFunction
from wagma_jax.exchange import children
from wagma_jax.exchange.errors import described
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.layouts import ALIGNMENT
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.standing import MOST_ROUNDS, Standing, restore
from wagma_jax.exchange.storage import Buffers
from wagma_jax.schedule import integer

_Result = TypeVar("_Result")

DEFAULT_TIMEOUT_SECONDS = 600.0
BROADCAST_BYTES = 1 << 24  # at a time


Check = Callable[[int], Any]
"""Maps the number of ranks to the settings of an algorithm alone, a named tuple, or raises what is wrong with them."""


class Arguments(NamedTuple):
    """The arguments of an exchange, checked on this rank.

    Attributes:
        own: The settings of the algorithm alone: a named tuple.
        timeout_seconds: How long a call waits.
        staging: Between trees and buffers.
        leaves: Of ``params``.
        standing: Where this worker stands.
        resumes: Whether that was given by ``state``.
        published: What it has published, if that is not ``params``.
        recorder: Of the ledger, or None.
    """

    own: Any
    timeout_seconds: float
    staging: Staging
    leaves: list[Any]
    standing: Standing
    resumes: bool
    published: Buffers | None
    recorder: Recorder | None


def check_process(comm: Any, what: str) -> MPI.Intracomm:
    """The communicator; warns if XLA has too few threads.

    Args:
        comm: What the user has passed.
        what: The constructor.

    Raises:
        TypeError: ``comm`` is no communicator.
        RuntimeError: MPI was initialized without MPI_THREAD_MULTIPLE, or this process was started by a rank.
    """
    children.refuse(what)
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm must be an mpi4py.MPI.Intracomm or None, got {comm!r}: pass for example MPI.COMM_WORLD")
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise RuntimeError(
            "MPI was initialized without MPI_THREAD_MULTIPLE, which the background thread needs: leave "
            "mpi4py.rc.thread_level at 'multiple', and use an MPI that was built with threads"
        )
    threads = cpus.threads()
    if threads < 2 and jax.config.read("jax_cpu_enable_async_dispatch"):
        warnings.warn(
            f"XLA has {threads} thread for computations on this CPU, so that the exchange waits while a step computes: "
            "start with `wagma launch`, set NPROC=2 and give the process two cores (mpirun --bind-to none), or, before "
            "anything else, jax.config.update('jax_cpu_enable_async_dispatch', False)",
            RuntimeWarning,
            stacklevel=4,  # of whoever makes the exchange
        )
    return comm


def check_arguments(
    comm: MPI.Intracomm,
    params: Any,
    check: Check,
    *,
    policy: PolicyFunction | None,
    timeout_seconds: float,
    first_round: int,
    state: Mapping[str, Any] | None,
    ledger: Path | str | None,
    kept: Collection[str] = (),
) -> Arguments:
    """The arguments of an exchange; see ``base.Exchange``.

    Raises:
        ValueError, TypeError: One of them is wrong.
    """
    own = check(comm.size)
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds must be positive, got {timeout_seconds!r}")
    staging = Staging(params, policy)
    children.keep([staging.device.client, jax.local_devices()[0].client])
    leaves = staging.check(params)
    before = between("first_round", first_round, 0, MOST_ROUNDS) - 1
    standing = Standing(before, before, before) if state is None else restore(state, kept)
    begin = standing.round + 1
    if first_round not in (0, begin):
        raise ValueError(f"first_round is {first_round}, but state goes on with round {begin}: leave first_round out")
    with own_settings():
        published = None if standing.published is None else staging.from_arrays(standing.published)
    return Arguments(
        own,
        min(float(timeout_seconds), threading.TIMEOUT_MAX),
        staging,
        leaves,
        standing._replace(published=None),
        state is not None,
        published,
        None if ledger is None else Recorder(ledger, comm.rank),
    )


def limit(timeout_seconds: Any) -> float:
    """How long the ranks wait for each other until all arguments are checked; some rank may have passed anything."""
    try:
        seconds = float(timeout_seconds)
    except (TypeError, ValueError):
        return DEFAULT_TIMEOUT_SECONDS
    return min(seconds, threading.TIMEOUT_MAX) if seconds > 0 else DEFAULT_TIMEOUT_SECONDS


def done_by_all(gathering: Gathering, work: Callable[[], _Result]) -> _Result:
    """What ``work`` returns, which waits for nobody; raises on all ranks if it has raised on one.

    Raises:
        ValueError: It has raised on another rank.
        Exception: What it raises.
    """
    result, text, error = None, "", None
    try:
        result = work()
    except Exception as caught:
        text, error = described(caught), caught
    rank = gathering.first(error is not None)
    if rank is not None:
        text = gathering.broadcast_object(text, rank)
        gathering.agreed_to_fail()
        if error is not None:
            raise error
        raise ValueError(f"rank {rank} could not build its exchange: {text}")
    return cast(_Result, result)


def agree(gathering: Gathering, check: Callable[[], Arguments]) -> Arguments:
    """This rank's arguments; raises on all ranks if one has an error, or other arguments than rank 0.

    Args:
        gathering: Of all ranks.
        check: Returns the arguments, or raises what is wrong with them.

    Raises:
        ValueError: Another rank has an error, or the arguments differ.
        Exception: What ``check`` raises.
    """
    arguments = done_by_all(gathering, check)
    description = _description(arguments)
    digest = hashlib.sha256(repr(description).encode()).digest()  # of one size, however large the tree is
    known = {gathering.broadcast_object(digest, 0)}
    while (rank := gathering.first(digest not in known)) is not None:
        first, other = gathering.broadcast_object(description, 0), gathering.broadcast_object(description, rank)
        difference = _difference(first, other)
        if difference:
            gathering.agreed_to_fail()
            raise ValueError(f"rank {rank} and rank 0 differ: {difference}; pass the same on all ranks")
        known.add(gathering.broadcast_object(digest, rank))
    return arguments


def _description(arguments: Arguments) -> tuple[dict[str, str], list[Any], str]:
    """What must be equal on all ranks: settings, leaves and structure."""
    settings = {
        **{name: str(value) for name, value in arguments.own._asdict().items()},
        "first_round": str(arguments.standing.round + 1),
        "state": "given" if arguments.resumes else "not given",
        "ledger": "not written" if arguments.recorder is None else "written",
    }
    # static fields may hold functions, which are shown with their addresses
    structure = re.sub(r" at 0x[0-9a-f]+", "", str(arguments.staging.treedef))
    return settings, arguments.staging.describe(), structure


def _difference(expected: Any, came: Any) -> str | None:
    """The first difference between two ranks' descriptions."""
    for name, value in expected[0].items():
        if came[0][name] != value:
            return f"{name} is {came[0][name]} there, and {value} on rank 0"
    for ours, theirs in zip(expected[1], came[1], strict=False):
        if ours != theirs:
            (name, shape, dtype, policy), (other, other_shape, other_dtype, other_policy) = ours, theirs
            return (
                f"the leaf {other} is {other_dtype}{list(other_shape)} ({other_policy}) there, and on rank 0 it is "
                f"{name}, {dtype}{list(shape)} ({policy})"
            )
    if len(expected[1]) != len(came[1]):
        leaves = max(tuple(expected[1]), tuple(came[1]), key=len)
        name = leaves[min(len(expected[1]), len(came[1]))][0]
        return f"the leaf {name} is missing on one of them"
    return None if expected[2] == came[2] else f"the tree is {came[2]} there, and {expected[2]} on rank 0"


def broadcast(gathering: Gathering, staging: Staging, model: Buffers) -> tuple[Buffers, bool]:
    """Rank 0's buffers, and whether this rank's differ from them."""
    result, differs = [], False
    for own in model:
        mine = np.asarray(own).view(np.uint8)
        theirs = _aligned_empty(mine.size)
        if gathering.rank == 0:
            theirs[:] = mine
        for start in range(0, theirs.size, BROADCAST_BYTES):
            part = slice(start, start + BROADCAST_BYTES)
            gathering.broadcast(theirs[part], 0)
            differs = differs or not np.array_equal(mine[part], theirs[part])
        result.append(jax.device_put(theirs.view(own.dtype), staging.device, may_alias=True))
    return staging.copy(tuple(result)), differs


def _aligned_empty(nbytes: int) -> np.ndarray:
    """Memory that XLA takes as it is, without a copy."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + nbytes]


def between(name: str, value: Any, low: int, high: int) -> int:
    """An integer argument from ``low`` to ``high``; ValueError for anything else."""
    value = integer(name, value, f"pass {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
    return value
