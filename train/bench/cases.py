"""The runs of a plan: what each is called, which command starts it, and whether its options are sound."""

import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train import run, stragglers
from train.bench.plan import REFERENCE, Arm, Network, Options, Plan
from train.budget import DEFAULT_STEPS
from train.fields import flag
from train.options import RunOptions
from train.task import Task
from wagma_jax.algorithms import DEFAULT

# Options that change neither what a task is, nor how long a step of it takes.
_NOT_OF_TASKS = frozenset(
    {
        "algorithm", "group_size", "sync_period", "rotate", "quorum", "clock", "on_nonfinite", "moments", "meet_every",
        "eval_every", "log_every", "straggler", "straggler_kind", "learning_rate", "seed",
    }
)  # fmt: skip
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
        """Where its run is kept. Other options, or delays in a file, make another folder; finished runs are found."""
        network = None if self.network is None else dataclasses.astuple(self.network)
        parts = [self.module, self.words, network, *_digests(self.words)]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
        return out / slug(self.workload) / slug(self.scenario) / f"{slug(self.arm)}-{self.seed}-{digest}"


def _digests(words: Sequence[str]) -> list[str]:
    """Of the user's files that say who is late; those that come with the project do not change."""
    files = [stragglers.parse(word).file for word in words if word.startswith("trace:")]
    files += [word for flag, word in itertools.pairwise(words) if flag == "--late-trace"]
    return [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in files if Path(name).is_file()]


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
                mine = [case(plan, workload, scenario, label, seed, rates) for label in arms]
                # where processes are no workers, nobody waits that a reference could spare it
                if plan.reference and mine and parsed(mine[0]).transport == "mpi":
                    found.append(_reference(plan, workload, scenario, seed, rates))
                found += mine
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
    # one meeting, at the end: between two the workers wait for nobody
    options: dict[str, Any] = {} if rate is None else {"learning_rate": rate}
    options |= {"meet_every": 1_000_000_000, "eval_every": 1_000_000_000}
    made = lambda **more: _case(plan, workload, scenario, REFERENCE, Arm(_ALONE), seed, {**options, **more})
    whole = parsed(made())
    if whole.epochs is not None:
        shorter: Options = {"epochs": plan.reference * whole.epochs}
    else:
        shorter = {"steps": max(round(plan.reference * (whole.steps or DEFAULT_STEPS)), 1)}
    found = made(**shorter)
    if any(getattr(parsed(found), name) != value for name, value in shorter.items()):  # the words at the end are later
        found = dataclasses.replace(found, extra=(*found.extra, *words_of(shorter)))
    return found


def _case(plan: Plan, workload: str, scenario: str, label: str, arm: Arm, seed: int, more: Options) -> Case:
    work, where = plan.workloads[workload], plan.scenarios[scenario]
    options = {**_QUIET, **work.options, **where.options, **arm.options, **more, "seed": seed}
    return Case(workload, scenario, label, seed, work.module, options, where.network, plan.extra)


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


class Tasks:
    """The tasks of cases. Making one may read files, and tell of them: those of alike cases are made once."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def __call__(self, case: Case) -> Task:
        """The task of a case, or one that is alike but for seed, algorithm and delays."""
        key = self.key(case)
        if key not in self._tasks:
            self._tasks[key] = task_of(case)
        return self._tasks[key]

    @staticmethod
    def key(case: Case) -> str:
        """What is equal for cases of alike tasks."""
        return repr([case.module, case.extra, {k: v for k, v in case.options.items() if k not in _NOT_OF_TASKS}])


def check(cases: Sequence[Case]) -> None:
    """Raises ValueError if options are not those of the scripts; of every arm and scenario one seed is looked at."""
    seen = set()
    for one in cases:
        if (one.workload, one.scenario, one.arm) not in seen:
            seen.add((one.workload, one.scenario, one.arm))
            parsed(one)
