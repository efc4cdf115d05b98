"""The training loop, for every workload and transport: times, logs, evaluates, saves, and stops when asked to.

All workers stand still only at *meetings*. In one program these are log points, evaluations and checkpoints; where each
worker is a process, sync rounds and barriers. A run evaluates, saves and stops there and nowhere else.
"""

import dataclasses
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from train import console, interrupts
from train.budget import Budget, Pace
from train.checkpoints import Checkpoints, Position
from train.counts import Counts, Rows, total, union
from train.interrupts import Interrupts
from train.options import RunOptions
from train.results import MetricsFile, checked_scores
from train.task import Batch, Feed, Model, Place, Task
from train.transports.group import Group, KeepsTogether

_SAY_SECONDS = 5.0  # between lines of progress, if there is no terminal to draw a bar in


class Stepped(NamedTuple):
    """The outcome of a step.

    Attributes:
        round: Rounds done.
        sums: If this is a meeting, the sums of all workers' tallies since the last one; else None.
        is_sync: Whether it is a meeting because all took the global mean.
    """

    round: int
    sums: tuple[int, ...] | None = None
    is_sync: bool = False


class Consensus(NamedTuple):
    """The mean of all workers' models.

    Attributes:
        model: NumPy arrays.
        squares: Sum of the squared distances to it, over the parameters of this process's workers.
    """

    model: Model
    squares: float


class Workers(Protocol):
    """The workers of this process, as the loop drives them."""

    group: Group
    place: Place
    round: int  # rounds done
    steps: int  # taken by each worker here since the run got its present number of workers
    model: Model
    carry: Any

    def step(self, batch: Batch, carry: Any, share: float, tally: Sequence[int]) -> Stepped:
        """One step of the workers of this process; ``tally`` is handed over if it leads to a meeting."""
        ...

    def busy(self) -> bool:
        """Whether a step is still being computed."""
        ...

    def counted(self) -> Counts:
        """What has been counted since the last call, except times in the loop; waits for steps in flight."""
        ...

    def report(self, step: int, window: Counts) -> None:
        """Tells the first process what this one has counted up to a log point."""
        ...

    def reports(self, until: int | None = None) -> list[tuple[int, list[Counts]]]:
        """On the first process, the log points that all have reported; waits for the one at step ``until``."""
        ...

    def consensus(self) -> Consensus:
        """The mean of all models; all processes call it, at a meeting."""
        ...

    def local_steps(self) -> tuple[int, ...]:
        """Steps of each of the P workers since the run got its present number; all processes call it."""
        ...

    def pieces(self) -> dict[str, Any]:
        """What this process writes into a checkpoint; all processes call it, at a meeting."""
        ...


class Outcome(NamedTuple):
    """What the loop leaves.

    Attributes:
        position: Where the run is.
        model: The consensus model at the end, NumPy arrays; None if the run was stopped before.
        parts: What all processes found in the evaluation of it.
        signal: What asked it to stop before the end, or None.
    """

    position: Position
    model: Model | None
    parts: Sequence[Any]
    signal: signal.Signals | None


class Interrupted(KeepsTogether):
    """A signal asked the run to stop, and it stopped.

    Attributes:
        signal: Its number.
        saved: Whether there is a checkpoint.
    """

    def __init__(self, outcome: Outcome, out: Path, saved: bool):
        assert outcome.signal is not None
        self.signal = outcome.signal
        self.saved = saved
        super().__init__(f"{self.signal.name}: stopped at step {outcome.position.step} with results in {out}")


