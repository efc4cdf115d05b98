"""What an algorithm is: an entry of the table, built from settings into a strategy or an exchange."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wagma_jax.averager import GroupAverager
from wagma_jax.averaging import AverageInfo, PolicyFunction
from wagma_jax.choices import Clock, LateMerge, OnNonfinite
from wagma_jax.collectives import AxisName
from wagma_jax.gossip import GossipSchedule
from wagma_jax.schedule import GroupSchedule, integer

if TYPE_CHECKING:
    from wagma_jax.exchange import Exchange, GossipExchange, GroupExchange
    from wagma_jax.protocol.mixing import Mixing


@dataclasses.dataclass(frozen=True)
class Settings:
    """What algorithms are built from; each takes what concerns it.

    Attributes:
        num_workers: P.
        group_size: S; None: about the square root of P (a power of two where P is one), as in the paper.
        sync_period: tau, rounds between global means; None: never.
        rotate: Whether groups change from round to round.
        axis_name: The mapped axis of the workers.
        simulate_lateness: Whether ``Strategy.combine`` is given ``late``.
        quorum: Across processes, how many members of a group start its exchange.
        clock: Across processes, what a worker's call counts: "step" or "round".
        on_nonfinite: Across processes, what a worker contributes whose model is not finite: "share": that; "skip": what
            it has published before.
        policy: Which leaves are averaged when, by those that average models; None: floating ones, in every round.
        timeout_seconds: Across processes, how long a call waits for others.
        first_round: The round to begin with.
        ledger: Across processes, the folder of the ledgers, or None.
        state: Across processes, what ``exchange.state()`` returned, to go on from; None for a new run.
        options: The options that the algorithm alone has, of the type that its table entry names; None: the defaults.
    """

    num_workers: int
    group_size: int | None = None
    sync_period: int | None = 10
    rotate: bool = True
    axis_name: AxisName = "data"
    simulate_lateness: bool = False
    quorum: int = 1
    clock: Clock = "step"
    on_nonfinite: OnNonfinite = "share"
    policy: PolicyFunction | None = None
    timeout_seconds: float = 600.0
    first_round: int = 0
    ledger: Path | None = None
    state: Any = None
    options: Any = None

    def schedule(self) -> GroupSchedule:
        """The schedule of rotating groups with these settings; ValueError for bad ones."""
        size = default_group_size(self.num_workers) if self.group_size is None else self.group_size
        if not 1 <= self.quorum <= size:
            raise ValueError(f"quorum must be between 1 and the group size {size}, got {self.quorum}: pass 1 to {size}")
        return GroupSchedule(self.num_workers, size, self.sync_period, self.rotate)

    def exchange(
        self,
        comm: Any,
        tree: Any,
        schedule: GroupSchedule,
        quorum: int = 1,
        **own: Any,
    ) -> "GroupExchange":
        """An exchange by this schedule with these settings; see ``GroupExchange`` for what it raises.

        Args:
            comm: The communicator.
            tree: A tree like those that are exchanged.
            schedule: Whose groups and sync rounds.
            quorum: How many members of a group start its exchange. It is not taken from the settings, since it means
                nothing in groups of one, nor at sync rounds.
            own: Arguments of ``GroupExchange`` that are options of one algorithm alone.
        """
        from wagma_jax.exchange import GroupExchange

        return GroupExchange(
            comm,
            tree,
            schedule=schedule,
            quorum=quorum,
            clock=self.clock,
            on_nonfinite=self.on_nonfinite,
            policy=self.policy,
            **own,
            **self.of_every_exchange(),
        )

    def gossip(self, comm: Any, tree: Any, schedule: GossipSchedule, mixing: "Mixing") -> "GossipExchange":
        """An exchange that mixes models with neighbours; see ``GossipExchange`` for what it raises.

        Args:
            comm: The communicator.
            tree: A tree like those that are exchanged.
            schedule: Who sends to whom.
            mixing: What is sent and how it is mixed.

        Raises:
            ValueError: With ``clock="round"``.
        """
        from wagma_jax.exchange import GossipExchange

        if self.clock != "step":
            raise ValueError(
                f"clock={self.clock!r} lets slow workers take fewer steps, got it with an algorithm whose workers all "
                "take part in every round: leave it out"
            )
        return GossipExchange(
            comm,
            tree,
            schedule,
            mixing,
            policy=self.policy,
            on_nonfinite=self.on_nonfinite,
            **self.of_every_exchange(),
        )

    def of_every_exchange(self) -> dict[str, Any]:
        """The arguments that the exchanges of all algorithms have."""
        begin = {"first_round": self.first_round} if self.state is None else {"state": self.state}
        return {"timeout_seconds": self.timeout_seconds, "ledger": self.ledger, **begin}


def whole_model(tree: Any, state: Any) -> Any:
    """The share of a worker whose model is all in one place: that model."""
    del state
    return tree


@dataclasses.dataclass(frozen=True)
class Strategy:
    """An algorithm inside one XLA program; its functions run per worker and are traced.

    Attributes:
        schedule: The groups and sync rounds, or the neighbours, that it amounts to.
        init: Maps a tree like those that ``combine`` takes to the strategy's first state.
        combine: Maps (tree, before, state, late) to (tree, state, info). Where the algorithm exchanges models, ``tree``
            is this worker's model after its local step, and comes back as the model to go on with. Where it exchanges
            gradients, ``tree`` holds this worker's gradients and the model's statistics, such as
            ``{"params": gradients, "stats": statistics}``, and both come back averaged, for the local optimizer.
            ``before`` is the model at which the step began. ``late`` is a boolean scalar, or None for nobody.
        share: Maps (tree, state) to the tree whose mean over all workers is the consensus: the model itself, unless
            the state holds a part of it.
    """

    schedule: GroupSchedule | GossipSchedule
    init: Callable[[Any], Any]
    combine: Callable[[Any, Any, Any, Any], tuple[Any, Any, AverageInfo]]
    share: Callable[[Any, Any], Any] = whole_model


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """An algorithm's entry in the table.

    Attributes:
        name: As on the command line.
        summary: One line for people.
        exchanges: What workers exchange: "models" after the local step, or "gradients" before it, together with the
            model's statistics.
        xla: Builds the strategy that runs inside one XLA program; ValueError for settings that it cannot have.
        mpi: Builds the exchange over a communicator, one process per worker, from (settings, communicator, a tree like
            those that are exchanged); None for an algorithm that runs in one program only.
        options: The dataclass of the options that this algorithm alone has, or None.
        drifts: Across processes, whether parameters drift apart although gradients are exchanged. After the step of a
            sync round, a training loop then goes on with ``exchange.consensus(model)``.
        takes_means: Maps its options to whether a step's results are averaged, whatever they are: what comes back is a
            mean of what workers hand in. Otherwise the step's change is added to models that are mixed.
        schedule: Builds what the algorithm amounts to across processes, who averages with whom; None: the schedule of
            its strategy.
        mixing: Builds from its options what is pushed to neighbours, and when; None for algorithms that do not gossip.
    """

    name: str
    summary: str
    exchanges: Literal["models", "gradients"]
    xla: Callable[[Settings], Strategy]
    mpi: "Callable[[Settings, Any, Any], Exchange] | None" = None
    options: type | None = None
    drifts: bool = False
    takes_means: Callable[[Any], bool] = lambda options: False
    schedule: Callable[[Settings], Any] | None = None
    mixing: "Callable[[Any], Mixing] | None" = None


def check_one_program(settings: Settings) -> None:
    """Raises ValueError for settings that have a meaning across processes alone, and that nobody would notice."""
    if settings.on_nonfinite != "share":
        raise ValueError(
            f"on_nonfinite={settings.on_nonfinite!r} needs a process for each worker, got one program, whose workers "
            "keep no earlier publications: wrap the optimizer in optax.apply_if_finite"
        )


def averaging(
    schedule: GroupSchedule,
    settings: Settings,
    simulate_lateness: bool = False,
    policy: PolicyFunction | None = None,
    late_merge: LateMerge = "average",
) -> Strategy:
    """The strategy of averaging by a schedule; without ``simulate_lateness`` nobody is late, whatever ``late`` says."""
    check_one_program(settings)
    averager = GroupAverager(
        schedule, settings.axis_name, policy, simulate_lateness=simulate_lateness, late_merge=late_merge
    )

    def combine(tree, before, state, late):
        del before
        return averager.average(tree, state, late if simulate_lateness else None)

    return Strategy(schedule, functools.partial(averager.init, first_round=settings.first_round), combine)


def default_group_size(num_workers: int) -> int:
    """About sqrt(num_workers); a power of two where num_workers is one. ValueError below 1."""
    num_workers = integer("num_workers", num_workers, "pass the number of workers")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}: pass the number of workers")
    if num_workers & (num_workers - 1) == 0:
        return 1 << num_workers.bit_length() // 2
    return round(math.sqrt(num_workers))
