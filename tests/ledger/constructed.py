"""Ledgers of runs that never took place, with times and versions that can be worked out by hand."""

import json

import numpy as np

from wagma_jax.ledger.codec import encode
from wagma_jax.ledger.entries import Call, ConsensusCall, End, Meet, Offset, Round, Start
from wagma_jax.schedule import GroupSchedule

END = End()


def start(rank=0, **settings):
    defaults = Start(
        rank, num_workers=2, group_size=2, sync_period=None, rotate=True, quorum=1, clock="step",
        on_nonfinite="share", first_round=0, host="a", time=0.0, offset=0.0, error=0.0,
    )  # fmt: skip
    return defaults._replace(**settings)


def exchange(t, group, contributed, begin, end):
    return Round(t, tuple(group), tuple(contributed), begin, end)


def call(t, enter, ready, taken, leave, waits=None, merge="sum", source=None):
    source = t if source is None and merge != "own" else source
    return Call(t, enter, ready, taken, leave, merge, source, t, waits or {})


def consensus(enter, ready, taken, leave, version):
    return ConsensusCall(enter, ready, taken, leave, version)


def meet(enter, leave):
    return Meet(enter, leave)


def offset(time, seconds=0.0, error=0.0):
    return Offset(time, seconds, error)


# what each of two ranks writes in one round that both do on time
ONE = [start(0), exchange(0, [0, 1], [0, 0], 1.0, 1.1), call(0, 1.0, 1.0, 1.1, 1.1), offset(2.0), END]
OTHER = [start(1), *ONE[1:]]


def write(folder, *ranks):
    """Writes what each rank has: entries; dicts and strings for lines that no writer would write."""
    folder.mkdir(exist_ok=True)
    for rank, entries in enumerate(ranks):
        lines = [entry if isinstance(entry, str) else json.dumps(line(entry)) for entry in entries]
        (folder / f"ledger-{rank}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def line(entry):
    return entry if isinstance(entry, dict) else encode(entry)


TIMES = ("time", "begin", "end", "enter", "ready", "taken", "leave")


def moved(entry, function):
    """The entry with all its times changed; not by the library, which is tested with it."""
    return entry._replace(**{name: function(getattr(entry, name)) for name in TIMES if name in entry._fields})


def in_own_time(entries, seconds, drift, error):
    """The entries as a rank writes them whose time is ``t * (1 + drift) - seconds`` at t of rank 0's."""

    def own(t):
        return t * (1 + drift) - seconds

    for entry in entries:
        ours = moved(entry, own)
        yield ours._replace(offset=entry.time - ours.time, error=error) if isinstance(entry, Start | Offset) else ours


def simulate(computation, group_size=2, sync_period=10, first_round=0, exchange_seconds=0.002, **settings):
    """What each rank would write, on one timeline: a round begins with its first arrival anywhere.

    Args:
        computation: [num_workers, rounds] Seconds of each step.
    """
    num_workers, rounds = computation.shape
    schedule = GroupSchedule(num_workers, group_size, sync_period)
    settings |= {"group_size": group_size, "sync_period": sync_period, "first_round": first_round}
    entries = [[start(rank, num_workers=num_workers, **settings)] for rank in range(num_workers)]
    free, left = np.zeros(num_workers), np.full(num_workers, 0.5)
    published = [[(-np.inf, first_round - 1)] for _ in range(num_workers)]
    for i in range(rounds):
        t = first_round + i
        enter = left + computation[:, i]
        ready = enter + 1e-4
        for rank in range(num_workers):
            published[rank].append((ready[rank], t))
        is_sync = schedule.is_sync(t)
        for group in (tuple(range(num_workers)),) if is_sync else schedule.groups(t):
            members = list(group)
            begin = max(ready.max() if is_sync else ready.min(), free[members].max()) + 1e-5
            end = begin + exchange_seconds
            versions = [max(v for when, v in published[rank] if when <= begin) for rank in group]
            for rank in group:
                entries[rank].append(exchange(t, group, versions, begin, end))
            free[members] = end
            if is_sync:
                for rank in group:
                    published[rank] = [(end, t)]
        taken = np.maximum(ready, free)
        left = taken + 2e-4
        for rank in range(num_workers):
            go = {0: taken[rank] - exchange_seconds - ready[rank]} if is_sync and rank else {}
            merge = "mean" if is_sync else "sum"
            entries[rank].append(call(t, enter[rank], ready[rank], taken[rank], left[rank], go, merge))
        published = [of_rank[-20:] for of_rank in published]
    for of_rank in entries:
        of_rank += [offset(left.max() + 0.1), END]
    return entries