@dataclasses.dataclass
class Run:
    """A run in progress.

    Attributes:
        options: Those of the run.
        task: The workload.
        workers: Of this process.
        position: Where the run was at the last meeting that evaluated or saved.
        budget: Its end.
        metrics: Where rows go, on the first process.
        checkpoints: Where to save, or None.
    """

    options: RunOptions
    task: Task
    workers: Workers
    position: Position
    budget: Budget
    metrics: MetricsFile
    checkpoints: Checkpoints | None

    def __post_init__(self):
        """Sets the counters to the position."""
        start, options = self.position, self.options
        self._start = start
        group = self.workers.group
        windows = start.windows if len(start.windows) == group.size else ()
        self._rows = Rows(options.workers, start.examples, start.seconds, windows)
        per_round = options.workers * self.task.units_per_step
        self._pace = Pace(start.examples - start.first_example, start.step, start.units_per_round or per_round)
        self._window, self._whole = (windows[group.rank] if windows else Counts()), Counts()
        self._data_wait = 0.0
        self._mark = time.perf_counter()
        self._logged = start.step // options.log_every
        evaluated = max((row["step"] for row in self.metrics.rows if "eval" in row), default=0)
        self._evaluated = group.from_first(evaluated) // options.eval_every
        self._saved = start.step // max(options.checkpoint_every, 1)
        self._distance = start.distance
        self._diverged = False

    def __call__(self, feed: Feed) -> Outcome:
        """Trains to the end of the budget; called by all processes.

        Times leave out evaluations and checkpoints.
        """
        workers, budget = self.workers, self.budget
        stop, outcome, finished = None, None, False
        ended = budget.ended(workers.round, self._pace.units)
        announced, said, tallied = False, time.perf_counter(), 0
        with Interrupts() as asked, console.progress_bar() as bar:
            if not ended and self._start.step // self.options.eval_every > self._evaluated:  # left undone by a stop
                self._evaluated = self._start.step // self.options.eval_every
                self._outcome(None, None if self._start.at_sync else self._start.step)
            task = bar.add_task(self.options.algorithm, total=budget.total_steps, status="")
            bar.update(task, completed=budget.shown_steps(workers.round, self._pace.units))
            batch = None if ended else self._next(feed)
            self._data_wait = 0.0  # the first batch is part of getting started, but for what is work
            self._mark = time.perf_counter() - (0.0 if batch is None else batch[0].worked)
            while not ended:
                assert batch is not None
                share = budget.share(workers.round, self._pace.at(workers.round))
                tallied += int(batch[0].units.sum())
                stepped = workers.step(*batch, share, (tallied, *asked.tally()))
                if asked.received is not None and not announced:
                    announced = True
                    console.say(f"{asked.received.name}: stopping at the next meeting; another Ctrl-C stops at once")
                if stepped.sums is not None:
                    tallied = 0
                    self._pace.meet(stepped.round, stepped.sums[0])
                    finished = budget.ended(stepped.round, self._pace.units)
                    stop = None if finished else interrupts.asked(stepped.sums[1:])
                    ended = finished or stop is not None
                if stepped.round // self.options.log_every > self._logged or ended:
                    self._log(stepped.round, finished or (ended and self.checkpoints is None))
                    shown = budget.shown_steps(stepped.round, self._pace.at(stepped.round))
                    bar.update(task, completed=shown, status=self._rows.status)
                    if not console.console.is_terminal and time.perf_counter() - said > _SAY_SECONDS and not ended:
                        said = time.perf_counter()
                        console.say(f"{self.options.algorithm} {shown:.0f}/{budget.total_steps}  {self._rows.status}")
                if stepped.sums is not None:
                    outcome = self._meet(stepped, ended, finished, stop)
                batch = None if ended else self._next(feed)
            if outcome is None:  # the run was at its end already
                outcome = self._outcome(None)
            if self.checkpoints is not None:
                self.checkpoints.wait()
        return outcome

    def _next(self, feed: Feed) -> tuple[Batch, Any]:
        workers = self.workers
        begun = time.perf_counter()
        batch = feed.next(workers.steps, workers.model, workers.carry)
        # While a step is running nobody waits. If it has ended meanwhile, it is not known when: all the time counts.
        if not workers.busy():
            self._data_wait += time.perf_counter() - begun - batch[0].worked
        if any(batch[0].notes.values()):
            self._window += Counts(notes=batch[0].notes)
            self._whole += Counts(notes=batch[0].notes)
        return batch

    def _take(self) -> None:
        """Adds what has been counted since the last call to the window and the whole."""
        counts = self.workers.counted()
        now = time.perf_counter()
        counts = dataclasses.replace(counts, seconds=now - self._mark, data_wait=self._data_wait)
        self._mark, self._data_wait = now, 0.0
        self._window += counts
        self._whole += dataclasses.replace(counts, sums={})

    def _log(self, step: int, last: bool) -> None:
        """Reports all log points up to this step; the last step of a run is one."""
        self._take()
        every = self.options.log_every
        while self._logged < step // every:
            self._logged += 1
            self.workers.report(self._logged * every, self._window)
            self._window = Counts()
        if last and step % every:
            self.workers.report(step, self._window)
            self._window = Counts()
        self._collect(step if last else None)
        self._mark = time.perf_counter()

    def _collect(self, until: int | None) -> None:
        for step, windows in self.workers.reports(until):
            row = self._rows.row(step, windows, self.task.unit)
            self.metrics.write(**row)
            if row["consensus_distance"] is not None:
                self._distance = row["consensus_distance"]
            if not self._diverged and not np.isfinite([row["consensus_distance"] or 0.0, row.get("loss", 0.0)]).all():
                self._diverged = True
                console.warn(f"loss or parameters are not finite at step {step}: a lower --learning-rate may help")

    def _meet(self, stepped: Stepped, ended: bool, finished: bool, stop: signal.Signals | None) -> Outcome | None:
        """What is done at a meeting; the outcome if it is the last."""
        options, step = self.options, stepped.round
        # who is asked to stop saves, and leaves evaluations to the next start
        evaluating = finished or (stop is None and step // options.eval_every > self._evaluated)
        saving = options.checkpoint_every > 0 and (step // options.checkpoint_every > self._saved or ended)
        if not (evaluating or saving or ended):
            return None
        self._take()
        self._collect(self._logged * options.log_every)  # so that rows are in the order of their steps
        self._position(step, stepped.is_sync)
        outcome = None
        if evaluating:
            self._evaluated = step // options.eval_every
            outcome = self._outcome(stop, None if stepped.is_sync else step)
        if saving:
            assert self.checkpoints is not None
            self._saved = step // options.checkpoint_every
            self.checkpoints.save(self.position, self.workers.pieces())
        if ended and outcome is None:
            outcome = Outcome(self.position, None, (), stop)
        self._mark = time.perf_counter()
        return outcome if ended else None

    def _outcome(self, stop: signal.Signals | None, measured_at: int | None = None) -> Outcome:
        """Evaluates the consensus model, and writes a row about it unless there is one for this step."""
        group, place = self.workers.group, self.workers.place
        consensus = self.workers.consensus()
        parts = group.everyone(self.task.evaluate(consensus.model, place))
        at = self.position
        row: dict[str, Any] = {"step": at.step, "examples": at.examples, "seconds": at.seconds}
        # on one process: a score of a corpus may take long
        scores = lambda: checked_scores(self.task.scores(parts), self.task.score) if group.is_first else {}
        row["eval"] = group.from_first(group.agreed(scores))
        if measured_at is not None:
            squares = sum(group.everyone(consensus.squares))
            self._distance = row["consensus_distance"] = float(np.sqrt(squares / self.options.workers))
            self.position = dataclasses.replace(self.position, distance=self._distance)
        if not any("eval" in one and one["step"] == self.position.step for one in self.metrics.rows):
            self.metrics.write(**row)
        return Outcome(self.position, consensus.model, parts, stop)

    def _position(self, step: int, at_sync: bool) -> None:
        """Updates ``position`` from the counts of all processes, which all call it."""
        start, group = self._start, self.workers.group
        everyone = group.everyone(self._whole)
        whole = total(everyone)
        notes = union(start.notes, whole.notes)
        self.position = dataclasses.replace(
            start,
            step=step,
            examples=start.examples + whole.units,
            seconds=start.seconds + max(c.seconds for c in everyone),
            data_wait_seconds=start.data_wait_seconds + max(c.data_wait for c in everyone),
            late=start.late + whole.late,
            contributions=start.contributions + whole.steps,
            max_staleness=max(start.max_staleness, whole.staleness),
            notes={name: tuple(sorted(numbers)) for name, numbers in sorted(notes.items())},
            local_steps=self.workers.local_steps(),
            wait_seconds=_grown(start.wait_seconds, [counts.waited for counts in everyone]),
            work_seconds=_grown(start.work_seconds, [counts.worked for counts in everyone]),
            distance=group.from_first(self._distance),
            windows=group.everyone(self._window),
            at_sync=at_sync,
            units_per_round=self._pace.per_round,
        )


def _grown(before: Sequence[float], seconds: Sequence[float | None]) -> Sequence[float]:
    """What every worker has, with what came in addition; as before where nothing tells."""
    if all(one is None for one in seconds):
        return before
    return tuple(old + (one or 0.0) for old, one in zip(before or (0.0,) * len(seconds), seconds, strict=True))
