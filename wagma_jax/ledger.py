"""Reads what the ranks of a run wrote down: who waited for whom, how stale contributions were, which ranks are slow.

Each rank writes one file of JSON lines, ``ledger-RANK.jsonl``, by a clock of its own (``exchange.ledger`` says how). A
run that was resumed goes on in the same files with a new *segment*, which does some rounds again: those of the
segments before it no longer count. Here: reading (``read``), one clock for all ranks (``align``), numbers
(``summarize``), and three views of them: ``text``, ``plot`` (needs matplotlib) and ``trace`` (for ui.perfetto.dev).

Neither JAX nor MPI: ledgers can be read on any machine.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from wagma_jax.schedule import GroupSchedule

VERSION = 1
SLOW = 1.5  # times what the other ranks take
MOST_COLUMNS = 900  # of a picture, in rounds or bins of rounds
MOST_ROWS = 16  # of a matrix in text
MOST_MARKS = 400  # of sync rounds, above a picture
MATPLOTLIB = (
    "the picture needs matplotlib, which the extra 'train' brings: run make setup in the project, or "
    "pip install 'wagma_jax[train]'"
)


def report(ledgers: "Sequence[RankLedger]", out: Path | str) -> None:
    """Prints what the ledgers of a run say, and writes ``trace.json`` and ``ledger.png``: ``wagma ledger``.

    Args:
        ledgers: From ``read``.
        out: Where the files go.

    Raises:
        OSError: A file cannot be written.
        ModuleNotFoundError: As ``plot``; all but the picture is there then.
    """
    out = Path(out)
    aligned = align(ledgers)
    print(text(summarize(ledgers, aligned)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "trace.json").write_text(json.dumps(trace(ledgers, aligned), separators=(",", ":")))
    print(f"\nThe run by time: {out / 'trace.json'}, which https://ui.perfetto.dev opens")
    plot(ledgers, out / "ledger.png", aligned)
    print(f"The run by rank and round: {out / 'ledger.png'}")


# what the files hold


class Start(NamedTuple):
    """The beginning of a segment.

    Attributes:
        rank: Whose file it is.
        num_workers: P.
        group_size: S.
        sync_period: tau, or None.
        rotate: Whether groups change.
        quorum: How many arrivals start an exchange.
        clock: What a call counts: "step" or "round".
        first_round: Where the segment begins; its parameters have the version ``first_round - 1``.
        host: The machine's name.
        time: When the offset was measured, seconds.
        offset: What was added to this rank's clock to get rank 0's, seconds.
        error: The bound on the offset's error, seconds.
    """

    rank: int
    num_workers: int
    group_size: int
    sync_period: int | None
    rotate: bool
    quorum: int
    clock: Literal["step", "round"]
    first_round: int
    host: str
    time: float
    offset: float
    error: float


class Round(NamedTuple):
    """An exchange that the engine took part in.

    Attributes:
        round: Of which round.
        group: Its ranks.
        contributed: The version of each one's contribution.
        begin: Seconds.
        end: Seconds.
    """

    round: int
    group: tuple[int, ...]
    contributed: tuple[int, ...]
    begin: float
    end: float


class Mean(NamedTuple):
    """The engine's exchange of a ``consensus``; ``version`` is what is published by it."""

    version: int
    begin: float
    end: float


class Call(NamedTuple):
    """A call of ``average`` by the trainer; times are seconds.

    Attributes:
        round: The round that it arrived at.
        enter: When it was called.
        ready: When the model was published: the arrival.
        taken: When a result was there, exchange included.
        leave: When it returned.
        merge: What the result was made by.
        source: The round of the sum that was merged, or None.
        base: The newest round that the result contains.
        waits: Seconds waited between ready and taken, by the rank that was waited for.
    """

    round: int
    enter: float
    ready: float
    taken: float
    leave: float
    merge: Literal["own", "sum", "late", "mean"]
    source: int | None
    base: int
    waits: dict[int, float]


class Consensus(NamedTuple):
    """A call of ``consensus`` by the trainer; times as for Call. ``version``: the newest round that it contains."""

    enter: float
    ready: float
    taken: float
    leave: float
    version: int


class Clock(NamedTuple):
    """A second measurement of the clock's offset, as in Start."""

    time: float
    offset: float
    error: float


Record = Round | Mean | Call | Consensus


@dataclasses.dataclass(frozen=True)
class Segment:
    """What one rank wrote from one start to the next.

    Attributes:
        start: The first line.
        records: The engine's entries in the engine's order, and the trainer's in the trainer's, as in the file.
        clock: The second measurement of the clock, None in a run that failed or is still going on.
        ended: Whether the rank came to a regular end.
    """

    start: Start
    records: tuple[Record, ...]
    clock: Clock | None = None
    ended: bool = False

    @functools.cached_property
    def schedule(self) -> GroupSchedule:
        """Who averages with whom."""
        start = self.start
        return GroupSchedule(start.num_workers, start.group_size, start.sync_period, start.rotate)

    @functools.cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The exchanges of rounds."""
        return tuple(record for record in self.records if isinstance(record, Round))

    @functools.cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls of ``average``."""
        return tuple(record for record in self.records if isinstance(record, Call))

    @functools.cached_property
    def trainer(self) -> tuple[Call | Consensus, ...]:
        """All that the trainer called."""
        return tuple(record for record in self.records if isinstance(record, Call | Consensus))


