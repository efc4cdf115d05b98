"""One timeline for all ranks, each of which has written times of its own, and how far it can be trusted."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wagma_jax.ledger.entries import shifted, span
from wagma_jax.ledger.segments import RankLedger, Segment
from wagma_jax.ledger.waits import with_sync_waits


def align(ledgers: Sequence[RankLedger]) -> list[RankLedger]:
    """The ledgers on one timeline, which starts at 0, and without the rounds that were done again.

    Offsets between the two measurements are interpolated. Segments follow each other without a gap: nobody knows how
    long the run was interrupted. The waits of sync rounds are those that follow from all ranks' arrivals.

    Args:
        ledgers: From ``read``.
    """
    kept = [ledger.kept() for ledger in ledgers]
    aligned: list[list[Segment]] = [[] for _ in ledgers]
    now = 0.0
    for parts in zip(*kept, strict=True):
        begin = min(_timeline(part)(part.start.time) for part in parts)
        parts = [_shifted(part, _timeline(part, now - begin)) for part in parts]
        parts = with_sync_waits(parts)
        for segments, part in zip(aligned, parts, strict=True):
            segments.append(part)
            now = max([now, part.start.time, *(span(entry)[1] for entry in part.entries)])
    return [RankLedger(ledger.rank, tuple(part)) for ledger, part in zip(ledgers, aligned, strict=True)]


def _timeline(segment: Segment, shift: float = 0.0) -> Callable[[float], float]:
    """Maps the rank's time to rank 0's, plus ``shift``."""
    start, end = segment.start, segment.offset
    drift = 0.0
    if end is not None and end.time > start.time:
        drift = (end.offset - start.offset) / (end.time - start.time)
    return lambda t: t + start.offset + drift * (t - start.time) + shift


def _shifted(segment: Segment, timeline: Callable[[float], float]) -> Segment:
    offset = segment.offset
    return dataclasses.replace(
        segment,
        start=shifted(segment.start, timeline)._replace(offset=0.0),
        entries=tuple(shifted(entry, timeline) for entry in segment.entries),
        offset=None if offset is None else shifted(offset, timeline)._replace(offset=0.0),
    )


class Alignment(NamedTuple):
    """How well the times of the ranks are aligned; all in seconds.

    Attributes:
        error: The bound on how far the times of any two ranks are apart, by the measurements.
        drift: The largest change of an offset in the run; it is interpolated.
        contradiction: By how much, at worst, an exchange ended on one rank before it began on another.
        measured_twice: Whether all offsets were measured at the end as well.
    """

    error: float
    drift: float
    contradiction: float
    measured_twice: bool


def quality(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger]) -> Alignment:
    """How well ``align`` has done.

    Args:
        ledgers: From ``read``.
        aligned: From ``align``.
    """
    error = drift = 0.0
    twice = True
    for parts in zip(*(ledger.segments for ledger in ledgers), strict=True):
        twice &= all(part.offset is not None for part in parts)
        measured = [[m for m in (part.start, part.offset) if m is not None] for part in parts]
        error = max(error, sum(sorted(max(m.error for m in of_rank) for of_rank in measured)[-2:]))
        drift = max(drift, *(abs(of_rank[-1].offset - of_rank[0].offset) for of_rank in measured))
    spans: dict[tuple[int, int, int], tuple[float, float]] = {}  # latest begin, earliest end of each exchange
    for ledger in aligned:
        for i, segment in enumerate(ledger.segments):
            for entry in segment.rounds:
                key = i, entry.round, entry.group[0]
                begin, end = spans.get(key, (-math.inf, math.inf))
                spans[key] = max(begin, entry.begin), min(end, entry.end)
    contradiction = max((begin - end for begin, end in spans.values()), default=0.0)
    return Alignment(error, drift, max(contradiction, 0.0), twice)
