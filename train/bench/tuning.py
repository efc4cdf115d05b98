"""The learning rate that suits each arm: the plan's rates, one seed, nobody late unless the plan says so."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train import console
from train.bench import running
from train.bench.cases import Case, case, task_of
from train.bench.plan import Plan
from train.files import write_whole
from train.task import Score

_TUNING = "tuning"
Rates = dict[str, dict[str, dict[str, Any]]]
"""By workload and arm: ``{"rate": the best, "edge": whether it is at the end of the grid, "scores": by rate}``."""


def tuning_cases(plan: Plan) -> dict[tuple[str, str, float], Case]:
    """The runs that tuning needs, by workload, arm and rate."""
    tried = dataclasses.replace(plan, scenarios={_TUNING: plan.tuning_scenario})
    return {
        (workload, arm, rate): dataclasses.replace(
            case(tried, workload, _TUNING, arm, plan.tuning_seed, {workload: {arm: rate}}),
            arm=f"{arm} at rate {rate:g}",
        )
        for workload in plan.workloads
        for arm, settings in plan.arms.items()
        if settings.tuned_as is None
        for rate in plan.rates
    }


def choose(scores: Mapping[float, float | None], score: Score) -> float | None:
    """The rate with the best score; a run whose score is no number is the worst. None if there is no score at all."""
    known = {rate: value for rate, value in scores.items() if value is not None}
    sign = 1 if score.higher else -1
    return max(known, key=lambda rate: sign * known[rate], default=None)


def chosen(plan: Plan, cases: Mapping[tuple[str, str, float], Case], out: Path) -> Rates:
    """The best rate of every arm of which a run is finished, and has a score."""
    found: Rates = {}
    for workload in plan.workloads:
        for arm in plan.arms:
            mine = {rate: one for (w, a, rate), one in cases.items() if (w, a) == (workload, arm)}
            done = {rate: one for rate, one in mine.items() if running.is_finished(one, out)}
            if not done:
                continue
            score = task_of(next(iter(done.values()))).score
            scores = {rate: running.outcome(one, out)[0]["eval"].get(score.name) for rate, one in done.items()}
            best = choose(scores, score)
            if best is None:
                console.warn(f"  {workload} / {arm} came to no score at any of the rates: try lower ones")
                continue
            edge = len(scores) > 1 and best in (min(scores), max(scores))
            entry = {"rate": best, "edge": edge, "scores": {f"{rate:g}": value for rate, value in scores.items()}}
            found.setdefault(workload, {})[arm] = entry
    return found


def rates_file(plan: Plan, results: Path) -> Path:
    """Where a plan's rates are kept."""
    return results / f"{plan.rates_of or plan.name}-rates.json"


def save(path: Path, rates: Rates) -> None:
    """Writes rates, beside those of other workloads and arms that are there already."""
    kept: Rates = json.loads(path.read_text()) if path.exists() else {}
    for workload, arms in rates.items():
        kept.setdefault(workload, {}).update(arms)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(kept, indent=2) + "\n")


def known(plan: Plan, results: Path) -> dict[str, dict[str, float]]:
    """The rates of a plan's arms that have been tuned, by workload and arm."""
    path = rates_file(plan, results)
    kept: Rates = json.loads(path.read_text()) if path.exists() else {}
    return {workload: {arm: entry["rate"] for arm, entry in arms.items()} for workload, arms in kept.items()}


def load(plan: Plan, results: Path) -> dict[str, dict[str, float]]:
    """As :func:`known`, of a plan of which no arm lacks a rate.

    Raises:
        ValueError: Rates of some arms have not been tuned yet.
    """
    rates = known(plan, results)
    if not plan.rates and plan.rates_of is None:
        return rates
    wanted: Sequence[str] = [label for label, arm in plan.arms.items() if arm.tuned_as is None]
    named = [arm.tuned_as for arm in plan.arms.values() if arm.tuned_as is not None]
    missing = [
        f"{workload} / {arm}"
        for workload in plan.workloads
        for arm in dict.fromkeys([*wanted, *named])
        if arm not in rates.get(workload, {})
    ]
    if missing:
        raise ValueError(
            f"{rates_file(plan, results)} has no learning rates for {', '.join(missing)}: add --tune, which finds them"
        )
    return rates