@dataclasses.dataclass(frozen=True)
class RankLedger:
    """What one rank wrote; several segments if the run was resumed."""

    rank: int
    segments: tuple[Segment, ...]

    def kept(self) -> tuple[Segment, ...]:
        """The segments without what later ones did again."""
        result = []
        end = math.inf
        for segment in reversed(self.segments):
            records = tuple(record for record in segment.records if _newest(record) < end)
            result.append(dataclasses.replace(segment, records=records))
            end = min(end, segment.start.first_round)
        return tuple(reversed(result))


def _newest(record: Record) -> int:
    return record.round if isinstance(record, Round | Call) else record.version


# reading


def read(folder: Path | str) -> list[RankLedger]:
    """Reads the ledgers of all ranks.

    Args:
        folder: Where a run has written ``ledger-RANK.jsonl``.

    Returns:
        One ledger for each rank, in their order.

    Raises:
        ValueError: There are none, a rank's is missing, a file is damaged (a last line that was cut off is not), or the
            files come from different runs.
    """
    folder = Path(folder)
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob("ledger-*.jsonl")):
        if match := re.fullmatch(r"ledger-(\d+)\.jsonl", path.name):
            rank = int(match[1])
            if rank in paths:
                raise ValueError(
                    f"expected one ledger of each rank in {folder}, got {paths[rank].name} and {path.name}: "
                    "remove the one of another run"
                )
            paths[rank] = path
    if not paths:
        raise ValueError(
            f"expected files ledger-RANK.jsonl in {folder}, got none: pass the folder that a run wrote its ledger to"
        )
    ledgers = [_read_file(paths[rank], rank) for rank in sorted(paths)]
    _check_ranks(folder, ledgers)
    _check_settings(ledgers)
    _check_contributions(ledgers)
    return ledgers


def _read_file(path: Path, rank: int) -> RankLedger:
    lines = path.read_text(errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    entries = [(number, line, _parsed(line)) for number, line in enumerate(lines, 1)]
    segments: list[Segment] = []
    records: list[Record] = []
    for i, (number, line, entry) in enumerate(entries):
        if entry is None:
            following = entries[i + 1][2] if i + 1 < len(entries) else {"kind": "start"}
            if following is not None and following.get("kind") == "start":
                continue  # cut off by a crash: the last line of the file, or the last before the run was resumed
        try:
            record = _typed(entry)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}, line {number}: expected an entry of a ledger, got {line[:120]!r} ({reason}): the file is "
                "damaged; restore it, or remove the lines from here to the next start, on all ranks"
            ) from None
        if isinstance(record, Start):
            if record.rank != rank:
                raise ValueError(
                    f"{path}, line {number}: expected the ledger of rank {rank}, got that of rank {record.rank}: "
                    "do not rename ledgers, and keep those of different runs in different folders"
                )
            _close_segment(path, segments, records)
            segments.append(Segment(record, ()))
        elif not segments:
            raise ValueError(f"{path}, line {number}: expected a start first, got {line[:120]!r}: restore the file")
        elif isinstance(record, Clock):
            segments[-1] = dataclasses.replace(segments[-1], clock=record)
        elif record is None:
            segments[-1] = dataclasses.replace(segments[-1], ended=True)
        else:
            records.append(record)
    if not segments:
        raise ValueError(f"expected the ledger of rank {rank} in {path}, got no entries: the run ended before it began")
    _close_segment(path, segments, records)
    return RankLedger(rank, tuple(segments))


def _close_segment(path: Path, segments: list[Segment], records: list[Record]) -> None:
    """Gives the records to the last segment, if their order is that of time."""
    if not segments:
        return
    segment = dataclasses.replace(segments[-1], records=tuple(records))
    records.clear()
    engine = [record for record in segment.records if isinstance(record, Round | Mean)]
    times = ([(r.begin, r.end) for r in engine], [(r.enter, r.leave) for r in segment.trainer])
    for name, order in (("rounds", segment.rounds), ("calls", segment.calls)):
        for before, after in itertools.pairwise(order):
            if after.round <= before.round:
                raise ValueError(
                    f"{path}: expected {name} in ascending order, got {after.round} after {before.round}: two runs "
                    "have written to one file; use a folder for each"
                )
    for spans in times:
        for (_, end), (begin, _) in itertools.pairwise(spans):
            if begin < end:
                raise ValueError(
                    f"{path}: expected entries one after the other, got one that begins at {begin} before {end}, where "
                    "the previous one ends: two runs have written to one file; use a folder for each"
                )
    segments[-1] = segment


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else {}


