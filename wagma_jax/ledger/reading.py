"""Reads and checks the files that the ranks of a run have written: ``ledger-RANK.jsonl``, a line for each entry."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wagma_jax.ledger.codec import FormatError, decode
from wagma_jax.ledger.entries import End, EngineEntry, Entry, Offset, Round, Start, TrainerEntry, span
from wagma_jax.ledger.segments import RankLedger, Segment

_SETTINGS = Start._fields[Start._fields.index("num_workers") : Start._fields.index("host")]


def read(folder: Path | str) -> list[RankLedger]:
    """Reads the ledgers of all ranks.

    Args:
        folder: Where a run has written ``ledger-RANK.jsonl``.

    Returns:
        One ledger for each rank, in their order.

    Raises:
        ValueError: There are none, a rank's is missing, a file is damaged (a last line that was cut off is not) or has
            the format of another version, or the files come from different runs.
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


# --- One file ---


def _read_file(path: Path, rank: int) -> RankLedger:
    segments: list[Segment] = []
    entries: list[EngineEntry | TrainerEntry] = []  # of the last segment

    def close_segment():
        if segments:
            segments[-1] = dataclasses.replace(segments[-1], entries=tuple(entries))
            entries.clear()
            _check_order(path, segments[-1])

    for number, line, entry in _entries(path):
        if isinstance(entry, Start):
            if entry.rank != rank:
                raise ValueError(
                    f"{path}, line {number}: expected the ledger of rank {rank}, got that of rank {entry.rank}: "
                    "do not rename ledgers, and keep those of different runs in different folders"
                )
            close_segment()
            segments.append(Segment(entry, ()))
        elif not segments:
            raise ValueError(f"{path}, line {number}: expected a start first, got {line[:120]!r}: restore the file")
        elif isinstance(entry, Offset):
            segments[-1] = dataclasses.replace(segments[-1], offset=entry)
        elif isinstance(entry, End):
            segments[-1] = dataclasses.replace(segments[-1], ended=True)
        else:
            entries.append(entry)
    if not segments:
        raise ValueError(f"expected the ledger of rank {rank} in {path}, got no entries: the run ended before it began")
    close_segment()
    return RankLedger(rank, tuple(segments))


def _entries(path: Path) -> Iterator[tuple[int, str, Entry]]:
    """Every entry, with the number and the text of its line; without lines that a crash cut off."""
    lines = path.read_text(errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    parsed = [_parsed(line) for line in lines]
    for i, (line, value) in enumerate(zip(lines, parsed, strict=True)):
        if value is None:
            following = parsed[i + 1] if i + 1 < len(lines) else {"kind": Start.kind}
            if following is not None and following.get("kind") == Start.kind:
                continue  # the last line of the file, or the last before the run was resumed
        try:
            if value is None:
                raise ValueError("this is no JSON")
            yield i + 1, line, decode(value)
        except FormatError as error:
            raise ValueError(f"{path}, line {i + 1}: {error}") from None
        except ValueError as error:
            raise ValueError(
                f"{path}, line {i + 1}: expected an entry of a ledger, got {line[:120]!r} ({error}): the file is "
                "damaged; restore it, or remove the lines from here to the next start, on all ranks"
            ) from None


def _parsed(line: str) -> dict[str, Any] | None:
    """The line's JSON object; None if it is no JSON."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else {}


def _check_order(path: Path, segment: Segment) -> None:
    """Each thread does one thing after the other."""
    for name, order in (("rounds", segment.rounds), ("calls", segment.calls)):
        for before, after in itertools.pairwise(order):
            if after.round <= before.round:
                raise ValueError(
                    f"{path}: expected {name} in ascending order, got {after.round} after {before.round}: two runs "
                    "have written to one file; use a folder for each"
                )
    for thread in (segment.engine, segment.trainer):
        for (_, end), (begin, _) in itertools.pairwise(map(span, thread)):
            if begin < end:
                raise ValueError(
                    f"{path}: expected entries one after the other, got one that begins at {begin} before {end}, where "
                    "the previous one ends: two runs have written to one file; use a folder for each"
                )


# --- All files ---


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
    first = ledgers[0]
    for ledger in ledgers:
        if len(ledger.segments) != len(first.segments):
            raise ValueError(
                f"expected as many starts on rank {ledger.rank} as on rank {first.rank}, got {len(ledger.segments)} "
                f"and {len(first.segments)}: keep the ledgers of different runs in different folders"
            )
        for i, (own, other) in enumerate(zip(ledger.segments, first.segments, strict=True)):
            expected = other.start._replace(num_workers=first.segments[0].start.num_workers)
            for name in _SETTINGS:
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
            for entry in segment.rounds:
                rank, other = known.setdefault((i, entry.round, min(entry.group)), (ledger.rank, entry))
                same = (entry.round, entry.group, entry.contributed) == (other.round, other.group, other.contributed)
                if ledger.rank not in entry.group or not same:
                    raise ValueError(
                        f"expected round {entry.round} on rank {ledger.rank} as rank {rank} has it (group "
                        f"{other.group}, versions {other.contributed}), got group {entry.group}, versions "
                        f"{entry.contributed}: these are ledgers of different runs; keep them in different folders"
                    )
