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


class Reference(NamedTuple):
    """A run in which nobody waited.

    Attributes:
        summary: Of the run.
        task: Its task: a step of it may be another amount of work than a step of the run that it is for.
    """

    summary: Mapping[str, Any]
    task: Task


def bounds(options: RunOptions, task: Task, reference: Reference) -> Bounds | None:
    """The bounds of a run.

    Args:
        options: Of the run.
        task: Its task.
        reference: With the same seed and straggler.
    """
    straggler, others = (stragglers.parse(options.straggler, each.steps_per_delay) for each in (task, reference.task))
    found = computation(others, options.seed, reference.summary)
    if found is None:
        return None
    found = found._replace(seconds=found.seconds * task.units_per_step / reference.task.units_per_step)
    length = options.length(task.units_per_step, task.units_per_epoch)
    times = step_times(straggler, options.seed, found, length.total_steps())
    rule = None
    if options.clock == "step":
        # where it ends by units all the same, steps are cut short, by which is not known beforehand
        waits = None if options.ends_by_units else rule_of(options)
        if waits is not None:
            rule = times.size / virtual.elapsed(times, waits)
    elif options.ends_by_units and (period := _sync_period(options)) is not None:
        done = virtual.elapsed_by_round_clock(times, period, math.ceil(length.units() / task.units_per_step))
        rule = done.steps / done.seconds
    units = task.units_per_step
    return Bounds(virtual.free(times) * units, None if rule is None else rule * units)


class Computation(NamedTuple):
    """How long workers compute.

    Attributes:
        seconds: In a step, beside its delay; float64 [num_workers].
        stretch: Times a delay of a trace, which is the time of a whole step, that steps take; float64 [num_workers].
    """

    seconds: np.ndarray
    stretch: np.ndarray


def computation(straggler: Straggler, seed: int, summary: Mapping[str, Any]) -> Computation | None:
    """How long the workers of a run in which nobody waited have computed; None: not known.

    Args:
        straggler: Who was late.
        seed: Of the delays.
        summary: Of the run.
    """
    work, counts = summary.get("work_seconds") or [None], summary["local_steps"]
    if None in work or min(counts) < 1:
        return None
    delays = _delays(straggler, seed, max(counts), len(work))
    before = np.array([delays[:count, worker].sum() for worker, count in enumerate(counts)])
    if straggler.whole_steps and straggler.period == 1:
        stretch = np.maximum(work / before, 1.0)  # computation that takes longer than its time
        return Computation(np.zeros(len(work)), stretch)
    return Computation(np.maximum(work - before, 0.0) / counts, np.ones(len(work)))


def step_times(straggler: Straggler, seed: int, found: Computation, steps: int) -> np.ndarray:
    """Seconds of each step of each worker, computation and delay; float64 [steps, num_workers].

    Args:
        straggler: Who is late.
        seed: Of the delays.
        found: From :func:`computation`, its seconds for as much work as a step is here.
        steps: How many.
    """
    return _delays(straggler, seed, steps, len(found.seconds)) * found.stretch + found.seconds


def _delays(straggler: Straggler, seed: int, steps: int, num_workers: int) -> np.ndarray:
    return np.array([straggler.delays(seed, step, num_workers) for step in range(steps)])


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
    seconds = getattr(options.settings().options, "quorum_seconds", None)

    def rule(worker: int, round_: int) -> tuple[Wait, ...]:
        if schedule.is_sync(round_):
            return (Wait(tuple(range(schedule.num_workers)), schedule.num_workers),)
        group = schedule.group_of(worker, round_)
        quorum = min(options.quorum, len(group))
        return (Wait(group, quorum, seconds=seconds),) if options.quorum > 1 else ()

    return rule


def _sync_period(options: RunOptions) -> int | None:
    return options.averaging_schedule().sync_period