def _typed(entry: dict[str, Any] | None) -> Record | Start | Clock | None:
    """The entry as a record; None for the end."""
    if entry is None:
        raise ValueError("this is no JSON")
    kind = entry["kind"]
    whole = operator.index
    if kind == "call":
        enter, ready, taken, leave = _ascending(entry, "enter", "ready", "taken", "leave")
        if entry["merge"] not in ("own", "sum", "late", "mean"):
            raise ValueError(f"unknown merge {entry['merge']!r}")
        waits = {int(rank): float(seconds) for rank, seconds in entry["waits"].items()}
        source = None if entry["source"] is None else whole(entry["source"])
        t, base = whole(entry["round"]), whole(entry["base"])
        return Call(t, enter, ready, taken, leave, entry["merge"], source, base, waits)
    if kind == "round":
        group, contributed = tuple(map(whole, entry["group"])), tuple(map(whole, entry["contributed"]))
        if len(group) != len(contributed) or max(contributed) > entry["round"]:
            raise ValueError("group and contributed do not fit")
        begin, end = _ascending(entry, "begin", "end")
        return Round(whole(entry["round"]), group, contributed, begin, end)
    if kind == "mean":
        begin, end = _ascending(entry, "begin", "end")
        return Mean(whole(entry["version"]), begin, end)
    if kind == "consensus":
        enter, ready, taken, leave = _ascending(entry, "enter", "ready", "taken", "leave")
        return Consensus(enter, ready, taken, leave, whole(entry["version"]))
    if kind == "clock":
        return Clock(*(float(entry[name]) for name in Clock._fields))
    if kind == "end":
        return None
    if kind != "start":
        raise ValueError(f"unknown kind {kind!r}")
    if entry["version"] != VERSION:
        raise ValueError(f"format {entry['version']!r} instead of {VERSION}: use the wagma_jax that wrote it")
    start = Start(*(entry[name] for name in Start._fields))
    GroupSchedule(start.num_workers, start.group_size, start.sync_period, start.rotate)
    return start._replace(time=float(start.time), offset=float(start.offset), error=float(start.error))


def _ascending(entry: dict[str, Any], *names: str) -> list[float]:
    times = [float(entry[name]) for name in names]
    if not all(a <= b for a, b in itertools.pairwise(times)):
        raise ValueError(f"{', '.join(names)} do not ascend")
    return times


def _check_ranks(folder: Path, ledgers: Sequence[RankLedger]) -> None:
    num_workers = max(ledger.segments[-1].start.num_workers for ledger in ledgers)
    there = {ledger.rank for ledger in ledgers}
    missing = sorted(set(range(num_workers)) - there)
    if missing:
        raise ValueError(
            f"expected the ledgers of {num_workers} ranks in {folder}, got {len(there)}; missing: "
            f"{', '.join(f'ledger-{rank}.jsonl' for rank in missing)}: copy them from the machines of these ranks"
        )
    if surplus := sorted(there - set(range(num_workers))):
        raise ValueError(
            f"expected the ledgers of {num_workers} ranks in {folder}, got also ledger-{surplus[0]}.jsonl: "
            "keep the ledgers of different runs in different folders"
        )


def _check_settings(ledgers: Sequence[RankLedger]) -> None:
    names = Start._fields[1 : Start._fields.index("host")]
    first = ledgers[0]
    for ledger in ledgers:
        if len(ledger.segments) != len(first.segments):
            raise ValueError(
                f"expected as many starts on rank {ledger.rank} as on rank {first.rank}, got {len(ledger.segments)} "
                f"and {len(first.segments)}: keep the ledgers of different runs in different folders"
            )
        for i, (own, other) in enumerate(zip(ledger.segments, first.segments, strict=True)):
            expected = other.start._replace(num_workers=first.segments[0].start.num_workers)
            for name in names:
                if getattr(own.start, name) != getattr(expected, name):
                    raise ValueError(
                        f"expected {name}={getattr(expected, name)!r} at start {i + 1} of rank {ledger.rank}, as "
                        f"before or on rank {first.rank}, got {getattr(own.start, name)!r}: keep the ledgers of "
                        "different runs in different folders"
                    )


def _check_contributions(ledgers: Sequence[RankLedger]) -> None:
    """All members of a group must tell the same of a round."""
    known: dict[tuple[int, int, int], tuple[int, Round]] = {}
    for ledger in ledgers:
        for i, segment in enumerate(ledger.segments):
            for record in segment.rounds:
                rank, other = known.setdefault((i, record.round, min(record.group)), (ledger.rank, record))
                if ledger.rank not in record.group or other[:3] != record[:3]:
                    raise ValueError(
                        f"expected round {record.round} on rank {ledger.rank} as rank {rank} has it (group "
                        f"{other.group}, versions {other.contributed}), got group {record.group}, versions "
                        f"{record.contributed}: these are ledgers of different runs; keep them in different folders"
                    )


# one clock


