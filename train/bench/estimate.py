"""How long the runs of a plan will take, from those that are finished, or from a few steps and the delays."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import stragglers
from train.bench import running, virtual
from train.bench.bounds import rule_of
from train.bench.cases import Case, Tasks, load, parsed
from train.learner import Learner
from train.transports.local import LocalPlace
from wagma_jax import algorithms

START_SECONDS = 12.0  # for processes to start, compile and end; of a small model, on two cores for four processes
_STEPS = 4  # that are timed


class Estimates:
    """Estimates seconds of cases, and learns from those that have been run.

    Args:
        out: Folder of the plan's runs.
        measure: Whether a step of each workload of which nothing has run yet is compiled and timed.
    """

    def __init__(self, out: Path, measure: bool = True):
        self._out, self._measure = out, measure
        self._steps: dict[str, float] = {}
        self._tasks = Tasks()

    def seconds(self, case: Case, known: Sequence[Case]) -> float | None:
        """How long a case takes from start to end; None if that is not known.

        Args:
            case: Which.
            known: Cases from which it may be concluded, the finished among them: those of the same arm and scenario
                first, then those of the scenario, then of the workload.
        """
        alike = [
            lambda other: (other.workload, other.scenario, other.arm) == (case.workload, case.scenario, case.arm),
            lambda other: (other.workload, other.scenario) == (case.workload, case.scenario),
        ]
        for is_like in alike:
            times = [took for other in known if is_like(other) and (took := running.took(other, self._out)) is not None]
            if times:
                return statistics.mean(times)
        if self._measure:
            return self._by_simulation(case)
        times = [took for other in known if (took := running.took(other, self._out)) is not None]
        return statistics.mean(times) if times else None

    def total(self, cases: Sequence[Case], known: Sequence[Case]) -> float | None:
        """How long the cases take that are not finished; None if that is not known."""
        each = [self.seconds(case, known) for case in cases if not running.is_finished(case, self._out)]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def _by_simulation(self, case: Case) -> float:
        """From the time of a step, the delays, and whom the workers wait for, if that is known."""
        options = parsed(case)
        task = self._tasks(case)
        step = self._step_seconds(case, options, task)
        length = options.length(task.units_per_step, task.units_per_epoch)
        straggler, rounds = stragglers.parse(options.straggler, task.steps_per_delay), length.total_steps()
        if options.transport != "mpi":
            return START_SECONDS + rounds * step * options.workers
        step *= max(options.workers / (os.cpu_count() or 1), 1.0)
        delays = np.array([straggler.delays(options.seed, round_, options.workers) for round_ in range(rounds)])
        times = np.maximum(delays, step) if straggler.whole_steps else delays + step
        rule = rule_of(options) if options.clock == "step" else None
        return START_SECONDS + (times.size / virtual.free(times) if rule is None else virtual.elapsed(times, rule))

    def _step_seconds(self, case: Case, options: Any, task: Any) -> float:
        """The time of a worker's step with a core of its own."""
        key = self._tasks.key(case)
        if key not in self._steps:
            learner = Learner(
                task, load(case.module).optimizer(options), algorithms.find(options.algorithm).exchanges, 0
            )
            model = jax.tree.map(jnp.asarray, task.init(0))
            # compiled, as in a run: else leaves could share buffers, which feeds may donate
            carry = jax.jit(learner.carry, static_argnums=1)(jnp.int32(0), 0)
            optimizer = learner.optimizer_state(model)
            feed = task.feed(LocalPlace(), 0, 0)
            step = jax.jit(learner.before)
            took = 0.0
            for count in range(_STEPS):
                batch, carry = feed.next(count, model, carry)
                arguments = model, optimizer, carry, batch.arrays, np.int32(count), np.int32(0), np.float32(0)
                jax.block_until_ready(step(*arguments))  # compiles, if there was no batch of this shape yet
                begun = time.perf_counter()
                jax.block_until_ready(step(*arguments))
                took += time.perf_counter() - begun
            self._steps[key] = took / _STEPS
            feed.close()
        return self._steps[key]


def shown(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60} h {minutes % 60:02d} min"
