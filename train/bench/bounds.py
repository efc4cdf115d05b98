"""What the delays of a case allow: its reference run gives the computation, its straggler the delays."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from train import stragglers
from train.bench import virtual
from train.bench.virtual import Event, Rule, Wait
from train.options import RunOptions
from train.stragglers import Straggler
from train.task import Task
from wagma_jax import algorithms
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
    """Whom the workers of a run wait for with ``clock="step"``; None: not known.

    For their neighbours or groups, at sync rounds for all, and at the meetings between these for all.
    """
    schedule = options.averaging_schedule()
    if isinstance(schedule, PairSchedule):
        found: Rule = lambda worker, round_: ()
    elif isinstance(schedule, GossipSchedule):
        found = _of_gossip(options, schedule)
    elif isinstance(schedule, GroupSchedule):
        found = _of_groups(options, schedule)
    else:
        return None
    everyone, every = tuple(range(options.workers)), options.meeting_period(schedule.sync_period)
    meeting = (Wait(everyone, options.workers),)
    return lambda worker, t: meeting if every is not None and (t + 1) % every == 0 else found(worker, t)


def _of_gossip(options: RunOptions, schedule: GossipSchedule) -> Rule:
    mixing = algorithms.find(options.algorithm).mixing
    assert mixing is not None, "all that gossip say what they push"
    pushed = mixing(options.settings().options)
    event = Event.BEGUN if pushed.early else Event.ARRIVED_BEFORE if pushed.lag else Event.ARRIVED

    def rule(worker: int, round_: int) -> tuple[Wait]:
        sources = worker, *schedule.receives_from(worker, round_ - pushed.lag)
        return (Wait(sources, len(sources), event),)

    return rule


def _of_groups(options: RunOptions, schedule: GroupSchedule) -> Rule:
    def rule(worker: int, round_: int) -> tuple[Wait, ...]:
        if schedule.is_sync(round_):
            return (Wait(tuple(range(schedule.num_workers)), schedule.num_workers),)
        group = schedule.group_of(worker, round_)
        return (Wait(group, min(options.quorum, len(group))),) if options.quorum > 1 else ()

    return rule


def _sync_period(options: RunOptions) -> int | None:
    return options.averaging_schedule().sync_period
