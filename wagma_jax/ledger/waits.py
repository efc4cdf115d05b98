"""Who waited for whom at sync rounds: from all ranks' arrivals on one timeline.

At an ordinary round an engine knows for whom it waits, and the ledger says so. At a sync round it knows only its
neighbours in a tree of all ranks, and that somebody is missing behind them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wagma_jax.ledger.entries import Call, ConsensusCall
from wagma_jax.ledger.segments import Segment


def with_sync_waits(parts: Sequence[Segment]) -> list[Segment]:
    """The segments, with the waits of sync rounds as they follow from the arrivals of all ranks.

    Args:
        parts: The same segment of each rank, on one timeline.
    """
    is_sync = parts[0].schedule.is_sync
    calls = [{call.round: call for call in part.calls if is_sync(call.round)} for part in parts]
    resolved: list[dict[int, dict[int, float]]] = [{} for _ in parts]
    for k in sorted(set().union(*calls)):
        here = [of_rank.get(k) for of_rank in calls]
        taken = [-math.inf if call is None else call.taken for call in here]
        done = max(taken)
        ready = [
            _rests_since(part, k, done) if call is None else call.ready for call, part in zip(here, parts, strict=True)
        ]
        waits = sync_waits(np.array(ready), np.array(taken))
        for rank, call in enumerate(here):
            if call is not None:
                resolved[rank][k] = {int(other): float(waits[rank, other]) for other in np.flatnonzero(waits[rank])}
    return [_replaced(part, waits) for part, waits in zip(parts, resolved, strict=True)]


def _replaced(part: Segment, waits: dict[int, dict[int, float]]) -> Segment:
    entries = (
        entry._replace(waits=waits[entry.round]) if isinstance(entry, Call) and entry.round in waits else entry
        for entry in part.entries
    )
    return dataclasses.replace(part, entries=tuple(entries))


def _rests_since(part: Segment, k: int, done: float) -> float:
    """When a rank that made no call for sync round k counts as arrived there.

    A trainer inside ``consensus`` or ``meet`` rests: its engine takes part in its stead.

    Args:
        part: Of the rank.
        k: The sync round.
        done: When it was over on all ranks.

    Returns:
        When the rank began to rest, for the last time before ``done``; ``-inf`` where the ledger does not say: it has
        closed.
    """
    since = -math.inf
    for entry in part.trainer:
        if isinstance(entry, Call):
            if entry.round > k:
                break
            since = -math.inf
        else:
            begin = entry.ready if isinstance(entry, ConsensusCall) else entry.enter
            since = begin if begin <= done else since
    return since


def sync_waits(ready: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Who waited for whom at a round for which all wait for all.

    Between two arrivals, the time of each rank that waits is shared evenly among those that have not arrived yet.

    Args:
        ready: [num_workers] When each rank arrived, on one timeline; ``-inf`` if it rested.
        taken: [num_workers] When it went on; ``-inf`` if it did not wait at all.

    Returns:
        [num_workers, num_workers] Seconds; rows wait for columns.
    """
    order = np.argsort(ready, kind="stable")
    waits = np.zeros((len(ready), len(ready)))
    for i in range(1, len(order)):
        waiting, missing = order[:i], order[i:]
        waiting = waiting[np.isfinite(taken[waiting])]
        if waiting.size:
            # offsets are known only to within their error: nobody waits for longer than it says itself
            until = np.minimum(ready[order[i]], taken[waiting])
            seconds = np.maximum(until - ready[order[i - 1]], 0.0)
            waits[np.ix_(waiting, missing)] += seconds[:, None] / missing.size
    return waits
