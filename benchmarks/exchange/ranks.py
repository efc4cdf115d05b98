"""All ranks together: barriers, agreement, output, and exchanges that everyone opens."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import wagma_jax as wagma

if TYPE_CHECKING:
    from mpi4py import MPI

STEP_SECONDS = 0.03
"""Of steps that sleep, unless a section says otherwise."""


class World:
    """All ranks. Rank 0 alone prints and writes.

    Args:
        comm: Of all ranks; None: ``MPI.COMM_WORLD``. Importing MPI initializes it, so the import is left until here.

    Raises:
        ValueError: There is only one rank.
    """

    def __init__(self, comm: "MPI.Intracomm | None" = None):
        from mpi4py import MPI

        self.comm: MPI.Intracomm = MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = self.comm.rank, self.comm.size
        self.library = MPI.Get_library_version().split(",")[0].strip()
        if self.size < 2:
            raise ValueError(
                "expected at least 2 ranks, got 1: start with "
                "wagma launch -n 4 --no-prefix -- python -m benchmarks.exchange SECTION"
            )

    @property
    def is_late(self) -> bool:
        """Whether this is the rank that is late, or slow: the last one."""
        return self.rank == self.size - 1

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds of a call that all ranks begin at the same time, on the slowest rank."""
        self.comm.Barrier()
        start = time.perf_counter()
        function()
        return max(self.comm.allgather(time.perf_counter() - start))

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks."""
        return self.comm.allgather(value)

    def agree(self, value: Any) -> Any:
        """Rank 0's value."""
        return self.comm.bcast(value)

    def say(self, words: str) -> None:
        """Prints, on rank 0."""
        if self.rank == 0:
            print(words, flush=True)

    def progress(self, words: str) -> None:
        """Tells the user what is being done, on rank 0's stderr."""
        if self.rank == 0:
            print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def make_exchange(world: World, params: Any, group_size: int, **options: Any) -> "wagma.GroupExchange":
    """Opens an exchange on all ranks; returns when all have opened it."""
    exchange = wagma.GroupExchange(world.comm, params, group_size=group_size, **options)
    world.comm.Barrier()
    return exchange


def warm_up(
    world: World, exchange: "wagma.GroupExchange", params: Any, sync_period: int, step_seconds: float = STEP_SECONDS
) -> Any:
    """Trains for whole sync periods in which every worker is late once, so that nothing remains to be compiled.

    Returns:
        The parameters after it.
    """
    periods = math.ceil(world.size / max(1, sync_period - 1)) + 1
    while exchange.round + 1 < periods * sync_period:
        is_late = (exchange.round + 1) % world.size == world.rank
        time.sleep((5 if is_late else 1) * step_seconds)
        params, _ = exchange.average(params)
    return params


def in_turn(rng: np.random.Generator, names: Sequence[Any]) -> list[Any]:
    """The names in a random order, the same on all ranks whose generators have the same state."""
    return [names[i] for i in rng.permutation(len(names))]
