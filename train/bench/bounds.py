"""What the delays of a case allow: its reference run gives the computation, its straggler the delays."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from train import stragglers
from train.bench import virtual
from train.bench.virtual import Rule, Wait
from train.options import RunOptions
from train.stragglers import Straggler
from train.task import Task
from wagma_jax.bipartite import PairSchedule
from wagma_jax.gossip import GossipSchedule
from wagma_jax.schedule import GroupSchedule


class Bounds(NamedTuple):
    """Examples per second of all workers together.

    Attributes:
        ideal: If nobody ever waited: without any communication.
        rule: If workers waited as their algorithm has them wait, and communication took no time; None: not known.
    """

    ideal: float
    rule: float | None


def bounds(options: RunOptions, task: Task, reference: Mapping[str, Any]) -> Bounds | None:
    """The bounds of a run.

    Args:
        options: Of the run.
        task: Its task.
        reference: Summary of the run without communication with the same seed and straggler.
    """
    straggler = stragglers.parse(options.straggler, task.steps_per_delay)
    length = options.length(task.units_per_step, task.units_per_epoch)
    times = step_times(straggler, options.seed, reference, length.total_steps())
    if times is None:
        return None
    rule = None
    if options.clock == "step":
        # where it ends by units all the same, steps are cut short, by which is not known beforehand
        found = None if options.ends_by_units else rule_of(options)
        if found is not None:
            rule = times.size / virtual.elapsed(times, found)
    elif options.ends_by_units and (period := _sync_period(options)) is not None:
        done = virtual.elapsed_by_round_clock(times, period, math.ceil(length.units() / task.units_per_step))
        rule = done.steps / done.seconds
    units = task.units_per_step
    return Bounds(virtual.free(times) * units, None if rule is None else rule * units)


def step_times(straggler: Straggler, seed: int, reference: Mapping[str, Any], steps: int) -> np.ndarray | None:
    """Seconds of each step of each worker, computation and delay; float64 [steps, num_workers]. None: not known.

    Args:
        straggler: Who is late.
        seed: Of the delays.
        reference: Summary of a run in which nobody waited, of the same straggler and seed; it may be shorter.
        steps: How many.
    """
    work, counts = reference.get("work_seconds") or [None], reference["local_steps"]
    if None in work or min(counts) < 1:
        return None
    work, counts = np.array(work, float), np.array(counts)
    delays = np.array([straggler.delays(seed, step, len(work)) for step in range(max(steps, *counts))])
    before = np.array([delays[:count, worker].sum() for worker, count in enumerate(counts)])
    if straggler.whole_steps and straggler.period == 1:
        return delays[:steps] * np.maximum(work / before, 1.0)  # computation that takes longer than its time
    return delays[:steps] + np.maximum(work - before, 0.0) / counts


def rule_of(options: RunOptions) -> Rule | None:
    """Whom the workers of a run wait for with ``clock="step"``; None: not known."""
    schedule = options.averaging_schedule()
    if isinstance(schedule, PairSchedule):
        return lambda worker, round_: None
    if isinstance(schedule, GossipSchedule):
        sources = lambda worker, round_: (worker, *schedule.receives_from(worker, round_))
        return lambda worker, round_: Wait(sources(worker, round_), len(sources(worker, round_)))
    if not isinstance(schedule, GroupSchedule):
        return None

    def rule(worker: int, round_: int) -> Wait | None:
        if schedule.is_sync(round_):
            return Wait(tuple(range(schedule.num_workers)), schedule.num_workers)
        group = schedule.group_of(worker, round_)
        return Wait(group, min(options.quorum, len(group))) if options.quorum > 1 else None

    return rule


def _sync_period(options: RunOptions) -> int | None:
    return options.averaging_schedule().sync_period
