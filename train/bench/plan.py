"""What is to be compared: workloads, arms, scenarios and seeds, from a TOML file or from the command line."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Options = Mapping[str, Any]
"""Options of a training script, spelled as its command line spells them, with _ or - and without the dashes in front:
``{"group_size": 2, "sgp.overlap": 1}``. ``True`` and ``False`` stand for --NAME and --no-NAME."""

REFERENCE = "no communication"
"""The arm that every plan has beside its own: nobody exchanges anything, so that nobody ever waits."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        module: Of the training script: "train.NAME".
        options: Of all its runs.
        target: The score whose time is measured; None: the worst final score of the baseline's runs.
    """

    module: str
    options: Options = dataclasses.field(default_factory=dict)
    target: float | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """An algorithm with its settings.

    Attributes:
        options: ``algorithm`` and others.
        tuned_as: The arm whose learning rate it takes; None: it is tuned by itself.
        more_seeds: It is trained with these as well as with those of the plan.
    """

    options: Options
    tuned_as: str | None = None
    more_seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """A slow wire between two hosts on this machine, each of which has half of the workers.

    Attributes:
        rate: Of each direction, as ``tc`` spells it: "200mbit".
        latency: How long ``tc`` lets a packet wait for its turn at most: "50ms".
    """

    rate: str
    latency: str = "50ms"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Under which conditions the workers train.

    Attributes:
        options: ``straggler`` and others.
        network: None: the machine's own.
    """

    options: Options = dataclasses.field(default_factory=dict)
    network: Network | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        name: Of its files.
        title: For people.
        workloads: By label.
        arms: By label.
        scenarios: By label.
        seeds: Each is trained with in every arm.
        baseline: The arm that the others are compared with.
        rates: Learning rates that tuning tries; empty: rates are those of the options.
        tuning_seed: With which it tries them.
        tuning_scenario: In which it tries them; a file names one of its scenarios. Without: nobody is late.
        rates_of: The plan whose rates are taken; None: its own.
        limit_seconds: After which a run is given up.
        reference: The share of the run's length for which the reference runs; 0: there is none.
        extra: Words at the end of every command line.
    """

    name: str
    title: str
    workloads: Mapping[str, Workload]
    arms: Mapping[str, Arm]
    scenarios: Mapping[str, Scenario]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""
    rates: tuple[float, ...] = ()
    tuning_seed: int = 100
    tuning_scenario: Scenario = Scenario()
    rates_of: str | None = None
    limit_seconds: float = 600.0
    reference: float = 0.34
    extra: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks what does not need the workloads' options."""
        for what, found in (("workloads", self.workloads), ("arms", self.arms), ("scenarios", self.scenarios)):
            if not found:
                raise ValueError(f"a plan needs {what}, got none: name at least one")
        if not self.seeds:
            raise ValueError("a plan needs seeds, got none: name at least one")
        for label in self.arms:
            seeds = self.seeds_of(label)
            if len(set(seeds)) < len(seeds) or min(seeds) < 0:
                raise ValueError(
                    f"seeds, with the more_seeds of arm {label!r}, must be different integers that are not negative, "
                    f"got {list(seeds)}"
                )
        if self.rates and self.tuning_seed in self.all_seeds:
            raise ValueError(
                f"tuning_seed must be none of the seeds, got {self.tuning_seed}: rates are not chosen by the runs that "
                "they are compared in"
            )
        if REFERENCE in self.arms:
            raise ValueError(f"the arm {REFERENCE!r} is that of the bench itself: choose another name")
        if not self.baseline:
            object.__setattr__(self, "baseline", next(iter(self.arms)))
        _check_names("baseline", [self.baseline], self.arms)
        if any(not 0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"rates must be above 0, got {list(self.rates)}")
        if not 0 <= self.reference <= 1:
            raise ValueError(f"reference must be a share between 0 and 1, got {self.reference}")

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """With which an arm is trained."""
        return (*self.seeds, *self.arms[arm].more_seeds)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """With which any arm is trained, those of every arm first."""
        return tuple(dict.fromkeys([*self.seeds, *(seed for label in self.arms for seed in self.seeds_of(label))]))

    def only(self, arms: Sequence[str] = (), scenarios: Sequence[str] = (), workloads: Sequence[str] = ()) -> "Plan":
        """The part of it with these labels; all where none are given.

        Raises:
            ValueError: There is no such label.
        """
        parts: dict[str, Any] = {}
        for what, wanted in (("arms", arms), ("scenarios", scenarios), ("workloads", workloads)):
            has = getattr(self, what)
            _check_names(what, wanted, has)
            parts[what] = {label: one for label, one in has.items() if not wanted or label in wanted}
        baseline = self.baseline if self.baseline in parts["arms"] else ""
        return dataclasses.replace(self, **parts, baseline=baseline)


def _check_names(what: str, wanted: Sequence[str], has: Mapping[str, Any]) -> None:
    for name in wanted:
        if not isinstance(name, str) or name not in has:
            raise ValueError(f"{what} names {name!r}, which is none of {', '.join(map(repr, has))}: name one of these")


