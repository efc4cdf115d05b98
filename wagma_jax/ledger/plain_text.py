"""The summary as plain text for people."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from wagma_jax.ledger.alignment import Alignment
from wagma_jax.ledger.summary import SLOW, Summary, age_bins, median_of_others

_MOST_ROWS = 16  # of a matrix


def text(summary: Summary) -> str:
    """The summary as plain text for people."""
    parts = [
        _headline(summary),
        _waits_text(summary),
        _swaps_text(summary) if summary.start.method == "pairs" else _staleness_text(summary),
        _ranks_text(summary),
        _slow_text(summary),
    ]
    return "\n\n".join(parts)


def _headline(summary: Summary) -> str:
    start = summary.start
    hosts = len({own.host for own in summary.ranks})
    limit = start.options.get("quorum_seconds")
    patience = "" if limit is None else f" within {_milliseconds(float(limit))}"
    lines = [
        f"{title(summary)} on {_count(hosts, 'machine')}; clock={start.clock}, quorum={start.quorum}{patience}",
        alignment_text(summary.alignment),
    ]
    if summary.resumed:
        lines.append(
            f"Resumed at round {', '.join(map(str, summary.resumed))}: rounds that were done again count once; the "
            "time in between does not count."
        )
    if summary.incomplete:
        lines.append(
            f"Not ended: {_ranks(summary.incomplete)}. The run has failed, or is still going on; what it has written "
            "so far counts."
        )
    if summary.nonfinite:
        counts = ", ".join(f"rank {rank} {count}" for rank, count in summary.nonfinite)
        lines.append(f"Models that were not finite, with earlier ones in their places: {counts}.")
    if summary.lost:
        lines.append(f"Incomplete: {_count(summary.lost, 'line')} of rounds missing, which do not count.")
    return "\n".join(lines)


def title(summary: Summary) -> str:
    """A line that says what was run."""
    start = summary.start
    if start.method == "pairs":
        return (
            f"{_count(start.num_workers, 'rank')} in pairs ({start.options['graph']} graph): "
            f"{_count(int(summary.swaps.sum()), 'swap')} in {summary.seconds:,.1f} s"
        )
    sync = "no sync rounds" if start.sync_period is None else f"a sync every {start.sync_period} rounds"
    groups = f"gossip among {start.group_size}" if start.method == "gossip" else f"groups of {start.group_size}"
    groups += ", weighted by steps" if start.options.get("weighting") == "steps" else ""
    groups += ", late workers add their steps" if start.options.get("late_merge") == "add" else ""
    return (
        f"{_count(start.num_workers, 'rank')}, {groups}, {sync}: {_count(summary.rounds, 'round')} "
        f"({_count(summary.syncs, 'sync')}) in {summary.seconds:,.1f} s"
    )


def alignment_text(alignment: Alignment) -> str:
    """A line that says how well the times of the ranks are aligned."""
    error, drift, contradiction, twice = alignment
    line = f"Times of the ranks: aligned to within {_milliseconds(max(error, contradiction))}"
    if contradiction > error:
        line += (
            f" at best: measured to within {_milliseconds(error)}, but some exchange ends on one rank "
            f"{_milliseconds(contradiction)} before it begins on another"
        )
    if not twice:
        return line + "; measured at the start only, so later times may be off by more."
    return line + f"; measured at the start and at the end, drift of up to {_milliseconds(drift)} taken out."


def _waits_text(summary: Summary) -> str:
    waits, num_workers = summary.waits, len(summary.ranks)
    total = waits.sum()
    if not total:
        return "Who waited for whom: nobody waited."
    if num_workers > _MOST_ROWS:
        order = np.argsort(waits, axis=None)[::-1][:_MOST_ROWS]
        pairs = [divmod(int(i), num_workers) for i in order]
        rows = [
            [f"rank {a} for rank {b}", f"{waits[a, b]:,.3f}", f"{waits[a, b] / total:.1%}"]
            for a, b in pairs
            if waits[a, b]
        ]
        heading = (
            f"Who waited for whom, in seconds: the longest of {num_workers * (num_workers - 1):,} pairs, of "
            f"{total:,.3f} s in all"
        )
        return _table(heading, ["", "seconds", "share"], rows)
    digits = 1 if total >= 1000 else 3

    def seconds(value):
        return f"{value:,.{digits}f}" if value else "-"

    rows = [
        [f"rank {i}", *("" if i == j else seconds(value) for j, value in enumerate(row)), seconds(row.sum())]
        for i, row in enumerate(waits)
    ]
    rows.append(["caused", *map(seconds, waits.sum(0)), seconds(total)])
    return _table(
        "Who waited for whom, in seconds: the rank of a row waited for the rank of a column",
        ["", *(f"for {j}" for j in range(num_workers)), "waited"],
        rows,
    )


def _swaps_text(summary: Summary) -> str:
    """Who averaged with whom, and how long a swap took."""
    counts = summary.swaps
    if not counts.any():
        return "Who asked whom to average: nobody."
    median, longest = (_milliseconds(float(f(summary.swap_seconds))) for f in (np.median, np.max))
    heading = f"Who asked whom to average, how often: a swap took {median} (median), {longest} at most"
    calls = [own.calls for own in summary.ranks]
    if len(calls) > _MOST_ROWS:
        order = np.argsort(counts, axis=None)[::-1][:_MOST_ROWS]
        pairs = [divmod(int(i), len(calls)) for i in order]
        return _table(heading, ["", "swaps"], [[f"rank {a} asked rank {b}", f"{counts[a, b]:,}"] for a, b in pairs])
    rows = []
    for i, row in enumerate(counts):
        share = f"{row.sum() / calls[i]:.0%}" if row.any() and calls[i] else "-"
        rows.append([f"rank {i}", *(f"{n:,}" if n else "-" for n in row), share])
    return _table(heading, ["", *(f"rank {j}" for j in range(len(calls))), "of its steps"], rows)


def _staleness_text(summary: Summary) -> str:
    counts = summary.staleness
    total = counts.sum()
    if not total:
        return "How stale contributions were: there were no ordinary rounds."
    shown = len(summary.ranks) <= _MOST_ROWS
    rows = []
    for low, high in age_bins(counts.shape[1]):
        of_rank = counts[:, low:high].sum(1)
        share = of_rank.sum() / total
        name = {0: "on time", 1: "1 round"}.get(low, f"{low} rounds" if high == low + 1 else f"{low}-{high - 1} rounds")
        bar = "#" * (round(40 * share) or bool(share))
        rows.append([name, *([f"{n:,}" for n in of_rank] if shown else []), f"{of_rank.sum():,}", f"{share:.1%}", bar])
    return _table(
        "How stale contributions to ordinary rounds were: how many, by the age of the model",
        ["", *([f"rank {own.rank}" for own in summary.ranks] if shown else []), "all", "share", ""],
        rows,
        left=-1,
    )


def _ranks_text(summary: Summary) -> str:
    hosts = len({own.host for own in summary.ranks}) > 1
    rows = []
    for own in summary.ranks:
        times = [f"{1000 * seconds:,.2f}" for seconds in (own.median, own.mean, own.longest)]
        spent = [f"{seconds:,.2f}" for seconds in (own.waited, own.caused, own.exchanging, own.copying, own.resting)]
        late = "-" if math.isnan(own.late_fraction) else f"{own.late_fraction:.1%}"
        name = f"{own.rank} {own.host}" if hosts else f"{own.rank}"
        rows.append([name, f"{own.calls:,}", *(t.replace("nan", "-") for t in times), late, *spent])
    return _table(
        "Ranks: computation from one call to the next, in milliseconds; late contributions; seconds in all",
        ["rank", "calls", "median", "mean", "longest", "late", "waited", "caused", "exchanging", "copying", "resting"],
        rows,
    )


def _slow_text(summary: Summary) -> str:
    lines = ["Which ranks are slow"]
    for rank in summary.slow:
        own, others = summary.ranks[rank].median, median_of_others(summary.ranks, rank)
        lines.append(
            f"  rank {rank} computes for {1000 * own:,.1f} ms a step (median), {own / others:,.1f} times as long as "
            f"the others ({1000 * others:,.1f} ms)."
        )
    for own in summary.ranks:
        if own.mean > SLOW * own.median:
            lines.append(
                f"  rank {own.rank} is slow at times: its steps take {1000 * own.mean:,.1f} ms on average but "
                f"{1000 * own.median:,.1f} ms at the median."
            )
    if summary.waited_for is not None:
        share = summary.ranks[summary.waited_for].caused / summary.waits.sum()
        line = f"  rank {summary.waited_for} was waited for most, in {share:.0%} of the time waited."
        if summary.waited_for not in summary.slow:
            line += " That alone does not make it slow: it may have been held up itself, which the trace shows."
        lines.append(line)
    if len(lines) == 1:
        lines.append(
            f"  none stands out: no median of a step is {SLOW} times that of the others, and no rank caused most of "
            "the waiting."
        )
    return "\n".join(lines)


def _table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 0) -> str:
    """Columns aligned to the right, but for the first and ``left``."""
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    kept = {0, left % len(columns)}

    def line(words):
        cells = [w.ljust(n) if i in kept else w.rjust(n) for i, (w, n) in enumerate(zip(words, widths, strict=True))]
        return ("  " + "  ".join(cells)).rstrip()

    return "\n".join([heading, *map(line, lines)])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.995 else f"{1000 * seconds:,.0f} ms"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
