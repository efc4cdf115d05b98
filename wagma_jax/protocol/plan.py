"""Which sum round r is, for one worker: an algorithm's plan, which the machine of rounds carries out."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from wagma_jax.protocol.facts import mask_of
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

    def peers(self, worker: int) -> tuple[int, ...]:
        """All others with whom a worker is ever in a round that is no sync round."""
        ...


class Planned(NamedTuple):
    """A step of a plan; with the other members, and the set of all, if it is no sync round."""

    members: tuple[int, ...]
    is_sync: bool
    quorum: int
    initiator: int | None
    peers: tuple[int, ...]
    mask: int


def planned_for(plan: Plan, worker: int) -> Callable[[int], Planned]:
    """The rounds of a worker, remembered: every event asks for one several times, and a plan's own memory hashes it."""

    @functools.lru_cache(maxsize=256)
    def planned(r: int) -> Planned:
        step = plan.step(worker, r)
        if step.is_sync:  # of all, who may be many, and talk along a tree
            return Planned(*step, (), 0)
        peers = tuple(member for member in step.members if member != worker)
        return Planned(*step, peers, mask_of(step.members))

    return planned


@functools.lru_cache(maxsize=16)
def everyone(num_workers: int) -> tuple[int, ...]:
    """All workers, made once: there may be many."""
    return tuple(range(num_workers))


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

    def peers(self, worker: int) -> tuple[int, ...]:
        """All others with whom a worker is ever in a group."""
        groups = (self.schedule.group_of(worker, t) for t in range(self.schedule.period))
        return tuple(sorted(set().union(*groups) - {worker}))


@dataclasses.dataclass(frozen=True)
class PartialPlan:
    """Sums over all workers, which wait for none but the one that starts the round; for all at sync rounds.

    Partial allreduces, solo and majority: Li et al., PPoPP 2020, section 4.

    Attributes:
        num_workers: P.
        sync_period: Rounds between those at which all have to arrive; None: never.
        quorum: How many arrivals start a round.
        seed: Of the worker that starts a round by its arrival alone, drawn for it; None: ``quorum`` of any.
    """

    num_workers: int
    sync_period: int | None
    quorum: int = 1
    seed: int | None = None

    def step(self, worker: int, r: int) -> Step:
        """Round r, the same for all workers."""
        del worker
        return _partial_step(self, r)

    def is_sync(self, r: int) -> bool:
        """Whether all workers have to arrive at round r."""
        return self.sync_period is not None and (r + 1) % self.sync_period == 0

    def peers(self, worker: int) -> tuple[int, ...]:
        """All others."""
        return tuple(other for other in everyone(self.num_workers) if other != worker)


@functools.lru_cache(maxsize=256)
def _partial_step(plan: PartialPlan, r: int) -> Step:
    members = everyone(plan.num_workers)
    if plan.is_sync(r) or plan.seed is None:
        return Step(members, is_sync=plan.is_sync(r), quorum=plan.quorum)
    drawn = hashlib.sha256(f"{plan.seed} {r}".encode()).digest()  # the same in every version of everything
    return Step(members, initiator=int.from_bytes(drawn[:8], "big") % plan.num_workers)


@functools.lru_cache(maxsize=256)
def _step(plan: GroupPlan, worker: int, r: int) -> Step:
    if plan.is_sync(r):
        return Step(everyone(plan.num_workers), is_sync=True)
    members = plan.schedule.group_of(worker, r)
    return Step(members, quorum=min(plan.quorum, len(members)))
