"""Every algorithm behind one small interface, so that a training script never branches on an algorithm's name.

One module of this package is one algorithm: it defines ``ALGORITHM``, and is found by being there. A training step asks
its strategy twice:

    grads = strategy.combine_gradients(grads)          # before the local optimizer
    ...                                                # params += optimizer's updates
    model, state, info = strategy.combine_models(model, state, late)

Across processes an algorithm is an exchange (of the models after the local step, or of the gradients before it, as
``averages`` says) with the methods of ``GroupExchange``.
"""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wagma_jax.averaging import AverageInfo
from wagma_jax.collectives import AxisName
from wagma_jax.schedule import GroupSchedule

if TYPE_CHECKING:
    from wagma_jax.exchange import GroupExchange
    from wagma_jax.protocol.rounds import Clock


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the algorithms are built from; each takes what concerns it.

    Attributes:
        num_workers: P.
        group_size: S; None: about the square root of P (a power of two where P is one), as in the paper.
        sync_period: tau, rounds between global means; None: never.
        axis_name: The mapped axis of the workers.
        simulate_lateness: Whether ``late`` is given to ``combine_models``.
        quorum: Across processes, how many members of a group start its exchange.
        clock: Across processes, what a worker's call counts: "step" or "round".
        timeout_seconds: Across processes, how long a call waits for others.
        first_round: Across processes, the round to begin with.
        ledger: Across processes, the folder of the ledgers, or None.
    """

    num_workers: int
    group_size: int | None = None
    sync_period: int | None = 10
    axis_name: AxisName = "data"
    simulate_lateness: bool = False
    quorum: int = 1
    clock: "Clock" = "step"
    timeout_seconds: float = 600.0
    first_round: int = 0
    ledger: Path | None = None

    def schedule(self) -> GroupSchedule:
        """The schedule of rotating groups with these settings; ValueError for bad ones."""
        size = default_group_size(self.num_workers) if self.group_size is None else self.group_size
        if not 1 <= self.quorum <= size:
            raise ValueError(f"quorum must be between 1 and the group size {size}, got {self.quorum}: pass 1 to {size}")
        return GroupSchedule(self.num_workers, size, self.sync_period)

    def exchange(self, comm: Any, tree: Any, schedule: GroupSchedule, quorum: int = 1) -> "GroupExchange":
        """An exchange by this schedule with these settings; see ``GroupExchange`` for what it raises.

        ``quorum`` is not taken from the settings, since it means nothing in groups of one, nor at sync rounds.
        """
        from wagma_jax.exchange import GroupExchange

        return GroupExchange(
            comm,
            tree,
            group_size=schedule.group_size,
            sync_period=schedule.sync_period,
            quorum=quorum,
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
            first_round=self.first_round,
            ledger=self.ledger,
        )


@dataclasses.dataclass(frozen=True)
class Strategy:
    """An algorithm as a training step sees it; all functions run per worker and are traced.

    Attributes:
        schedule: The groups and sync rounds that it amounts to.
        init: From the model's tree to the strategy's state.
        combine_gradients: From this worker's gradients to those that its optimizer sees.
        combine_models: From (the model after the local step, state, late) to (model, state, info). The model is one
            tree of parameters and statistics; ``late`` is a boolean scalar, or None.
    """

    schedule: GroupSchedule
    init: Callable[[Any], Any]
    combine_gradients: Callable[[Any], Any]
    combine_models: Callable[[Any, Any, Any], tuple[Any, Any, AverageInfo]]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """An algorithm's entry in the table.

    Attributes:
        name: As on the command line.
        summary: One line for people.
        xla: Builds the strategy that runs inside one XLA program; ValueError for settings that it cannot have.
        averages: Across processes, what is exchanged: "models" after the local step, or "gradients" before it, together
            with the model's statistics.
        mpi: Builds the exchange of such trees over a communicator, one process per worker.
    """

    name: str
    summary: str
    xla: Callable[[Settings], Strategy]
    averages: Literal["models", "gradients"]
    mpi: "Callable[[Settings, Any, Any], GroupExchange]"


def default_group_size(num_workers: int) -> int:
    """About sqrt(num_workers); a power of two where num_workers is one. ValueError below 1."""
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}: pass the number of workers")
    if num_workers & (num_workers - 1) == 0:
        return 1 << num_workers.bit_length() // 2
    return round(math.sqrt(num_workers))


def _discover() -> dict[str, Algorithm]:
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.ALGORITHM.name: module.ALGORITHM for module in modules}


ALGORITHMS: dict[str, Algorithm] = _discover()


def build(name: str, settings: Settings) -> Strategy:
    """The strategy of an algorithm by name.

    Raises:
        ValueError: There is no such algorithm, or the settings are bad.
    """
    return find(name).xla(settings)


def find(name: str) -> Algorithm:
    """The algorithm of that name; ValueError if there is none."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(sorted(ALGORITHMS))}, got {name!r}: pass one of them")
    return ALGORITHMS[name]
