"""What ``EagerExchange`` is made of: its own arguments, and the start of its engine."""

import dataclasses
from typing import Any, NamedTuple

from wagma_jax.choices import Clock, Start, check_clock, check_start
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.increments import Increments
from wagma_jax.exchange.preparation import Prepared, exchange_once
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.startup import Arguments, between
from wagma_jax.protocol.plan import PartialPlan
from wagma_jax.protocol.rounds import Rounds
from wagma_jax.schedule import GroupSchedule


class EagerSettings(NamedTuple):
    """The settings of eager-SGD, checked.

    Attributes:
        start: Whose arrival starts a round.
        seed: Of the workers that are drawn.
        quorum: How many arrivals start a round otherwise.
        sync_period: Rounds between those at which all wait for all, or None.
        clock: What a call counts.
        num_workers: P.
    """

    start: Start
    seed: int
    quorum: int
    sync_period: int | None
    clock: Clock
    num_workers: int

    def recorded(self) -> dict[str, Any]:
        """What the first entry of a ledger says of them."""
        return {
            "num_workers": self.num_workers,
            "group_size": self.num_workers,
            "sync_period": self.sync_period,
            "rotate": True,
            "quorum": self.quorum,
            "clock": self.clock,
            "on_nonfinite": "share",
            "method": "increments",
            "options": {"start": self.start, "seed": str(self.seed)},
        }


@dataclasses.dataclass(frozen=True)
class Check:
    """The arguments that are eager-SGD's own; called with the number of ranks."""

    start: Start
    seed: int
    quorum: int
    sync_period: int | None
    clock: Clock

    def __call__(self, num_workers: int) -> EagerSettings:
        """The settings; ValueError if one is wrong."""
        check_start(self.start)
        seed = between("seed", self.seed, 0, 1 << 62)
        quorum = between("quorum", self.quorum, 1, num_workers)
        if quorum > 1 and self.start == "majority":
            raise ValueError(
                f"quorum is for start='solo', got {quorum} with start='majority', where one worker is waited for: "
                "leave one of them out"
            )
        check_clock(self.clock)
        period = GroupSchedule(num_workers, num_workers, self.sync_period).sync_period
        return EagerSettings(self.start, seed, quorum, period, self.clock, num_workers)


class _Machine(Rounds):
    """Rounds of one go the way of all others: what is handed in comes back from them."""

    def is_alone(self, r: int) -> bool:
        """Whether nothing is exchanged in round r."""
        del r
        return False


def make_engine(gathering: Gathering, arguments: Arguments, prepared: Prepared) -> RoundsEngine:
    """Makes the engine.

    Raises:
        ValueError: The state is of other parameters.
    """
    own, staging, standing = arguments.own, arguments.staging, arguments.standing
    seed = own.seed if own.start == "majority" else None
    plan = PartialPlan(own.num_workers, own.sync_period, own.quorum, seed)
    store = Increments(plan.is_sync, staging, standing, staging.rest(prepared.model))
    machine = _Machine(plan, gathering.rank, own.clock)
    return RoundsEngine(machine, prepared.wire, gathering.comm, store, standing.round + 1, arguments.recorder)


def warm_up(gathering: Gathering, arguments: Arguments, prepared: Prepared, store: Increments) -> None:
    """Compiles everything, together with all other ranks."""
    staging = arguments.staging
    staging.warm_up(prepared.model, arguments.leaves)
    store.warm_up()
    everyone, ordinary = tuple(range(arguments.own.num_workers)), staging.ordinary(prepared.model)
    exchanges = [ordinary, prepared.model] if staging.has_rest else [prepared.model]
    exchange_once(gathering, prepared.wire, [(everyone, -1, buffers) for buffers in exchanges])
