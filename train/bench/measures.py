"""What is measured of a run, from its summary and the rows of its metrics file."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.results import waited_seconds
from train.task import Score


class Point(NamedTuple):
    """An evaluation of the consensus model.

    Attributes:
        seconds: Of training before it.
        examples: Seen by all workers before it.
        score: As the task has it; None if it was no number.
    """

    seconds: float
    examples: int
    score: float | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run in numbers. What one program cannot tell is None.

    Attributes:
        seconds: Of training: without compilation and evaluations.
        examples: Units that all workers have seen.
        throughput: Examples per second.
        waited: Seconds that a worker has waited for others, on average.
        worked: Seconds that a worker has computed, or was delayed, on average.
        goodput: Examples over possible ones: over those that the workers would have seen in the same time, each at the
            pace at which it worked, had it never waited, exchanged or stood still.
        late: Share of contributions that were late.
        staleness: The oldest contribution, in rounds.
        score: Of the consensus model in the end; None if it is no number.
        curve: All evaluations.
    """

    seconds: float
    examples: int
    throughput: float
    waited: float | None
    worked: float | None
    goodput: float | None
    late: float
    staleness: int
    score: float | None
    curve: tuple[Point, ...]


def measure(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], score: Score) -> Measured:
    """Measures a finished run."""
    curve = tuple(Point(row["seconds"], row["examples"], row["eval"].get(score.name)) for row in rows if "eval" in row)
    work = _work(summary)
    return Measured(
        seconds=summary["wall_seconds"],
        examples=summary["examples"],
        throughput=summary["examples_per_second"],
        waited=waited_seconds(summary),
        worked=sum(work) / len(work) if work else None,
        goodput=_goodput(summary),
        late=summary["late_fraction"],
        staleness=summary["max_staleness"],
        score=summary["eval"].get(score.name),
        curve=curve,
    )


def pace(summary: Mapping[str, Any]) -> float | None:
    """Steps per second of all workers together, if none ever waited; None where nothing tells."""
    work, steps = _work(summary), summary["local_steps"]
    if not work or min(work) <= 0:
        return None
    return sum(count / seconds for count, seconds in zip(steps, work, strict=True))


def _goodput(summary: Mapping[str, Any]) -> float | None:
    found = pace(summary)
    return None if found is None else sum(summary["local_steps"]) / (summary["wall_seconds"] * found)


def _work(summary: Mapping[str, Any]) -> list[float]:
    work = summary.get("work_seconds") or []
    return [] if None in work else work


def reached(curve: Sequence[Point], score: Score, target: float) -> Point | None:
    """When a run has first reached a score, between two evaluations by linear interpolation; None: it never did."""
    sign = 1.0 if score.higher else -1.0
    before: Point | None = None
    for point in curve:
        value = point.score
        if value is None or not math.isfinite(value):
            before = None
            continue
        if sign * value >= sign * target:
            if before is None or before.score is None:
                return point._replace(score=target)
            share = (target - before.score) / (value - before.score)
            seconds = before.seconds + share * (point.seconds - before.seconds)
            examples = before.examples + share * (point.examples - before.examples)
            return Point(seconds, round(examples), target)
        before = point
    return None


def worst(scores: Sequence[float | None], score: Score) -> float | None:
    """The worst of some scores, which all of their runs have reached; None if one of them is no number."""
    if not scores or any(value is None or not math.isfinite(value) for value in scores):
        return None
    known = [value for value in scores if value is not None]
    return min(known) if score.higher else max(known)