def read(path: Path) -> Plan:
    """The plan in a TOML file, whose name is the plan's.

    The tables ``[workloads.LABEL]``, ``[arms.LABEL]`` and ``[scenarios.LABEL]`` hold options beside the fields of
    :class:`Workload`, :class:`Arm` and :class:`Scenario`, and ``[options]`` those of all runs. An arm's algorithm is
    its label unless it says another. All else is as in :class:`Plan`.

    Raises:
        ValueError: It cannot be read, or is no plan.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the plan {path} cannot be read ({error}): give a TOML file") from None
    try:
        return from_table(path.stem, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_table(name: str, table: Mapping[str, Any]) -> Plan:
    """The plan that a file's table describes.

    Raises:
        ValueError: It is none.
    """
    table = dict(table)
    common = flat(table.pop("options", {}))
    workloads, arms, scenarios = (_tables(table, what) for what in ("workloads", "arms", "scenarios"))
    fields = {field.name for field in dataclasses.fields(Plan)} - {"name", "extra", "workloads", "arms", "scenarios"}
    unknown = sorted(table.keys() - fields)
    if unknown:
        raise ValueError(f"a plan has no {', '.join(unknown)}: it has {', '.join(sorted(fields))}, options, workloads, "
                         "arms and scenarios")  # fmt: skip
    for what, kind in (("seeds", int), ("rates", (int, float))):
        if what in table:
            table[what] = _numbers(what, table[what], kind)
    scenarios = {label: _scenario(label, one) for label, one in scenarios.items()}
    if (label := table.pop("tuning_scenario", None)) is not None:
        _check_names("tuning_scenario", [label], scenarios)
        table["tuning_scenario"] = scenarios[label]
    made = Plan(
        name=name,
        title=table.pop("title", name),
        workloads={label: _workload(label, one, common) for label, one in workloads.items()},
        arms={label: arm(label, one) for label, one in arms.items()},
        scenarios=scenarios,
        **table,
    )
    if made.rates_of is None:  # another plan may have other arms
        _check_names("tuned_as", [arm.tuned_as for arm in made.arms.values() if arm.tuned_as], made.arms)
    return made


def _tables(table: dict[str, Any], what: str) -> dict[str, dict[str, Any]]:
    found = table.pop(what, {})
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f"{what} must be tables, got {found!r}: write [{what}.LABEL] and options below it")
    return {label: dict(one) for label, one in found.items()}


def _workload(label: str, table: dict[str, Any], common: Options) -> Workload:
    module = table.pop("module", f"train.{label}")
    target = table.pop("target", None)
    return Workload(module, {**common, **flat(table)}, target)


def arm(label: str, table: Mapping[str, Any]) -> Arm:
    """An arm from its options; its algorithm is its label unless they name another."""
    options = dict(table)
    tuned_as, more = options.pop("tuned_as", None), _numbers("more_seeds", options.pop("more_seeds", []), int)
    return Arm({"algorithm": label, **flat(options)}, tuned_as, more)


def _numbers(what: str, found: Any, kind: Any) -> tuple[Any, ...]:
    """A list of numbers of a file as a tuple; ValueError for anything else."""
    if not isinstance(found, list) or not all(isinstance(one, kind) and not isinstance(one, bool) for one in found):
        raise ValueError(f"{what} must be a list of numbers, got {found!r}: write for example {what} = [1, 2]")
    return tuple(found)


def _scenario(label: str, table: dict[str, Any]) -> Scenario:
    network = table.pop("network", None)
    try:
        return Scenario(flat(table), None if network is None else Network(**network))
    except TypeError:
        raise ValueError(
            f"the network of scenario {label!r} has a rate and may have a latency, got {network!r}: write for example "
            'network = {rate = "200mbit"}'
        ) from None


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options without nested tables: the option of a table's option has both names, with a dot between them."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        name = prefix + name.replace("-", "_")
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def from_words(
    workloads: Sequence[str], algorithms: Sequence[str], stragglers: Sequence[str], seeds: Sequence[int], workers: int
) -> Plan:
    """The plan of a command line.

    Args:
        workloads: Modules of training scripts.
        algorithms: NAME, or NAME:OPTION=VALUE,OPTION=VALUE.
        stragglers: As --straggler takes them.
        seeds: May be empty.
        workers: Processes of each run.

    Raises:
        ValueError: They are no plan.
    """
    labels = {module: module.rpartition(".")[2] for module in workloads}
    if len(set(labels.values())) < len(workloads):  # so are they in the table
        labels = {module: module for module in workloads}
    return Plan(
        name="bench",
        title=f"{', '.join(workloads)}",
        workloads={labels[module]: Workload(module, {"workers": workers}) for module in workloads},
        arms={word: _arm_of_word(word) for word in algorithms},
        scenarios={word: Scenario({"straggler": word}) for word in stragglers or ("none",)},
        seeds=tuple(seeds) or (0,),
    )


def _arm_of_word(word: str) -> Arm:
    name, _, settings = word.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",") if setting]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"an algorithm is NAME or NAME:OPTION=VALUE,OPTION=VALUE, got {word!r}")
    return arm(name, {option: value for option, _, value in pairs})
