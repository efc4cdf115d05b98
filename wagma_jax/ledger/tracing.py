"""The run as a trace that https://ui.perfetto.dev opens: two threads of each rank on one timeline."""

from collections.abc import Iterator, Sequence
from typing import Any

from wagma_jax.ledger.alignment import align, quality
from wagma_jax.ledger.entries import Call, ConsensusCall, GlobalMean, Mixed, Swap
from wagma_jax.ledger.plain_text import alignment_text
from wagma_jax.ledger.segments import RankLedger, Segment

_Event = tuple[str, float, float, dict[str, Any]]  # name, begin, end, arguments


def trace(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger] | None = None) -> dict[str, Any]:
    """The run in the trace event format that ui.perfetto.dev opens: two threads of each rank, on one timeline.

    The trainer computes, publishes, waits (its exchange included) and merges; the engine exchanges. Arguments of the
    events say of which round, for whom, and how stale.

    Args:
        ledgers: From ``read``.
        aligned: From ``align``, if that is at hand.

    Returns:
        What goes into the file as JSON; times are whole microseconds.
    """
    aligned = align(ledgers) if aligned is None else aligned
    events: list[dict[str, Any]] = []
    for ledger in aligned:
        # no process or thread is 0, which viewers take for the idle process; nor do two threads share an identity
        process = ledger.rank + 1
        trainer, engine = process, process + len(aligned)
        host = ledger.segments[-1].start.host
        names = (("process_name", process, f"rank {ledger.rank} ({host})"),)
        names += (("thread_name", trainer, "trainer"), ("thread_name", engine, "engine"))
        events += [{"name": n, "ph": "M", "pid": process, "tid": t, "args": {"name": text}} for n, t, text in names]
        orders = (("process_sort_index", trainer, ledger.rank), ("thread_sort_index", trainer, 0))
        orders += (("thread_sort_index", engine, 1),)
        events += [{"name": n, "ph": "M", "pid": process, "tid": t, "args": {"sort_index": i}} for n, t, i in orders]
        for number, segment in enumerate(ledger.segments):
            if number:
                name = f"resumed at round {segment.start.first_round}"
                moment = round(1e6 * segment.start.time)
                events.append({"name": name, "ph": "i", "s": "p", "ts": moment, "pid": process, "tid": trainer})
            spans = [(trainer, *span) for span in _trainer_spans(segment)]
            spans += [(engine, *span) for span in _engine_spans(segment, ledger.rank)]
            for thread, name, begin, end, arguments in spans:
                # both ends are rounded, so that neighbours neither overlap nor leave a gap
                ts, duration = round(1e6 * begin), round(1e6 * end) - round(1e6 * begin)
                if duration:
                    event = {"name": name, "ph": "X", "ts": ts, "dur": duration, "pid": process, "tid": thread}
                    events.append(event | {"args": arguments})
    alignment = quality(ledgers, aligned)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "alignment": alignment_text(alignment),
            "error_seconds": max(alignment.error, alignment.contradiction),
        },
    }


def _trainer_spans(segment: Segment) -> Iterator[_Event]:
    left, name = segment.start.time, "starting"
    for entry in segment.trainer:
        if isinstance(entry, Call):
            waits = {f"rank {rank}": round(seconds, 6) for rank, seconds in sorted(entry.waits.items())}
            yield name, left, entry.enter, {"before round": entry.round}
            yield "publishing", entry.enter, entry.ready, {"round": entry.round}
            yield _wait_name(entry), entry.ready, entry.taken, {"round": entry.round, "seconds waited for": waits}
            merged = {"round": entry.round, "merge": entry.merge, "of round": entry.source, "base": entry.base}
            yield "merging", entry.taken, entry.leave, merged
        elif isinstance(entry, ConsensusCall):
            yield name, left, entry.enter, {"before": "consensus"}
            yield "consensus", entry.enter, entry.leave, {"newest round": entry.version}
        else:
            yield name, left, entry.enter, {"before": "meeting"}
            yield "meeting", entry.enter, entry.leave, {}
        left, name = entry.leave, "computing"


def _wait_name(call: Call) -> str:
    waited = sum(call.waits.values())
    if waited <= (call.taken - call.ready) / 2:
        return "waiting for the exchange"
    most = max(call.waits, key=lambda rank: call.waits[rank])
    return f"waiting for rank {most}" if call.waits[most] > waited / 2 else "waiting for several ranks"


def _engine_spans(segment: Segment, rank: int) -> Iterator[_Event]:
    for entry in segment.engine:
        if isinstance(entry, Mixed):
            yield "mixing", entry.begin, entry.end, {"round": entry.round}
        elif isinstance(entry, GlobalMean):
            yield "mean for consensus", entry.begin, entry.end, {"newest round": entry.version}
        elif isinstance(entry, Swap):
            name = f"asking rank {entry.partner}" if entry.asked else f"answering rank {entry.partner}"
            yield name, entry.begin, entry.end, {"round": entry.round, "swap": entry.number, "version": entry.version}
        elif segment.schedule.is_sync(entry.round):
            yield "sync", entry.begin, entry.end, {"round": entry.round}
        else:
            stale = {f"staleness of rank {member}": entry.staleness(member) for member in entry.group}
            name = "exchanging, late" if entry.staleness(rank) else "exchanging"
            yield name, entry.begin, entry.end, {"round": entry.round} | stale
