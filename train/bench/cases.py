"""The runs of a plan: what each is called, which command starts it, and whether its options are sound."""

import dataclasses
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train import run
from train.bench.plan import REFERENCE, Arm, Network, Options, Plan
from train.fields import flag
from train.options import RunOptions
from train.task import Task
from wagma_jax.algorithms import DEFAULT

# Groups of one exchange nothing between global means, and there are none.
_ALONE = {"algorithm": DEFAULT, "group_size": 1, "sync_period": "None", "clock": "step", "quorum": 1}
_QUIET = {"transport": "mpi", "workers": 4, "picture": False, "checkpoint_every": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a plan.

    Attributes:
        workload: Label.
        scenario: Label.
        arm: Label.
        seed: Of the run.
        module: Of the training script.
        options: All but the folder; as :data:`train.bench.plan.Options`.
        network: None: the machine's own.
        extra: Words at the end of the command line.
    """

    workload: str
    scenario: str
    arm: str
    seed: int
    module: str
    options: Options
    network: Network | None = None
    extra: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.workload} / {self.scenario} / {self.arm} / seed {self.seed}"

    @property
    def words(self) -> list[str]:
        """The options as words of a command line."""
        return [*words_of(self.options), *self.extra]

    def folder(self, out: Path) -> Path:
        """Where its run is kept. Other options make another folder, so that finished runs are found again."""
        network = None if self.network is None else dataclasses.astuple(self.network)
        everything = json.dumps([self.module, self.words, network])
        digest = hashlib.sha256(everything.encode()).hexdigest()[:8]
        return out / slug(self.workload) / slug(self.scenario) / f"{slug(self.arm)}-{self.seed}-{digest}"


def words_of(options: Options) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def slug(label: str) -> str:
    """A label as the name of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-") or "x"


def cases(plan: Plan, rates: Mapping[str, Mapping[str, float]]) -> list[Case]:
    """All runs of a plan, those of the first seed first.

    Args:
        plan: The plan.
        rates: Tuned learning rates by workload and arm; where there is none, that of the options holds.
    """
    found = []
    for seed in plan.all_seeds:
        arms = [label for label in plan.arms if seed in plan.seeds_of(label)]
        for workload in plan.workloads:
            for scenario in plan.scenarios:
                if plan.reference and seed in plan.seeds and _transport(plan, workload) == "mpi":
                    found.append(_reference(plan, workload, scenario, seed, rates))
                found += [case(plan, workload, scenario, label, seed, rates) for label in arms]
    return found


def case(
    plan: Plan, workload: str, scenario: str, arm: str, seed: int, rates: Mapping[str, Mapping[str, float]]
) -> Case:
    """One run of a plan; for the arguments see :class:`Case` and :func:`cases`."""
    chosen = plan.arms[arm].tuned_as or arm
    rate = rates.get(workload, {}).get(chosen)
    return _case(plan, workload, scenario, arm, plan.arms[arm], seed, {} if rate is None else {"learning_rate": rate})


def _reference(plan: Plan, workload: str, scenario: str, seed: int, rates: Mapping[str, Mapping[str, float]]) -> Case:
    """The run without communication, which may be shorter."""
    rate = rates.get(workload, {}).get(plan.baseline)
    options: dict[str, Any] = {} if rate is None else {"learning_rate": rate}
    length = plan.workloads[workload].options
    if "steps" in length:
        options["steps"] = max(round(plan.reference * length["steps"]), 1)
    if "epochs" in length:
        options["epochs"] = plan.reference * length["epochs"]
    # one meeting, at the end: between two the workers wait for nobody
    options |= {"meet_every": 1_000_000_000, "eval_every": 1_000_000_000}
    return _case(plan, workload, scenario, REFERENCE, Arm(_ALONE), seed, options)


def _case(plan: Plan, workload: str, scenario: str, label: str, arm: Arm, seed: int, more: Options) -> Case:
    work, where = plan.workloads[workload], plan.scenarios[scenario]
    options = {**_QUIET, **work.options, **where.options, **arm.options, **more, "seed": seed}
    return Case(workload, scenario, label, seed, work.module, options, where.network, plan.extra)


def _transport(plan: Plan, workload: str) -> str:
    """Where processes are no workers, nobody waits that a reference could spare it."""
    return plan.workloads[workload].options.get("transport", _QUIET["transport"])


def load(module: str) -> run.Workload[Any]:
    """The workload of a training script.

    Raises:
        ValueError: There is none.
    """
    try:
        return importlib.import_module(module).WORKLOAD
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module} is no training script ({error}): name a module that has a WORKLOAD") from None


def parsed(case: Case) -> RunOptions:
    """The options of a case as its script reads them, which has been checked.

    Raises:
        ValueError: There are no such options, or they contradict each other.
    """
    words = words_of({name: value for name, value in case.options.items() if name != "seed"})
    try:
        options = _parsed(case.module, *words, *case.extra)
        options.check()
        options.averaging_schedule()
    except ValueError as error:
        raise ValueError(f"{case.title}: {error}") from None
    except SystemExit:  # the parser has said why
        raise ValueError(f"{case.title}: its options are none of {case.module}, as is said above") from None
    return dataclasses.replace(options, seed=case.seed)


@functools.lru_cache(maxsize=256)
def _parsed(module: str, *words: str) -> RunOptions:
    return run.parse(load(module), words)


def task_of(case: Case) -> Task:
    """The task of a case; nothing is compiled."""
    return load(case.module).create(parsed(case))


def check(cases: Sequence[Case]) -> None:
    """Raises ValueError if options are not those of the scripts; of every arm and scenario one seed is looked at."""
    seen = set()
    for one in cases:
        if (one.workload, one.scenario, one.arm) not in seen:
            seen.add((one.workload, one.scenario, one.arm))
            parsed(one)
