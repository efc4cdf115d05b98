"""Which sum round r is, for one worker: an algorithm's plan, which the machine of rounds carries out."""

import dataclasses
import functools
from typing import NamedTuple, Protocol

from wagma_jax.schedule import GroupSchedule


class Step(NamedTuple):
    """One round as one worker sees it.

    Attributes:
        members: Who takes part in the sum, ascending, this worker among them; the same on all of them. Of one member
            nothing is summed.
        is_sync: Whether all workers have to arrive before it starts; ``members`` are all then.
        quorum: How many arrivals start it otherwise.
        initiator: The member whose arrival alone starts it; None: any ``quorum`` of them.
    """

    members: tuple[int, ...]
    is_sync: bool = False
    quorum: int = 1
    initiator: int | None = None


class Plan(Protocol):
    """The rounds of an algorithm whose workers add up what they contribute."""

    @property
    def num_workers(self) -> int:
        """P."""
        ...

    def step(self, worker: int, r: int) -> Step:
        """Round r of a worker. Pure: all workers work out the same."""
        ...

    def is_sync(self, r: int) -> bool:
        """Whether all workers have to arrive at round r."""
        ...


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """Sums over the groups of a schedule, and over all workers at its sync rounds.

    Attributes:
        schedule: Who averages with whom.
        quorum: How many members start the sum of a group, from 1; all, in a group that is smaller.
    """

    schedule: GroupSchedule
    quorum: int = 1

    @property
    def num_workers(self) -> int:
        """P."""
        return self.schedule.num_workers

    def step(self, worker: int, r: int) -> Step:
        """Round r of a worker."""
        return _step(self, worker, r)

    def is_sync(self, r: int) -> bool:
        """Whether all workers take the global mean at round r."""
        return self.schedule.is_sync(r)


@functools.lru_cache(maxsize=256)
def _step(plan: GroupPlan, worker: int, r: int) -> Step:
    if plan.is_sync(r):
        return Step(tuple(range(plan.num_workers)), is_sync=True)
    members = plan.schedule.group_of(worker, r)
    return Step(members, quorum=min(plan.quorum, len(members)))