def align(ledgers: Sequence[RankLedger]) -> list[RankLedger]:
    """The ledgers by one clock, which starts at 0, and without what was done again.

    Offsets between the two measurements are interpolated. Segments follow each other without a gap: nobody knows how
    long the run was interrupted. The waits of sync rounds are those that follow from all ranks' arrivals.
    """
    kept = [ledger.kept() for ledger in ledgers]
    aligned: list[list[Segment]] = [[] for _ in ledgers]
    now = 0.0
    for parts in zip(*kept, strict=True):
        begin = min(_clock(part)(part.start.time) for part in parts)
        parts = [_by_clock(part, _clock(part, now - begin)) for part in parts]
        parts = _attributed(parts)
        for segments, part in zip(aligned, parts, strict=True):
            segments.append(part)
            now = max([now, part.start.time, *map(_end, part.records)])
    return [RankLedger(ledger.rank, tuple(part)) for ledger, part in zip(ledgers, aligned, strict=True)]


def _end(record: Record) -> float:
    return record.end if isinstance(record, Round | Mean) else record.leave


def _clock(segment: Segment, shift: float = 0.0) -> Callable[[float], float]:
    """From the rank's clock to rank 0's, shifted."""
    start, end = segment.start, segment.clock
    drift = 0.0
    if end is not None and end.time > start.time:
        drift = (end.offset - start.offset) / (end.time - start.time)
    return lambda t: t + start.offset + drift * (t - start.time) + shift


def _by_clock(segment: Segment, clock: Callable[[float], float]) -> Segment:
    records: list[Record] = []
    for r in segment.records:
        if isinstance(r, Round | Mean):
            records.append(r._replace(begin=clock(r.begin), end=clock(r.end)))
        else:
            times = clock(r.enter), clock(r.ready), clock(r.taken), clock(r.leave)
            records.append(r._replace(enter=times[0], ready=times[1], taken=times[2], leave=times[3]))
    return dataclasses.replace(
        segment,
        start=segment.start._replace(time=clock(segment.start.time), offset=0.0),
        records=tuple(records),
        clock=segment.clock and segment.clock._replace(time=clock(segment.clock.time), offset=0.0),
    )


def _attributed(parts: Sequence[Segment]) -> list[Segment]:
    """Replaces the waits of sync rounds: there a rank other than 0 has seen only that it waits for the go of rank 0."""
    is_sync = parts[0].schedule.is_sync
    calls = [{call.round: call for call in part.calls if is_sync(call.round)} for part in parts]
    resolved: list[dict[int, dict[int, float]]] = [{} for _ in parts]
    for k in sorted(set().union(*calls)):
        here = [of_rank.get(k) for of_rank in calls]
        ready = [_rests_since(part, k) if call is None else call.ready for call, part in zip(here, parts, strict=True)]
        taken = [-math.inf if call is None else call.taken for call in here]
        waits = sync_waits(np.array(ready), np.array(taken))
        for rank, call in enumerate(here):
            if call is not None:
                resolved[rank][k] = {int(other): float(waits[rank, other]) for other in np.flatnonzero(waits[rank])}
    return [
        dataclasses.replace(
            part,
            records=tuple(
                record._replace(waits=waits[record.round])
                if isinstance(record, Call) and record.round in waits
                else record
                for record in part.records
            ),
        )
        for part, waits in zip(parts, resolved, strict=True)
    ]


def _rests_since(part: Segment, k: int) -> float:
    """Since when a rank that made no call for sync round k counts as arrived there."""
    since = -math.inf
    for record in part.trainer:
        if isinstance(record, Call):
            if record.round > k:
                break
            since = -math.inf
        elif since == -math.inf:
            since = record.ready
    return since


