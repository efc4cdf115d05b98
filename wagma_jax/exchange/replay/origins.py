"""What the models of a recorded run are made of: each by a key, from the ledger."""

import dataclasses

from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall


@dataclasses.dataclass(frozen=True)  # no tuples: those of different kinds would be equal
class Model:
    """W' of a rank, published for a round; of the round before the first: the parameters at the start."""

    rank: int
    version: int


@dataclasses.dataclass(frozen=True)
class Total:
    """The sum of an ordinary round over a group, named by its first member; of a sync round the mean."""

    round: int
    first: int


@dataclasses.dataclass(frozen=True)
class Handed:
    """What a rank has handed to its n-th call of ``consensus``."""

    rank: int
    number: int


@dataclasses.dataclass(frozen=True)
class Consensus:
    """The mean of the n-th ``consensus``."""

    number: int


Key = Model | Total | Handed | Consensus


def stand_ins(rank: int, part: Segment) -> dict[int, Key]:
    """What took the place of models that were not finite: what the rank had published before.

    Args:
        rank: Whose.
        part: What it has recorded.

    Returns:
        By the position of the call among the rank's calls of ``average`` and ``consensus``.
    """
    found: dict[int, Key] = {}
    syncs = [(entry.end, entry.round) for entry in part.rounds if part.schedule.is_sync(entry.round)]
    version, number = part.start.first_round - 1, 0
    latest: Key = Model(rank, version)
    calls = (entry for entry in part.trainer if isinstance(entry, Call | ConsensusCall))
    for position, call in enumerate(calls):
        # also those that the rank's engine took part in while its trainer was in a meeting
        synced = max((t for end, t in syncs if end <= call.ready), default=version)
        if synced > version:
            version, latest = synced, Total(synced, 0)
        if call.nonfinite:
            found[position] = latest
        if isinstance(call, ConsensusCall):
            version, latest, number = call.version, Consensus(number), number + 1
        elif call.merge == "mean":
            version, latest = call.round, Total(call.round, 0)
        elif not call.nonfinite:
            version, latest = call.round, Model(rank, call.round)
    return found
