"""The training loop that all scripts share: times, logs, evaluates, saves, and stops when it is asked to."""

import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train import distributed, report
from train.checkpoints import Checkpoints, Position
from train.interrupts import Interrupts
from train.options import RunOptions

WARNINGS = 3  # unreadable examples that are named when they are found; the list of all comes in the end
_IN_FLIGHT = 2  # steps dispatched and not done; more would only hold batches in memory


class Work(NamedTuple):
    """What a script gives to the loop.

    Attributes:
        step: From (state, batch, late) to (state, metrics); compiled. The state is a NamedTuple of trees, and the
            metrics have at least loss, late and staleness, all [num_workers].
        batches: From the step at which to begin to an iterator over (batch on the devices, indices of examples that
            could not be read).
        lateness: From the step to ``late`` on the devices, or None.
        evaluate: From the state to metrics of the consensus model, by name.
        distance: From the state to the distance of the workers' parameters to their consensus.
    """

    step: Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]]
    batches: Callable[[int], Iterator[tuple[Any, np.ndarray]]]
    lateness: Callable[[int], Any]
    evaluate: Callable[[Any], dict[str, float]]
    distance: Callable[[Any], float]


class _Stopwatch:
    """Adds up the seconds between ``start`` and ``stop``."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._started


class Outcome(NamedTuple):
    """What the loop leaves.

    Attributes:
        state: The last one.
        position: Where the run is.
        signal: What asked it to stop before the end, or None.
    """

    state: Any
    position: Position
    signal: int | None


class Interrupted(distributed.KeepsTogether):
    """A signal asked the run to stop, and it stopped.

    Attributes:
        signal: Its number.
        saved: Whether there is a checkpoint.
    """

    def __init__(self, outcome: Outcome, out: Path, saved: bool):
        assert outcome.signal is not None
        self.signal = outcome.signal
        self.saved = saved
        step = outcome.position.step
        super().__init__(f"{signal.Signals(self.signal).name}: stopped at step {step} with results in {out}")


def run(
    options: RunOptions,
    work: Work,
    state: Any,
    position: Position,
    metrics: report.MetricsFile,
    checkpoints: Checkpoints | None,
    warn_unreadable: Callable[[int], None] = lambda index: None,
) -> Outcome:
    """Trains from ``position`` to its ``total_steps``.

    Rows go to ``metrics``: at log points the means since the last one, at evaluations the consensus model's metrics.
    Times leave out evaluations, checkpoints and the sampling of metrics. With SIGTERM or the first SIGINT the run ends
    at the next log point, with a checkpoint.

    Args:
        options: Those of the run.
        work: The script's part.
        state: As it is at ``position``; donated.
        position: Where to begin.
        metrics: Open for rows after ``position``.
        checkpoints: Where to save, or None.
        warn_unreadable: Told the indices of the first training examples that cannot be read.
    """
    total_steps = position.total_steps
    per_step = options.examples_per_step()
    watch, waits = _Stopwatch(position.seconds), [position.data_wait_seconds]
    unreadable = set(position.unreadable)
    pending: list[dict[str, jax.Array]] = []
    in_flight: deque[dict[str, jax.Array]] = deque()
    logged, apart, received = position, 0.0, 0
    announced = diverged = False

    def next_batch():
        begun = time.perf_counter()
        batch, lost = next(batches)
        # While a step is running nobody waits. If it has ended meanwhile, when is not known: all of it counts.
        if not in_flight or is_ready(in_flight[-1]["loss"]):
            waits.append(time.perf_counter() - begun)
        for index in set(lost.tolist()) - unreadable:
            unreadable.add(index)
            if len(unreadable) <= WARNINGS:
                warn_unreadable(index)
        return batch

    def save(position: Position) -> None:
        if checkpoints is not None:
            checkpoints.save(position, state._asdict())

    batches = work.batches(position.step)
    with Interrupts() as interrupts, report.progress_bar() as bar:
        task = bar.add_task(options.algorithm, total=total_steps, completed=position.step, status="")
        batch = next_batch() if position.step < total_steps else None
        del waits[1:]  # the first batch is part of getting started
        watch.start()
        for t in range(position.step, total_steps):
            done = t + 1
            evaluating = done % options.eval_every == 0 or done == total_steps
            saving = done == total_steps or (options.checkpoint_every > 0 and done % options.checkpoint_every == 0)
            logging = done % options.log_every == 0 or evaluating or saving
            if logging:  # before the round: after it, the distance at every sync round would be 0
                jax.block_until_ready(state)
                watch.stop()
                apart = work.distance(state)
                watch.start()
            state, step_metrics = work.step(state, batch, work.lateness(t))
            pending.append(step_metrics)
            in_flight.append(step_metrics)
            if interrupts.received is not None and not announced:
                announced = True
                bar.console.print(f"{interrupts.received.name}: stopping at the next log point; once more to stop now")
            if done < total_steps:
                batch = next_batch()
            if len(in_flight) > _IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            if not logging:
                continue
            jax.block_until_ready(state)
            watch.stop()
            window = _window(pending)
            pending = []
            received = distributed.highest(interrupts.received or 0)
            position = dataclasses.replace(
                position,
                step=done,
                examples=position.examples + (done - logged.step) * per_step,
                seconds=watch.seconds,
                data_wait_seconds=max(position.data_wait_seconds, distributed.highest(sum(waits))),
                late=position.late + int(window["late"].sum()),
                contributions=position.contributions + window["late"].size,
                max_staleness=max(position.max_staleness, int(window["staleness"].max())),
                unreadable=tuple(sorted(distributed.union(unreadable))),
            )
            rate = (position.examples - logged.examples) / (position.seconds - logged.seconds)
            waited = (position.data_wait_seconds - logged.data_wait_seconds) / (position.seconds - logged.seconds)
            metrics.write(
                step=done,
                examples=position.examples,
                seconds=position.seconds,
                **{name: float(value.mean()) for name, value in window.items() if name not in ("late", "staleness")},
                consensus_distance=apart,
                examples_per_second=rate,
                data_wait_fraction=waited,
                late_fraction=float(window["late"].mean()),
            )
            if not diverged and not np.isfinite([apart, window["loss"].mean()]).all():
                diverged = True
                report.warn(f"loss or parameters are not finite at step {done}: a lower --learning-rate may help")
            if evaluating:
                metrics.write(
                    step=done, examples=position.examples, seconds=position.seconds, eval=work.evaluate(state)
                )
            if saving or received:
                save(position)
            bar.update(task, completed=done, status=f"loss {window['loss'].mean():.4f}  {rate:,.0f} examples/s")
            logged = position
            if received and done < total_steps:
                break
            watch.start()
        close(batches)
        if checkpoints is not None:
            checkpoints.wait()
    return Outcome(state, position, received if position.step < total_steps else None)


def _window(pending: Sequence[Mapping[str, jax.Array]]) -> dict[str, np.ndarray]:
    """The metrics of some steps, each [steps, num_workers]."""
    fetched = distributed.fetch(pending)
    return {name: np.array([step[name] for step in fetched]) for name in fetched[0]}


def is_ready(array: Any) -> bool:
    """Whether an array has been computed; ``jax.Array.is_ready`` is there, but not declared."""
    return array.is_ready()


def close(iterator: Iterator[Any]) -> None:
    """Ends what loads batches in the background, if anything does."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