def sync_waits(ready: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Who waited for whom at a round for which all wait for all.

    Between two arrivals, the time of each rank that waits is shared evenly among those that have not arrived yet.

    Args:
        ready: [num_workers] When each rank arrived, by one clock; ``-inf`` if it rested.
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
            # clocks are aligned only so far: nobody waits for longer than it says itself
            until = np.minimum(ready[order[i]], taken[waiting])
            seconds = np.maximum(until - ready[order[i - 1]], 0.0)
            waits[np.ix_(waiting, missing)] += seconds[:, None] / missing.size
    return waits


# numbers


class Alignment(NamedTuple):
    """How well the clocks of the ranks are aligned; all in seconds.

    Attributes:
        error: The bound on how far any two ranks' clocks are apart, by the measurements.
        drift: The largest change of an offset in the run; it is interpolated.
        contradiction: By how much, at worst, an exchange ended on one rank before it began on another.
        measured_twice: Whether all offsets were measured at the end as well.
    """

    error: float
    drift: float
    contradiction: float
    measured_twice: bool


class RankSummary(NamedTuple):
    """One rank; times are seconds.

    Attributes:
        rank: Which.
        host: Its machine.
        calls: How often it called ``average``.
        mean: Computation from one call to the next; NaN where there were fewer than two calls.
        median: The same.
        longest: The same.
        late_fraction: How many of the ordinary rounds took an older model of it; NaN if there were none.
        waited: How long it waited for others in ``average``.
        caused: How long others waited for it.
        exchanging: The rest of the time for which it was held up in ``average``: exchanges, and messages.
        copying: The rest of the time in ``average``: publishing and merging.
        resting: Time in ``consensus``.
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
        lost: Records of rounds that a rank should have and has not.
        seconds: From the start to the last entry, without interruptions.
        waits: [num_workers, num_workers] Seconds; rows waited for columns.
        staleness: [num_workers, highest + 1] How many contributions to ordinary rounds had which staleness.
        ranks: The ranks.
        slow: Ranks whose median computation is 1.5 times that of the others.
        waited_for: The rank that caused most of the waiting, or None.
        alignment: Of the clocks.
        resumed: The rounds from which the run went on after interruptions.
        incomplete: Ranks that came to no regular end.
    """

    start: Start
    first_round: int
    rounds: int
    syncs: int
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
                staleness(record, ledger.rank)
                for record in segment.rounds
                if not segment.schedule.is_sync(record.round)
            )
    highest = max((age for counts in ages for age in counts), default=0)
    ranks = tuple(_rank_summary(ledger, ages[ledger.rank], waits) for ledger in aligned)
    known = [{record.round for part in ledger.segments for record in part.rounds} for ledger in aligned]
    rounds = set[int]().union(*known)
    is_sync = aligned[0].segments[-1].schedule.is_sync
    records = [record for ledger in aligned for part in ledger.segments for record in part.records]
    return Summary(
        start=ledgers[0].segments[-1].start,
        first_round=min(part.start.first_round for part in ledgers[0].segments),
        rounds=len(rounds),
        syncs=sum(map(is_sync, rounds)),
        lost=sum(len([t for t in rounds - own if t < max(own, default=-1)]) for own in known),
        seconds=max(map(_end, records), default=0.0),
        waits=waits,
        staleness=np.array([[counts[age] for age in range(highest + 1)] for counts in ages]),
        ranks=ranks,
        slow=_slow(ranks),
        waited_for=_waited_for(ranks),
        alignment=_alignment(ledgers, aligned),
        resumed=tuple(segment.start.first_round for segment in ledgers[0].segments[1:]),
        incomplete=tuple(ledger.rank for ledger in ledgers if not ledger.segments[-1].ended),
    )


def staleness(record: Round, rank: int) -> int:
    """The age in rounds of the rank's contribution to an ordinary round; 0 on time."""
    return record.round - record.contributed[record.group.index(rank)]


def _rank_summary(ledger: RankLedger, ages: collections.Counter[int], waits: np.ndarray) -> RankSummary:
    steps, calls, held, copying, resting = [], 0, 0.0, 0.0, 0.0
    for segment in ledger.segments:
        for before, after in zip((None, *segment.trainer), segment.trainer, strict=False):
            if isinstance(after, Consensus):
                resting += after.leave - after.enter
                continue
            calls += 1
            held += after.taken - after.ready
            copying += after.ready - after.enter + after.leave - after.taken
            if isinstance(before, Call):  # after a start or a consensus there is more than a step
                steps.append(after.enter - before.leave)
    waited = float(waits[ledger.rank].sum())
    number = sum(ages.values())
    return RankSummary(
        ledger.rank,
        ledger.segments[-1].start.host,
        calls,
        float(np.mean(steps)) if steps else math.nan,
        float(np.median(steps)) if steps else math.nan,
        max(steps, default=math.nan),
        (number - ages[0]) / number if number else math.nan,
        waited,
        float(waits[:, ledger.rank].sum()),
        max(held - waited, 0.0),
        copying,
        resting,
    )


def _slow(ranks: Sequence[RankSummary]) -> tuple[int, ...]:
    return tuple(own.rank for own in ranks if own.median > SLOW * _median_of_others(ranks, own.rank))


def _median_of_others(ranks: Sequence[RankSummary], rank: int) -> float:
    others = [other.median for other in ranks if other.rank != rank and not math.isnan(other.median)]
    return float(np.median(others)) if others else math.nan


def _waited_for(ranks: Sequence[RankSummary]) -> int | None:
    """The rank that caused most of the waiting, where that is more than chance and more than nothing."""
    total = sum(own.waited for own in ranks)
    whole = total + sum(own.calls * own.mean + own.exchanging + own.copying for own in ranks if own.calls > 1)
    worst = max(ranks, key=lambda own: own.caused)
    share = max(0.5, SLOW / len(ranks))  # of two ranks one always causes half or more
    return worst.rank if total > 0.01 * whole and worst.caused > share * total else None


