"""What ``GroupExchange`` is made of: its own arguments, and the start of its engine."""

import dataclasses
from typing import Any, NamedTuple

from wagma_jax.exchange import finite, schedules
from wagma_jax.exchange.finite import OnNonfinite
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.models import Models
from wagma_jax.exchange.preparation import Prepared, exchange_once
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.startup import Arguments, between, check_clock
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.wire import Wire
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Clock, Rounds
from wagma_jax.protocol.rules import Outbox
from wagma_jax.schedule import GroupSchedule


class GroupSettings(NamedTuple):
    """The settings of averaging in groups, checked.

    Attributes:
        schedule: Who averages with whom.
        quorum: How many arrivals start an exchange.
        clock: What a call counts.
        on_nonfinite: What is contributed in the place of a model that is not finite.
    """

    schedule: GroupSchedule
    quorum: int
    clock: Clock
    on_nonfinite: OnNonfinite

    def recorded(self) -> dict[str, Any]:
        """What the first entry of a ledger says of them."""
        schedule = self.schedule
        return {
            "num_workers": schedule.num_workers,
            "group_size": schedule.group_size,
            "sync_period": schedule.sync_period,
            "rotate": schedule.rotate,
            "quorum": self.quorum,
            "clock": self.clock,
            "on_nonfinite": self.on_nonfinite,
        }


@dataclasses.dataclass(frozen=True)
class Check:
    """The arguments of ``GroupExchange`` that are its own; called with the number of ranks."""

    schedule: GroupSchedule | None
    group_size: int | None
    sync_period: int | None
    rotate: bool | None
    quorum: int
    clock: Clock
    on_nonfinite: OnNonfinite

    def __call__(self, num_workers: int) -> GroupSettings:
        """The settings; ValueError or TypeError if one is wrong."""
        schedule = schedules.build(num_workers, self.schedule, self.group_size, self.sync_period, self.rotate)
        quorum = between("quorum", self.quorum, 1, schedule.group_size)
        check_clock(self.clock)
        finite.check_choice(self.on_nonfinite)
        return GroupSettings(schedule, quorum, self.clock, self.on_nonfinite)


def make_engine(gathering: Gathering, arguments: Arguments, prepared: Prepared) -> RoundsEngine:
    """Compiles everything, together with all other ranks, and makes the engine.

    Raises:
        ValueError: The model is not finite, but has to be.
    """
    own, staging, standing = arguments.own, arguments.staging, arguments.standing
    model, published = prepared.model, prepared.published
    finite.check_start(own.on_nonfinite, model, published)
    warm_up(gathering, prepared.wire, staging, own.schedule, model, arguments.leaves)
    return RoundsEngine(
        Rounds(GroupPlan(own.schedule, own.quorum), gathering.rank, own.clock),
        prepared.wire,
        gathering.comm,
        Models(own.schedule, staging, Outbox(standing.version, published)),
        standing.round + 1,
        arguments.recorder,
    )


def warm_up(
    gathering: Gathering, wire: Wire, staging: Staging, schedule: GroupSchedule, model: Buffers, leaves: list[Any]
) -> None:
    """Compiles everything, and makes every exchange once, so that no round waits for a compiler."""
    staging.warm_up(model, leaves)
    ordinary = staging.ordinary(model)
    rank, everyone = wire.comm.rank, tuple(range(schedule.num_workers))
    rounds: dict[Any, int] = {}  # the first with these groups
    if schedule.sync_period != 1 and schedule.group_size > 1:  # rounds of one exchange nothing
        for t in range(schedule.period):
            rounds.setdefault(schedule.groups(t), t)
    exchanges = [(schedule.group_of(rank, t), t, ordinary) for t in rounds.values()]
    exchanges.append((everyone, -1, model))
    exchange_once(gathering, wire, exchanges)
