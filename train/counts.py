"""What workers count while they train, how it adds up, and the rows of metrics that result."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from train.task import Mean


@dataclasses.dataclass(frozen=True)
class Distance:
    """The distance of some workers' parameters to the consensus.

    Attributes:
        round: The sync round in which it was measured, before the global mean.
        squares: The sum of their squared distances.
        workers: How many workers they are.
    """

    round: int
    squares: float
    workers: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """What some workers have counted in some of their steps. Adds up over workers and over time.

    Attributes:
        steps: Local steps.
        units: Units of their batches.
        sums: By metric: (total, count).
        late: Late contributions.
        staleness: The oldest contribution, in rounds.
        seconds: In the loop, without evaluations and checkpoints; a sum over processes.
        waited: Seconds waited in exchanges; a sum over processes. None where they are not known.
        worked: Seconds of computation and of injected delays; likewise.
        data_wait: Seconds without a batch; a sum over processes.
        distance: At the newest sync round among the steps, if there was one.
        notes: Sets of integers by name, from the batches.
    """

    steps: int = 0
    units: int = 0
    sums: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    late: int = 0
    staleness: int = 0
    seconds: float = 0.0
    waited: float | None = None
    worked: float | None = None
    data_wait: float = 0.0
    distance: Distance | None = None
    notes: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of both together."""
        sums = dict(self.sums)
        for name, (total, count) in other.sums.items():
            mine = sums.get(name, (0.0, 0.0))
            sums[name] = (mine[0] + total, mine[1] + count)
        return Counts(
            steps=self.steps + other.steps,
            units=self.units + other.units,
            sums=sums,
            late=self.late + other.late,
            staleness=max(self.staleness, other.staleness),
            seconds=self.seconds + other.seconds,
            waited=_known(self.waited, other.waited),
            worked=_known(self.worked, other.worked),
            data_wait=self.data_wait + other.data_wait,
            distance=_newest(self.distance, other.distance),
            notes=union(self.notes, other.notes),
        )

    def means(self) -> dict[str, float]:
        """The mean of every metric; NaN where nothing was counted."""
        return {name: total / count if count else float("nan") for name, (total, count) in self.sums.items()}


def _known(*seconds: float | None) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


def _newest(a: Distance | None, b: Distance | None) -> Distance | None:
    if a is None or b is None:
        return a if b is None else b
    if a.round != b.round:
        return max(a, b, key=lambda distance: distance.round)
    return Distance(a.round, a.squares + b.squares, a.workers + b.workers)


def union(a: Mapping[str, Iterable[int]], b: Mapping[str, Iterable[int]]) -> dict[str, frozenset[int]]:
    """The union of sets by name."""
    return {name: frozenset(a.get(name, ())) | frozenset(b.get(name, ())) for name in {**a, **b}}


_ROW = frozenset({
    "step", "examples", "seconds", "consensus_distance", "examples_per_second", "data_wait_fraction", "late_fraction",
    "wait_fraction", "eval",
})  # fmt: skip


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are metrics of a step: means of scalars by name, the loss among them."""
    if "loss" not in metrics:
        raise ValueError(f"the metrics of a step have the loss among them, got {', '.join(metrics) or 'none'}: add it")
    for name, mean in metrics.items():
        if name in _ROW:
            raise ValueError(f"a metric cannot be called {name!r}, as every row has its own: choose another name")
        if not isinstance(mean, Mean) or any(np.shape(part) for part in mean):
            got = [list(np.shape(part)) for part in mean] if isinstance(mean, Mean) else type(mean).__name__
            raise ValueError(
                f"a metric is the Mean of scalars, a sum and a count, got {got} for {name!r}: give each number a name "
                "of its own"
            )


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    whole = Counts()
    for one in counts:
        whole = whole + one
    return whole


class Rows:
    """Turns what processes report from one log point to the next, their *windows*, into rows of the metrics file.

    Args:
        num_workers: P.
        units: Units that all have seen.
        seconds: Seconds of training until then.
        open: The windows of all processes that are still open then: what has been counted since the last log point.
    """

    def __init__(self, num_workers: int, units: int, seconds: float, open: Sequence[Counts] = ()):
        self._num_workers = num_workers
        self._units = units - total(open).units
        self._before = seconds - max((window.seconds for window in open), default=0.0)
        self._seconds: list[float] = []
        self.status = ""

    def row(self, step: int, windows: Sequence[Counts], unit: str) -> dict[str, Any]:
        """The row of a log point, from the windows of all processes; they must come in the same order every time.

        Args:
            step: Rounds done.
            windows: What each process has counted since the last log point.
            unit: Of the rate, for the status line.
        """
        whole = total(windows)
        self._seconds = self._seconds or [0.0] * len(windows)
        self._seconds = [s + window.seconds for s, window in zip(self._seconds, windows, strict=True)]
        self._units += whole.units
        share = lambda value: value / whole.seconds if whole.seconds > 0 else 0.0
        distance = None
        if whole.distance is not None and whole.distance.workers == self._num_workers:
            distance = float(np.sqrt(whole.distance.squares / self._num_workers))
        rate = share(whole.units * len(windows))
        late = whole.late / max(whole.steps, 1)
        row = {
            "step": step,
            "examples": self._units,
            "seconds": self._before + max(self._seconds),
            **whole.means(),
            "consensus_distance": distance,
            "examples_per_second": rate,
            "data_wait_fraction": share(whole.data_wait),
            "late_fraction": late,
            "wait_fraction": None if whole.waited is None else share(whole.waited),
        }
        waiting = "" if whole.waited is None else f"  waiting {row['wait_fraction']:.0%}"
        self.status = f"loss {row.get('loss', 0.0):.4f}  {rate:,.0f} {unit}/s  late {late:.0%}{waiting}"
        return row