def _alignment(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger]) -> Alignment:
    error = drift = 0.0
    twice = True
    for parts in zip(*(ledger.segments for ledger in ledgers), strict=True):
        twice &= all(part.clock is not None for part in parts)
        measured = [[m for m in (part.start, part.clock) if m is not None] for part in parts]
        error = max(error, sum(sorted(max(m.error for m in of_rank) for of_rank in measured)[-2:]))
        drift = max(drift, *(abs(of_rank[-1].offset - of_rank[0].offset) for of_rank in measured))
    spans: dict[tuple[int, int, int], tuple[float, float]] = {}
    for ledger in aligned:
        for i, segment in enumerate(ledger.segments):
            for record in segment.rounds:
                key = i, record.round, record.group[0]
                begin, end = spans.get(key, (-math.inf, math.inf))
                spans[key] = max(begin, record.begin), min(end, record.end)
    contradiction = max((begin - end for begin, end in spans.values()), default=0.0)
    return Alignment(error, drift, max(contradiction, 0.0), twice)


# text


def text(summary: Summary) -> str:
    """The summary as plain text for people."""
    parts = [
        _headline(summary),
        _waits_text(summary),
        _staleness_text(summary),
        _ranks_text(summary),
        _slow_text(summary),
    ]
    return "\n\n".join(parts)


def _headline(summary: Summary) -> str:
    start = summary.start
    hosts = len({own.host for own in summary.ranks})
    lines = [
        f"{title(summary)} on {_count(hosts, 'machine')}; clock={start.clock}, quorum={start.quorum}",
        alignment_text(summary.alignment),
    ]
    if summary.resumed:
        lines.append(
            f"Resumed at round {', '.join(map(str, summary.resumed))}: rounds that were done again count once, and the "
            "time in between does not."
        )
    if summary.incomplete:
        lines.append(
            f"Not ended: {_ranks(summary.incomplete)}. The run has failed, or is still going on; what was written is "
            "counted."
        )
    if summary.lost:
        lines.append(f"Incomplete: {_count(summary.lost, 'record')} of rounds were not written, and do not count.")
    return "\n".join(lines)


def title(summary: Summary) -> str:
    """A line that says what was run."""
    start = summary.start
    sync = "no sync rounds" if start.sync_period is None else f"a sync every {start.sync_period} rounds"
    return (
        f"{_count(start.num_workers, 'rank')}, groups of {start.group_size}, {sync}: {_count(summary.rounds, 'round')} "
        f"({_count(summary.syncs, 'sync')}) in {summary.seconds:,.1f} s"
    )


def alignment_text(alignment: Alignment) -> str:
    """A line that says how well the clocks are aligned."""
    error, drift, contradiction, twice = alignment
    line = f"Clocks: aligned to within {_milliseconds(max(error, contradiction))}"
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
    if num_workers > MOST_ROWS:
        order = np.argsort(waits, axis=None)[::-1][:MOST_ROWS]
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


def _staleness_text(summary: Summary) -> str:
    counts = summary.staleness
    total = counts.sum()
    if not total:
        return "How stale contributions were: there were no ordinary rounds."
    shown = len(summary.ranks) <= MOST_ROWS
    rows = []
    for low, high in _age_bins(counts.shape[1]):
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


def _age_bins(number: int) -> list[tuple[int, int]]:
    """One for each staleness below 8, then from each power of two to the next."""
    edges = [*range(min(number, 8)), *(1 << i for i in range(3, number.bit_length() + 1) if 1 << i < number), number]
    return list(itertools.pairwise(edges))


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
        own, others = summary.ranks[rank].median, _median_of_others(summary.ranks, rank)
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


# the picture


