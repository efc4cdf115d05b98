"""All that a bench has found, as JSON: every run, and every row of the table. Tables and pictures are made of this."""

import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from train.bench import bounds as bounds_of
from train.bench import measures, running
from train.bench.bounds import Bounds, Reference
from train.bench.cases import Case, Tasks, parsed
from train.bench.measures import Measured, Point
from train.bench.plan import REFERENCE, Plan
from train.bench.running import Stopped
from train.bench.statistics import difference, spread
from train.options import RunOptions
from train.task import Score

_UNEQUAL = 0.02  # more than this apart, runs have not seen equally many examples


class _Run(NamedTuple):
    """A finished run of an arm."""

    case: Case
    options: RunOptions
    measured: Measured
    bounds: Bounds | None


def collect(plan: Plan, cases: Sequence[Case], out: Path, stopped: Sequence[Stopped] = ()) -> dict[str, Any]:
    """Measures whatever is finished.

    Args:
        plan: What was to be compared.
        cases: Its runs.
        out: Their folder.
        stopped: Those that came to no result.
    """
    tasks = Tasks()
    runs = _finished(cases, out, tasks)
    first = {one.workload: tasks(one) for one in reversed(cases)}
    workloads: dict[str, dict[str, Any]] = {}
    for label, task in first.items():
        mine = [run for run in runs if run.case.workload == label]
        target = plan.workloads[label].target
        if target is None:
            base = [run.measured.score for run in mine if run.case.arm == plan.baseline]
            target = measures.worst(base, task.score)
        workloads[label] = {"name": task.name, "unit": task.unit, "score": task.score._asdict(), "target": target}
    rows = []
    for workload in plan.workloads:
        for scenario in plan.scenarios:
            there = [r for r in runs if (r.case.workload, r.case.scenario) == (workload, scenario)]
            rows += [
                _row(plan, workload, scenario, arm, there, first[workload].score, workloads[workload]["target"])
                for arm in plan.arms
            ]
    return {
        "name": plan.name,
        "title": plan.title,
        "baseline": plan.baseline,
        "extra": list(plan.extra),
        "seeds": list(plan.seeds),
        "more_seeds": {label: list(one.more_seeds) for label, one in plan.arms.items() if one.more_seeds},
        "scenarios": {label: _described(plan, label) for label in plan.scenarios},
        "machine": machine(),
        "workloads": workloads,
        "rows": rows,
        "stopped": [{"run": one.case.title, "reason": one.reason, "failed": one.failed} for one in stopped],
        "runs": [_json(run, first[run.case.workload].score, workloads[run.case.workload]["target"]) for run in runs],
    }


def machine() -> dict[str, Any]:
    """What times depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def _finished(cases: Sequence[Case], out: Path, tasks: Tasks) -> list[_Run]:
    references = {
        (one.workload, one.scenario, one.seed): Reference(running.outcome(one, out)[0], tasks(one))
        for one in cases
        if one.arm == REFERENCE and running.is_finished(one, out)
    }
    runs = []
    for one in cases:
        if one.arm == REFERENCE or not running.is_finished(one, out):
            continue
        task, options = tasks(one), parsed(one)
        measured = measures.measure(*running.outcome(one, out), task.score)
        reference = references.get((one.workload, one.scenario, one.seed))
        found = None if reference is None else bounds_of.bounds(options, task, reference)
        runs.append(_Run(one, options, measured, found))
    return runs


def _has_rate(options: RunOptions) -> bool:
    return vars(options).get("learning_rate") is not None


def _described(plan: Plan, label: str) -> str:
    scenario = plan.scenarios[label]
    words = [f"{name} {value}" for name, value in scenario.options.items()]
    if scenario.network is not None:
        words.append(f"two hosts, {scenario.network.rate} between them")
    return ", ".join(words) or "nobody is late"


def _row(
    plan: Plan, workload: str, scenario: str, arm: str, there: Sequence[_Run], score: Score, target: float | None
) -> dict[str, Any]:
    """A row of the table: one arm in one scenario, over all seeds."""
    mine = {run.case.seed: run for run in there if run.case.arm == arm}
    base = {run.case.seed: run for run in there if run.case.arm == plan.baseline}
    measured = [run.measured for run in mine.values()]
    examples = statistics.median([run.measured.examples for run in base.values()] or [0])
    times = [None if target is None else measures.reached(one.curve, score, target) for one in measured]
    over = lambda value: _spread([value(run) for run in mine.values()])
    of = lambda which: over(
        lambda run: _share(run.measured.throughput, None if run.bounds is None else which(run.bounds))
    )
    row: dict[str, Any] = {
        "workload": workload,
        "scenario": scenario,
        "arm": arm,
        "seeds": sorted(mine),
        "learning_rate": sorted(
            {vars(run.options)["learning_rate"] for run in mine.values() if _has_rate(run.options)}
        ),
        "throughput": over(lambda run: run.measured.throughput),
        "of_ideal": of(lambda found: found.ideal),
        "of_rule": of(lambda found: found.rule),
        "waited": over(lambda run: run.measured.waited),
        "worked": over(lambda run: run.measured.worked),
        "goodput": over(lambda run: run.measured.goodput),
        "late": over(lambda run: run.measured.late),
        "seconds": over(lambda run: run.measured.seconds),
        "examples": over(lambda run: run.measured.examples),
        "unequal": any(abs(one.examples - examples) > _UNEQUAL * examples for one in measured) if base else False,
        "score": over(lambda run: run.measured.score),
        "reached": sum(point is not None for point in times),
        "seconds_to_target": _spread([None if point is None else point.seconds for point in times]),
        "examples_to_target": _spread([None if point is None else point.examples for point in times]),
    }
    if arm != plan.baseline:
        row |= _beside(mine, base, score)
    return row


def _beside(mine: Mapping[int, _Run], base: Mapping[int, _Run], score: Score) -> dict[str, Any]:
    """An arm beside the baseline, paired by seed."""
    pairs = [(mine[seed].measured, base[seed].measured) for seed in sorted(mine.keys() & base.keys())]
    known = [(a.score, b.score) for a, b in pairs if a.score is not None and b.score is not None]
    apart = difference([a for a, _ in known], [b for _, b in known])
    found: dict[str, Any] = {"faster": _spread([a.throughput / b.throughput for a, b in pairs])}
    if apart is not None:
        found["difference"] = {**apart._asdict(), "noise": apart.within_noise(score.unit == "%")}
    return found


def _json(run: _Run, score: Score, target: float | None) -> dict[str, Any]:
    case, one = run.case, run.measured
    point: Point | None = None if target is None else measures.reached(one.curve, score, target)
    return {
        "workload": case.workload,
        "scenario": case.scenario,
        "arm": case.arm,
        "seed": case.seed,
        "command": [case.module, *case.words],
        "throughput": one.throughput,
        "ideal": None if run.bounds is None else run.bounds.ideal,
        "rule": None if run.bounds is None else run.bounds.rule,
        "waited": one.waited,
        "worked": one.worked,
        "goodput": one.goodput,
        "late": one.late,
        "staleness": one.staleness,
        "seconds": one.seconds,
        "examples": one.examples,
        "score": one.score,
        "seconds_to_target": None if point is None else point.seconds,
        "examples_to_target": None if point is None else point.examples,
        "curve": [list(point) for point in one.curve],
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    found = spread(values)
    return None if found is None else found._asdict()


def _share(value: float, whole: float | None) -> float | None:
    return None if not whole else value / whole
