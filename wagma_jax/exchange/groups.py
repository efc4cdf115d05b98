"""What ``GroupExchange`` is made of: its own arguments, and the start of its engine."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.choices import (
    Clock,
    LateMerge,
    OnNonfinite,
    Weighting,
    check_clock,
    check_late_merge,
    check_on_nonfinite,
    check_patience,
    check_quorum_seconds,
    check_weighting,
)
from wagma_jax.exchange import finite, schedules
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.models import Models
from wagma_jax.exchange.preparation import Prepared, exchange_once, gather_once
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.standing import MOST_ROUNDS, Standing
from wagma_jax.exchange.startup import Arguments, between
from wagma_jax.exchange.storage import storage_dtype, sum_dtype
from wagma_jax.exchange.weighing import Weighing
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds
from wagma_jax.protocol.rules import GroupSum, Inbox, Outbox, Steps
from wagma_jax.schedule import GroupSchedule

SUM = ("sum", "sum_of")
"""What a state has of a sum that was not taken: its buffers, and (round, own version, weight, whether it is a mean)."""


class GroupSettings(NamedTuple):
    """The settings of averaging in groups, checked.

    Attributes:
        schedule: Who averages with whom.
        quorum: How many arrivals start an exchange.
        clock: What a call counts.
        on_nonfinite: What is contributed in the place of a model that is not finite.
        weighting: What contributions weigh.
        late_merge: What a late worker makes of its group's sum.
        quorum_seconds: How long a worker waits for the quorum; None: until it is there.
    """

    schedule: GroupSchedule
    quorum: int
    clock: Clock
    on_nonfinite: OnNonfinite
    weighting: Weighting
    late_merge: LateMerge
    quorum_seconds: float | None

    def recorded(self) -> dict[str, Any]:
        """What the first entry of a ledger says of them."""
        schedule = self.schedule
        patience = {} if self.quorum_seconds is None else {"quorum_seconds": str(self.quorum_seconds)}
        return {
            "num_workers": schedule.num_workers,
            "group_size": schedule.group_size,
            "sync_period": schedule.sync_period,
            "rotate": schedule.rotate,
            "quorum": self.quorum,
            "clock": self.clock,
            "on_nonfinite": self.on_nonfinite,
            "options": {"weighting": self.weighting, "late_merge": self.late_merge, **patience},
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
    quorum_seconds: float | None = None

    def __call__(self, num_workers: int) -> GroupSettings:
        """The settings; ValueError or TypeError if one is wrong."""
        schedule = schedules.build(num_workers, self.schedule, self.group_size, self.sync_period, self.rotate)
        quorum = between("quorum", self.quorum, 1, schedule.group_size)
        check_clock(self.clock)
        check_on_nonfinite(self.on_nonfinite)
        check_weighting(self.weighting)
        check_late_merge(self.late_merge)
        check_quorum_seconds(self.quorum_seconds)
        check_patience(self.quorum_seconds, quorum)
        if self.late_merge == "add" and self.weighting != "equal":
            raise ValueError(
                f"late_merge='add' needs weighting='equal', got {self.weighting!r}: both make up for the steps of late "
                "workers, and together they count them twice"
            )
        seconds = None if self.quorum_seconds is None else float(self.quorum_seconds)
        return GroupSettings(schedule, quorum, self.clock, self.on_nonfinite, self.weighting, self.late_merge, seconds)


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
        Models(own.schedule, staging, Outbox(standing.version, published, steps), _restored_sum(standing, staging)),
        standing.round + 1,
        arguments.recorder,
        weighing,
        own.quorum_seconds,
    )


def saved_sum(untaken: GroupSum | None) -> dict[str, Any]:
    """A sum that the trainer has not taken, since it rested in the round: it is merged in its next call."""
    if untaken is None:
        return {}
    numbers = untaken.round, untaken.own, untaken.weight, int(untaken.is_mean)
    return dict(zip(SUM, (untaken.total, [np.array(number) for number in numbers]), strict=True))


def _restored_sum(standing: Standing, staging: Staging) -> Inbox:
    """What :func:`saved_sum` has returned; ValueError if it is something else."""
    if not any(name in standing.kept for name in SUM):
        return Inbox()
    try:
        total, (round_, own, weight, is_mean) = (standing.kept[name] for name in SUM)
        arrays, numbers = list(map(np.asarray, total)), [int(number) for number in (round_, own, weight, is_mean)]
    except (KeyError, TypeError, ValueError):
        arrays, numbers = [], []
    ordinary = [layout for layout in staging.layouts if layout.ordinary]
    expected = [((layout.size,), np.dtype(sum_dtype(storage_dtype(layout.dtype)))) for layout in ordinary]
    fits = bool(numbers) and -1 <= numbers[1] <= numbers[0] <= standing.round
    if not fits or [(array.shape, array.dtype) for array in arrays] != expected:
        raise ValueError("state['sum'] does not fit to params: pass what state() returned on this rank, as it was")
    buffers = jax.block_until_ready(tuple(jnp.array(array, copy=True) for array in arrays))
    return Inbox(GroupSum(numbers[0], numbers[1], numbers[2], buffers, is_mean=bool(numbers[3])))


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
