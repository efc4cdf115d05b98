"""A run in numbers: who waited for whom, how stale contributions were, and which ranks are slow."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wagma_jax.ledger.alignment import Alignment, align, quality
from wagma_jax.ledger.entries import Call, ConsensusCall, Start, span
from wagma_jax.ledger.segments import RankLedger

SLOW = 1.5  # times what the other ranks take


class RankSummary(NamedTuple):
    """One rank; times are seconds.

    Attributes:
        rank: Which.
        host: Its machine.
        calls: How often it called ``average``.
        mean: Computation from one call to the next; NaN where no call followed another.
        median: The same.
        longest: The same.
        late_fraction: How many of the ordinary rounds took an older model of it; NaN if there were none.
        waited: How long it waited for others in ``average``.
        caused: How long others waited for it.
        exchanging: The rest of the time for which it was held up in ``average``: exchanges, and messages.
        copying: The rest of the time in ``average``: publishing and merging.
        resting: Time in ``consensus`` and ``meet``.
    """

    rank: int
    host: str
    calls: int
    mean: float
    median: float
    longest: float
    late_fraction: float
    waited: float
    caused: float
    exchanging: float
    copying: float
    resting: float


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """What a run's ledgers say.

    Attributes:
        start: The settings: the newest start of rank 0.
        first_round: The first round that the ledgers know.
        rounds: The number of different rounds that were done.
        syncs: How many of them were sync rounds.
        swaps: [num_workers, num_workers] How often the rank of a row asked that of a column to average with it, where
            workers average in pairs.
        swap_seconds: How long each of these swaps took, from the question until the rank had averaged.
        lost: Entries of rounds that a rank should have and has not.
        seconds: From the start to the last entry, without interruptions.
        waits: [num_workers, num_workers] Seconds; rows waited for columns.
        staleness: [num_workers, highest + 1] How many contributions to ordinary rounds had which staleness.
        ranks: The ranks.
        slow: Ranks whose median computation is ``SLOW`` times that of the others.
        waited_for: The rank that caused most of the waiting, or None.
        alignment: Of the ranks' times.
        resumed: The rounds from which the run went on after interruptions.
        incomplete: Ranks that came to no regular end.
        nonfinite: (rank, how many of its models were not finite and were skipped) of ranks that had such.
    """

    start: Start
    first_round: int
    rounds: int
    syncs: int
    swaps: np.ndarray
    swap_seconds: np.ndarray
    lost: int
    seconds: float
    waits: np.ndarray
    staleness: np.ndarray
    ranks: tuple[RankSummary, ...]
    slow: tuple[int, ...]
    waited_for: int | None
    alignment: Alignment
    resumed: tuple[int, ...]
    incomplete: tuple[int, ...]
    nonfinite: tuple[tuple[int, int], ...]


def summarize(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger] | None = None) -> Summary:
    """The numbers of a run.

    Args:
        ledgers: From ``read``.
        aligned: From ``align``, if that is at hand.
    """
    aligned = align(ledgers) if aligned is None else aligned
    num_workers = len(aligned)
    waits = np.zeros((num_workers, num_workers))
    ages: list[collections.Counter[int]] = [collections.Counter() for _ in aligned]
    for ledger in aligned:
        for segment in ledger.segments:
            for call in segment.calls:
                for other, seconds in call.waits.items():
                    waits[ledger.rank, other] += seconds
            ages[ledger.rank].update(
                entry.staleness(ledger.rank) for entry in segment.rounds if not segment.schedule.is_sync(entry.round)
            )
            ages[ledger.rank][0] += len(segment.mixed)  # all wait for all they mix with
    swaps, seconds = _swaps(aligned)
    highest = max((age for counts in ages for age in counts), default=0)
    ranks = tuple(_rank_summary(ledger, ages[ledger.rank], waits) for ledger in aligned)
    known = [{entry.round for part in ledger.segments for entry in (*part.rounds, *part.mixed)} for ledger in aligned]
    rounds = set[int]().union(*known)
    is_sync = aligned[0].segments[-1].schedule.is_sync
    ends = [span(entry)[1] for ledger in aligned for part in ledger.segments for entry in part.entries]
    return Summary(
        start=ledgers[0].segments[-1].start,
        first_round=min(part.start.first_round for part in ledgers[0].segments),
        rounds=len(rounds),
        syncs=sum(map(is_sync, rounds)),
        swaps=swaps,
        swap_seconds=np.array(seconds),
        lost=sum(len([t for t in rounds - own if t < max(own, default=-1)]) for own in known),
        seconds=max(ends, default=0.0),
        waits=waits,
        staleness=np.array([[counts[age] for age in range(highest + 1)] for counts in ages]),
        ranks=ranks,
        slow=_slow(ranks),
        waited_for=_waited_for(ranks),
        alignment=quality(ledgers, aligned),
        resumed=tuple(segment.start.first_round for segment in ledgers[0].segments[1:]),
        incomplete=tuple(ledger.rank for ledger in ledgers if not ledger.segments[-1].ended),
        nonfinite=tuple((ledger.rank, count) for ledger in ledgers if (count := _nonfinite(ledger))),
    )


def _swaps(aligned: Sequence[RankLedger]) -> tuple[np.ndarray, list[float]]:
    """How often each rank asked each other one, and how long it took."""
    counts, seconds = np.zeros((len(aligned), len(aligned)), int), []
    for ledger in aligned:
        for swap in (swap for segment in ledger.segments for swap in segment.swaps if swap.asked):
            counts[ledger.rank, swap.partner] += 1
            seconds.append(swap.end - swap.begin)
    return counts, seconds


def _nonfinite(ledger: RankLedger) -> int:
    """How many models of a rank were not finite."""
    entries = (entry for segment in ledger.segments for entry in segment.trainer)
    return sum(isinstance(entry, Call | ConsensusCall) and entry.nonfinite for entry in entries)


def _rank_summary(ledger: RankLedger, ages: collections.Counter[int], waits: np.ndarray) -> RankSummary:
    steps, calls, held, copying, resting = [], 0, 0.0, 0.0, 0.0
    for segment in ledger.segments:
        for before, after in zip((None, *segment.trainer), segment.trainer, strict=False):
            if not isinstance(after, Call):
                resting += after.leave - after.enter
                continue
            calls += 1
            held += after.taken - after.ready
            copying += after.ready - after.enter + after.leave - after.taken
            if isinstance(before, Call):  # after a start or a rest there is more than a step: evaluation, say
                steps.append(after.enter - before.leave)
    waited = float(waits[ledger.rank].sum())
    number = sum(ages.values())
    return RankSummary(
        rank=ledger.rank,
        host=ledger.segments[-1].start.host,
        calls=calls,
        mean=float(np.mean(steps)) if steps else math.nan,
        median=float(np.median(steps)) if steps else math.nan,
        longest=max(steps, default=math.nan),
        late_fraction=(number - ages[0]) / number if number else math.nan,
        waited=waited,
        caused=float(waits[:, ledger.rank].sum()),
        exchanging=max(held - waited, 0.0),
        copying=copying,
        resting=resting,
    )


def _slow(ranks: Sequence[RankSummary]) -> tuple[int, ...]:
    return tuple(own.rank for own in ranks if own.median > SLOW * median_of_others(ranks, own.rank))


def median_of_others(ranks: Sequence[RankSummary], rank: int) -> float:
    """The median computation of all other ranks, seconds; NaN if none is known."""
    others = [other.median for other in ranks if other.rank != rank and not math.isnan(other.median)]
    return float(np.median(others)) if others else math.nan


def _waited_for(ranks: Sequence[RankSummary]) -> int | None:
    """The rank that caused most of the waiting, where that is more than chance and more than nothing."""
    total = sum(own.waited for own in ranks)
    whole = total + sum(own.exchanging + own.copying for own in ranks if own.calls > 1)
    whole += sum(own.calls * own.mean for own in ranks if own.calls > 1 and not math.isnan(own.mean))
    worst = max(ranks, key=lambda own: own.caused)
    share = max(0.5, SLOW / len(ranks))  # of two ranks one always causes half or more
    return worst.rank if total > 0.01 * whole and worst.caused > share * total else None


def age_bins(number: int) -> list[tuple[int, int]]:
    """Ranges (first, last + 1) of staleness for a histogram: one for each below 8, then for each power of two.

    Args:
        number: The highest staleness + 1.
    """
    edges = [*range(min(number, 8)), *(1 << i for i in range(3, number.bit_length() + 1) if 1 << i < number), number]
    return list(itertools.pairwise(edges))
