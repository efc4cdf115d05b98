"""What the calls of ``average()`` tell: how long workers waited, and how fast they were between syncs."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import wagma_jax as wagma


class Call(NamedTuple):
    """One local step and its call of ``average()``.

    Attributes:
        ended: When the call returned (seconds, on one clock for all ranks of a machine).
        is_sync: Whether it was a sync round.
        waited: Seconds that it waited.
        staleness: Of this worker's contribution, in rounds.
        with_late: Whether the late rank is in the group.
    """

    ended: float
    is_sync: bool
    waited: float
    staleness: int
    with_late: bool


def call_average(exchange: "wagma.GroupExchange", params: Any, late_rank: int | None = None) -> tuple[Any, Call]:
    """Calls ``average()``; returns the parameters and a record of the call."""
    params, info = exchange.average(params)
    call = Call(time.perf_counter(), info.is_sync, info.waited_seconds, info.staleness, late_rank in info.group)
    return params, call


def rates_between_syncs(calls: Sequence[Call]) -> list[float]:
    """Local steps per second in each whole sync period of one worker.

    The time is counted from the end of a sync round to the end of the last ordinary round before the next.
    """
    rates, last_sync = [], None
    for i, call in enumerate(calls):
        if not call.is_sync:
            continue
        if last_sync is not None and i - last_sync > 1:
            rates.append((i - 1 - last_sync) / (calls[i - 1].ended - calls[last_sync].ended))
        last_sync = i
    return rates


def waits(calls: Iterable[Call], until: float = math.inf, with_late: bool | None = None) -> list[float]:
    """Seconds waited in each ordinary round.

    Args:
        calls: Of any workers.
        until: Calls that returned later do not count.
        with_late: Count only groups with the late rank (True) or without it (False); None: all.
    """
    return [
        call.waited
        for call in calls
        if not call.is_sync and call.ended <= until and with_late in (None, call.with_late)
    ]