def plot(ledgers: Sequence[RankLedger], path: Path | str, aligned: Sequence[RankLedger] | None = None) -> None:
    """Draws staleness and waits by rank and round, who waited for whom, and what it comes to.

    Args:
        ledgers: From ``read``.
        path: The PNG to write.
        aligned: From ``align``, if that is at hand.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra that brings it.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError:
        raise ModuleNotFoundError(MATPLOTLIB, name="matplotlib") from None

    aligned = align(ledgers) if aligned is None else aligned
    summary = summarize(ledgers, aligned)
    num_workers = len(summary.ranks)
    figure = Figure(figsize=(15, 11.5), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(1, 1, 1.05))
    upper = grid[:2].subgridspec(2, 3, width_ratios=(5, 0.07, 1.15), wspace=0.02)
    lower = grid[2].subgridspec(1, 3, width_ratios=(1.25, 1, 1.15), wspace=0.06)
    ages, waits, syncs = _by_round(aligned, summary)
    stale, waited = figure.add_subplot(upper[0, 0]), figure.add_subplot(upper[1, 0])
    _plot_staleness(stale, figure.add_subplot(upper[0, 1]), ages, syncs, summary.first_round)
    _plot_waits(waited, figure.add_subplot(upper[1, 1]), waits, summary.first_round)
    for axis in (stale, waited):
        axis.set(xlabel="round", ylabel="rank")
        axis.yaxis.set_major_locator(MaxNLocator(MOST_ROWS, integer=True))

    late = figure.add_subplot(upper[0, 2], sharey=stale)
    ranks = np.arange(num_workers)
    late.barh(ranks, [100 * own.late_fraction for own in summary.ranks], color="tab:orange")
    late.set(xlabel="late contributions (%)", title="how often late")
    caused = figure.add_subplot(upper[1, 2], sharey=waited)
    caused.barh(ranks - 0.2, [own.waited for own in summary.ranks], 0.4, color="tab:purple")
    caused.barh(ranks + 0.2, [own.caused for own in summary.ranks], 0.4, color="tab:red")
    caused.set(xlabel="seconds in all", title="waited (purple),\nothers waited for it (red)")
    for axis in (late, caused):
        axis.tick_params(labelleft=False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(left=0)

    _plot_matrix(figure, figure.add_subplot(lower[0]), summary.waits)
    _plot_histogram(figure.add_subplot(lower[1]), summary.staleness.sum(0))
    _plot_computation(figure.add_subplot(lower[2]), summary)
    figure.suptitle(f"{title(summary)}\n{alignment_text(summary.alignment)}", fontsize="medium")
    figure.savefig(path, dpi=130)


def _by_round(aligned: Sequence[RankLedger], summary: Summary) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Staleness and waits, [num_workers, rounds], NaN where there was nothing; and the sync rounds."""
    first = summary.first_round
    newest = [_newest(r) for ledger in aligned for part in ledger.segments for r in (*part.rounds, *part.calls)]
    shape = len(aligned), max(newest, default=first) - first + 1
    ages, waits, syncs = np.full(shape, np.nan), np.full(shape, np.nan), set()
    for ledger in aligned:
        for segment in ledger.segments:
            for record in segment.rounds:
                is_sync = segment.schedule.is_sync(record.round)
                ages[ledger.rank, record.round - first] = 0 if is_sync else staleness(record, ledger.rank)
                if is_sync:
                    syncs.add(record.round)
            for call in segment.calls:
                waits[ledger.rank, call.round - first] = sum(call.waits.values())
    return ages, waits, sorted(syncs)


def _binned(values: np.ndarray, reduce: Callable[..., np.ndarray], empty: float) -> tuple[np.ndarray, int]:
    """Values with at most MOST_COLUMNS columns, and the rounds in each; ``empty`` is neutral to ``reduce``."""
    size = -(-values.shape[1] // MOST_COLUMNS)
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)), constant_values=np.nan)
    bins = padded.reshape(len(values), -1, size)
    missing = np.isnan(bins)
    return np.where(missing.all(2), np.nan, reduce(np.where(missing, empty, bins), axis=2)), size


def _image(axis: Any, values: np.ndarray, size: int, first: int, **options: Any) -> Any:
    extent = (first - 0.5, first - 0.5 + values.shape[1] * size, len(values) - 0.5, -0.5)
    image = axis.imshow(values, aspect="auto", interpolation="nearest", extent=extent, **options)
    if len(values) <= MOST_ROWS:
        axis.hlines(np.arange(1, len(values)) - 0.5, *extent[:2], color="white", linewidth=2)
    return image


def _plot_staleness(axis: Any, bar: Any, ages: np.ndarray, syncs: list[int], first: int) -> None:
    from matplotlib import colormaps, colors

    ages, size = _binned(ages, np.max, 0)
    highest = int(max(np.nanmax(ages, initial=1), 1))
    colormap = colormaps["YlOrRd"].resampled(max(2 * highest, 4))
    steps = colormap(np.linspace(0.25, 1, min(highest, 256)))
    if highest <= 12:
        norm, ticks = colors.BoundaryNorm(np.arange(0.5, highest + 1), highest), range(1, highest + 1)
    else:
        norm, ticks = colors.Normalize(0.5, highest), None
    shown = colors.ListedColormap(steps).with_extremes(under="#c9dfc9", bad="white")
    image = _image(axis, ages, size, first, cmap=shown, norm=norm)
    largest = f" (largest of {size} rounds)" if size > 1 else ""
    axis.figure.colorbar(image, cax=bar, label=f"rounds late{largest}", ticks=ticks)
    marks = ""
    if 0 < len(syncs) <= MOST_MARKS:
        axis.plot(
            syncs, [1.03] * len(syncs), "|", color="tab:blue", markersize=6, transform=axis.get_xaxis_transform(),
            clip_on=False,
        )  # fmt: skip
        marks = "; blue marks: sync rounds"
    missing = "; white: nothing written" if np.isnan(ages).any() else ""
    axis.set_title(f"late: the rank contributed an older model (green: on time{missing}{marks})", pad=12)


def _plot_waits(axis: Any, bar: Any, waits: np.ndarray, first: int) -> None:
    from matplotlib import colormaps, colors

    waits, size = _binned(waits, np.sum, 0)
    highest = max(np.nanmax(waits, initial=0), 1e-3)
    shown = colors.ListedColormap(colormaps["BuPu"](np.linspace(0.3, 1, 256)))
    shown = shown.with_extremes(under="#e4e4e8", bad="white")
    norm = colors.LogNorm(highest / 1000, highest)
    image = _image(axis, np.maximum(waits, highest / 1e6), size, first, cmap=shown, norm=norm)
    together = f" ({size} rounds together)" if size > 1 else ""
    axis.figure.colorbar(image, cax=bar, label=f"seconds waited{together}", extend="min", format="%g")
    missing = "; white: no call" if np.isnan(waits).any() else ""
    axis.set_title(f"waits: how long the rank waited for others (grey: hardly or not{missing})")


