"""What ``GroupExchange`` is made of: its own arguments, and the start of its engine."""

import dataclasses
from typing import Any, NamedTuple

from wagma_jax.choices import (
    Clock,
    LateMerge,
    OnNonfinite,
    Weighting,
    check_clock,
    check_late_merge,
    check_on_nonfinite,
    check_weighting,
)
from wagma_jax.exchange import finite, schedules
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.models import Models
from wagma_jax.exchange.preparation import Prepared, exchange_once, gather_once
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.standing import MOST_ROUNDS, Standing
from wagma_jax.exchange.startup import Arguments, between
from wagma_jax.exchange.weighing import Weighing
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds
from wagma_jax.protocol.rules import Outbox, Steps
from wagma_jax.schedule import GroupSchedule


class GroupSettings(NamedTuple):
    """The settings of averaging in groups, checked.

    Attributes:
        schedule: Who averages with whom.
        quorum: How many arrivals start an exchange.
        clock: What a call counts.
        on_nonfinite: What is contributed in the place of a model that is not finite.
        weighting: What contributions weigh.
        late_merge: What a late worker makes of its group's sum.
    """

    schedule: GroupSchedule
    quorum: int
    clock: Clock
    on_nonfinite: OnNonfinite
    weighting: Weighting
    late_merge: LateMerge

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
            "options": {"weighting": self.weighting, "late_merge": self.late_merge},
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
    weighting: Weighting
    late_merge: LateMerge

    def __call__(self, num_workers: int) -> GroupSettings:
        """The settings; ValueError or TypeError if one is wrong."""
        schedule = schedules.build(num_workers, self.schedule, self.group_size, self.sync_period, self.rotate)
        quorum = between("quorum", self.quorum, 1, schedule.group_size)
        check_clock(self.clock)
        check_on_nonfinite(self.on_nonfinite)
        check_weighting(self.weighting)
        check_late_merge(self.late_merge)
        if self.late_merge == "add" and self.weighting != "equal":
            raise ValueError(
                f"late_merge='add' needs weighting='equal', got {self.weighting!r}: both make up for the steps of late "
                "workers, and together they count them twice"
            )
        return GroupSettings(schedule, quorum, self.clock, self.on_nonfinite, self.weighting, self.late_merge)


def make_engine(gathering: Gathering, arguments: Arguments, prepared: Prepared) -> RoundsEngine:
    """Makes the engine.

    Raises:
        ValueError: The model is not finite, but has to be, or ``state`` holds other steps than a run counts.
    """
    own, staging, standing = arguments.own, arguments.staging, arguments.standing
    model, published = prepared.model, prepared.published
    finite.check_start(own.on_nonfinite, model, published)
    steps, weighing = None, None
    if own.weighting == "steps":
        steps = restored_steps(standing) if arguments.resumes else Steps()
        weighing = Weighing(prepared.wire, staging.device)
    return RoundsEngine(
        Rounds(GroupPlan(own.schedule, own.quorum), gathering.rank, own.clock),
        prepared.wire,
        gathering.comm,
        Models(own.schedule, staging, Outbox(standing.version, published, steps)),
        standing.round + 1,
        arguments.recorder,
        weighing,
    )


def restored_steps(standing: Standing) -> Steps:
    """The steps that a worker had not contributed; ValueError if ``state`` does not say so."""
    numbers = [standing.kept.get(name) for name in Steps._fields]
    if None in numbers:
        raise ValueError(
            f"state must hold {', '.join(Steps._fields)} with weighting='steps', got one of a run with equal weights: "
            "go on with weighting='equal', or begin anew from equal models, with first_round"
        )
    names = [f"state[{name!r}]" for name in Steps._fields]
    return Steps(*(between(name, number, 0, MOST_ROUNDS) for name, number in zip(names, numbers, strict=True)))


def warm_up(gathering: Gathering, arguments: Arguments, prepared: Prepared, weighing: Weighing | None) -> None:
    """Compiles everything, and makes every exchange once, so that no round waits for a compiler."""
    staging, schedule, wire, model = arguments.staging, arguments.own.schedule, prepared.wire, prepared.model
    staging.warm_up(model, arguments.leaves, weighing is not None)
    ordinary = staging.ordinary(model)
    rank, everyone = wire.comm.rank, tuple(range(schedule.num_workers))
    rounds: dict[Any, int] = {}  # the first with these groups
    if schedule.sync_period != 1 and schedule.group_size > 1:  # rounds of one exchange nothing
        for t in range(schedule.period):
            rounds.setdefault(schedule.groups(t), t)
    exchanges = [(schedule.group_of(rank, t), t, ordinary) for t in rounds.values()]
    exchanges.append((everyone, -1, model))
    exchange_once(gathering, wire, exchanges)
    if weighing is not None:
        for buffers in (model,) if len(ordinary) == len(model) else (ordinary, model):
            weighing.warm_up(buffers)
        gather_once(gathering, wire, [group for group, _, _ in exchanges])
