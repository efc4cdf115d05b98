"""How fast workers could be if communication took no time: their waiting rules in virtual time, on given step times.

Pure: no processes, no clocks.
"""

import enum
import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Event(enum.Enum):
    """What others are waited for to have done."""

    ARRIVED = enum.auto()
    """Their step of this round."""
    BEGUN = enum.auto()
    """Their round before this one, whatever they waited for in it."""
    ARRIVED_BEFORE = enum.auto()
    """Their step of the round before this one."""


class Wait(NamedTuple):
    """What a worker waits for in a round once it has arrived.

    Attributes:
        members: Workers, itself among them.
        number: It goes on as soon as so many of them have come so far.
        event: How far.
        seconds: It goes on without them so long after the first has come; None: it does not.
    """

    members: tuple[int, ...]
    number: int
    event: Event = Event.ARRIVED
    seconds: float | None = None


Rule = Callable[[int, int], Sequence[Wait]]
"""Maps a worker and a round to what the worker waits for: for all of it; () for nobody."""


def free(times: np.ndarray) -> float:
    """Steps per second of all workers together if none ever waits.

    Args:
        times: float64 [steps, num_workers]: seconds of each step of each worker.
    """
    return float((len(times) / times.sum(0)).sum())


def elapsed(times: np.ndarray, rule: Rule) -> float:
    """Seconds until all workers have done all rounds, a step in each.

    Args:
        times: As :func:`free` takes them, a row per round.
        rule: Who waits for whom.
    """
    now = np.zeros(times.shape[1])
    at = dict.fromkeys(Event, now)
    for round_, row in enumerate(times):
        at = {Event.ARRIVED: now + row, Event.BEGUN: now, Event.ARRIVED_BEFORE: at[Event.ARRIVED]}
        now = at[Event.ARRIVED].copy()
        for worker in range(len(now)):
            for wait in rule(worker, round_):
                others = np.sort(at[wait.event][list(wait.members)])
                come = others[wait.number - 1]
                limit = come if wait.seconds is None else others[0] + wait.seconds
                now[worker] = max(now[worker], min(come, limit))
    return float(now.max())


class Elapsed(NamedTuple):
    """How a run went in virtual time.

    Attributes:
        seconds: How long it took.
        steps: Of all workers together.
    """

    seconds: float
    steps: int


def elapsed_by_round_clock(times: np.ndarray, sync_period: int, steps: int) -> Elapsed:
    """A run in which workers that find newer rounds complete jump to them, and all wait for all at sync rounds.

    Nobody waits in other rounds. Whoever ends a step while others wait at a sync round goes there at once. The run ends
    at the first sync round at which enough steps are done.

    Args:
        times: As :func:`free` takes them; after its last step a worker begins again with the first.
        sync_period: Rounds from one sync round to the next.
        steps: How many all workers together have to do.
    """
    num_workers = times.shape[1]
    taken = np.zeros(num_workers, int)
    now = 0.0
    while taken.sum() < steps:
        ends = [(now + times[taken[w] % len(times), w], w) for w in range(num_workers)]
        heapq.heapify(ends)
        own, newest = [0] * num_workers, 0  # rounds done since the last sync, and the most of them
        here = 0
        while here < num_workers:
            now, worker = heapq.heappop(ends)
            taken[worker] += 1
            own[worker] = newest = max(own[worker] + 1, newest)
            if newest == sync_period:
                here += 1
            else:
                heapq.heappush(ends, (now + times[taken[worker] % len(times), worker], worker))
    return Elapsed(now, int(taken.sum()))