def _plot_matrix(figure: Any, axis: Any, waits: np.ndarray) -> None:
    from matplotlib import colormaps

    highest = waits.max() or 1.0
    image = axis.imshow(waits, cmap=colormaps["BuPu"], vmin=0, vmax=highest, aspect="auto")
    figure.colorbar(image, ax=axis, label="seconds")
    if len(waits) <= 8:
        axis.set(xticks=range(len(waits)), yticks=range(len(waits)))
        for (i, j), value in np.ndenumerate(waits):
            if value:
                color = "white" if value > 0.6 * highest else "black"
                number = f"{value:.2g}" if value < 10 else f"{value:,.0f}"
                axis.text(j, i, number, ha="center", va="center", color=color, fontsize="small")
    axis.set(xlabel="... for this rank", ylabel="this rank waited ...", title="who waited for whom")


def _plot_histogram(axis: Any, counts: np.ndarray) -> None:
    bins = _age_bins(len(counts))
    shares = [100 * counts[low:high].sum() / max(counts.sum(), 1) for low, high in bins]
    bars = axis.bar(range(len(bins)), shares, color=["#9cbf9c", *["tab:orange"] * (len(bins) - 1)])
    axis.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize="small")
    axis.set_xticks(range(len(bins)), [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in bins])
    axis.set(xlabel="staleness (rounds; 0: on time)", ylabel="contributions (%)", title="how stale contributions were")
    axis.set_ylim(0, 108 * max(shares, default=1) / 100 + 1)


def _plot_computation(axis: Any, summary: Summary) -> None:
    from matplotlib.ticker import MaxNLocator

    ranks = np.arange(len(summary.ranks))
    colors = ["tab:red" if own.rank in summary.slow else "tab:gray" for own in summary.ranks]
    axis.bar(ranks, [1000 * own.median for own in summary.ranks], color=colors)
    means = [1000 * own.mean for own in summary.ranks]
    axis.hlines(means, ranks - 0.45, ranks + 0.45, color="black", linewidth=2, label="mean")
    axis.set(xlabel="rank", ylabel="computation per step (ms)", title="how long steps take (bars: median)")
    axis.xaxis.set_major_locator(MaxNLocator(MOST_ROWS, integer=True))
    axis.grid(axis="y", alpha=0.3)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")


# the trace


def trace(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger] | None = None) -> dict[str, Any]:
    """The run in the trace event format that ui.perfetto.dev opens: two threads of each rank, on one clock.

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
    alignment = _alignment(ledgers, aligned)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "clocks": alignment_text(alignment),
            "error_seconds": max(alignment.error, alignment.contradiction),
        },
    }


_Span = tuple[str, float, float, dict[str, Any]]


def _trainer_spans(segment: Segment) -> Iterable[_Span]:
    left, name = segment.start.time, "starting"
    for record in segment.trainer:
        if isinstance(record, Call):
            waits = {f"rank {rank}": round(seconds, 6) for rank, seconds in sorted(record.waits.items())}
            yield name, left, record.enter, {"before round": record.round}
            yield "publishing", record.enter, record.ready, {"round": record.round}
            yield _wait_name(record), record.ready, record.taken, {"round": record.round, "seconds waited for": waits}
            merged = {"round": record.round, "merge": record.merge, "of round": record.source, "base": record.base}
            yield "merging", record.taken, record.leave, merged
        else:
            yield name, left, record.enter, {"before": "consensus"}
            yield "consensus", record.enter, record.leave, {"newest round": record.version}
        left, name = record.leave, "computing"


def _wait_name(call: Call) -> str:
    waited = sum(call.waits.values())
    if waited <= (call.taken - call.ready) / 2:
        return "waiting for the exchange"
    most = max(call.waits, key=lambda rank: call.waits[rank])
    return f"waiting for rank {most}" if call.waits[most] > waited / 2 else "waiting for several ranks"


def _engine_spans(segment: Segment, rank: int) -> Iterable[_Span]:
    for record in segment.records:
        if isinstance(record, Round):
            members = zip(record.group, record.contributed, strict=True)
            arguments: dict[str, Any] = {"round": record.round}
            if segment.schedule.is_sync(record.round):
                yield "sync", record.begin, record.end, arguments
            else:
                arguments |= {f"staleness of rank {other}": record.round - version for other, version in members}
                name = "exchanging, late" if staleness(record, rank) else "exchanging"
                yield name, record.begin, record.end, arguments
        elif isinstance(record, Mean):
            yield "mean for consensus", record.begin, record.end, {"newest round": record.version}
