"""Options that all training scripts share, spelled the same everywhere, and how a run keeps them."""

import argparse
import dataclasses
import itertools
import json
import math
import os
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from train import distributed, stragglers
from train.data import Sampling
from train.files import write_whole
from wagma_jax.algorithms import ALGORITHMS, Settings, Strategy, build

if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(sorted(ALGORITHMS))]

OPTIONS_FILE = "options.json"
DEFAULT_STEPS = 300

# What a run may change when it is resumed without becoming another one.
_FREE = {
    "steps", "epochs", "out", "resume", "evaluate", "preset", "log_every", "eval_every", "checkpoint_every",
    "keep_checkpoints", "tensorboard", "loader_threads", "loader_processes", "coordinator", "processes", "process_id",
    "straggler", "straggler_kind", "timeout_seconds",
}  # fmt: skip
# What it may change at the price of starting again from the consensus model.
_RESTARTING = {
    "algorithm", "transport", "workers", "group_size", "sync_period", "quorum", "clock", "batch_size", "sampling",
    "late_probability",
}  # fmt: skip

# What has a meaning over MPI alone.
_OVER_MPI = {"quorum", "clock", "straggler", "straggler_kind"}

OptionsType = TypeVar("OptionsType", bound="RunOptions")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Which algorithm trains on how many workers, for how long, and where the results go.

    Attributes:
        algorithm: How the workers combine what they learn.
        transport: xla: all workers in one program, whose collectives average them; mpi: every process is a worker, and
            they exchange over MPI without waiting for late ones. Processes started by wagma launch or mpirun take mpi
            if this is left out.
        workers: Number of workers P. Up to 8 get a (virtual) device each, more are simulated by one vmap. Over MPI the
            number of processes.
        group_size: At most so many workers S in a group (wagma only): there are ceil(P / S) groups of even sizes; None:
            about the square root of P.
        sync_period: Rounds between global means (not for allreduce, where every step is one); None: never.
        quorum: Over MPI, how many members of a group must arrive before it averages: 1, the first, waits for nobody.
        clock: Over MPI: step: every worker takes a step in every round. round: one that finds newer rounds complete
            jumps to them, so that a worker which is always slow takes fewer steps.
        timeout_seconds: Over MPI, how long a worker waits for others before the run is given up.
        straggler: Over MPI, injected delays: none, rotating:SECONDS[:K] (K random workers a step), fixed:RANK:SECONDS,
            or lognormal:SIGMA[:SECONDS] (all workers, of this median). Drawn beforehand from the seed.
        straggler_kind: Whether delayed workers sleep, or compute and take a core meanwhile.
        late_probability: With xla, simulated lateness: the chance that a worker's contribution to a round is its
            previous model. Drawn beforehand from the seed. Algorithms that wait for everybody ignore it.
        steps: Rounds to train for; 300 if neither this nor --epochs is given.
        epochs: How often to go through the training set, in place of --steps. With --clock round all workers stop at
            the first sync round at which they have seen so many examples together.
        batch_size: Examples per worker and step.
        sampling: whole: every worker draws from the whole training set; shard: from a part of its own.
        seed: Of the initial model, the data order, its augmentation and the lateness.
        out: Folder of the results; None: runs/NAME-ALGORITHM-TIME. It must not hold anything yet.
        log_every: Steps between log points.
        eval_every: Steps between evaluations of the consensus model.
        checkpoint_every: Steps between checkpoints, beside the one at the end; 0: none at all.
        keep_checkpoints: How many of the newest checkpoints stay.
        resume: Folder of a run to go on with, from its newest checkpoint and with its options. Given beside it,
            --steps or --epochs move its end (and stretch the schedule of the rate); another number of workers,
            algorithm, batch size or the like makes it go on from the consensus model.
        evaluate: A run, one of its checkpoints, or an exported model: evaluate its consensus model, and nothing more.
        tensorboard: Write the metrics for TensorBoard, too (needs the extra 'tensorboard').
        loader_threads: Threads that load data, in each process that does.
        loader_processes: Processes that load data, for files on a host with many cores; 0: the threads of this one do.
        coordinator: HOST:PORT of process 0, where several processes train together and neither Slurm nor MPI tells.
        processes: Number of processes that train together; with --coordinator.
        process_id: Which of the processes this is, from 0; with --coordinator.
    """

    algorithm: AlgorithmName = "wagma"
    transport: Literal["xla", "mpi"] = "xla"
    workers: int = 8
    group_size: int | None = None
    sync_period: int | None = 10
    quorum: int = 1
    clock: Literal["step", "round"] = "step"
    timeout_seconds: float = 600.0
    straggler: str = "none"
    straggler_kind: Literal["sleep", "compute"] = "sleep"
    late_probability: float = 0.0
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    sampling: Sampling = "whole"
    seed: int = 0
    out: Path | None = None
    log_every: int = 10
    eval_every: int = 50
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    resume: Path | None = None
    evaluate: Path | None = None
    tensorboard: bool = False
    loader_threads: int = 8
    loader_processes: int = 0
    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None

    def check(self) -> None:
        """Raises ValueError for numbers out of range, before anything is loaded or compiled."""
        for name in (
            "workers", "steps", "batch_size", "quorum", "log_every", "eval_every", "keep_checkpoints", "loader_threads"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}")
        for name in ("checkpoint_every", "loader_processes", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{flag(name)} must not be negative, got {value}")
        if not 0 <= self.late_probability < 1:
            raise ValueError(f"--late-probability must be in [0, 1), got {self.late_probability}")
        self._check_transport()
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"--epochs must be above 0, got {self.epochs}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"--steps {self.steps} and --epochs {self.epochs} say the same thing twice: drop one")
        if self.resume is not None and self.evaluate is not None:
            raise ValueError("--resume and --evaluate exclude each other: resume the run first, then evaluate it")

    def _check_transport(self) -> None:
        delays = stragglers.parse(self.straggler)
        delays.check(self.workers)
        if not self.timeout_seconds > 0:
            raise ValueError(f"--timeout-seconds must be above 0, got {self.timeout_seconds}: the default is 600")
        if self.transport == "mpi":
            if self.late_probability:
                raise ValueError(
                    "--late-probability simulates lateness within one program, got it with --transport mpi, where "
                    "lateness is real: use --straggler"
                )
            if self.clock == "round" and self.sampling == "shard":
                raise ValueError(
                    "--clock round lets slow workers take fewer steps, so that examples of their shards would count "
                    "less: use --sampling whole"
                )
            if self.clock == "round" and self.epochs is not None and self.sync_period is None:
                raise ValueError(
                    "--epochs with --clock round ends at a sync round, where all learn how many examples they have "
                    "seen, got --sync-period None: set a sync period, or use --steps"
                )
            if any(value is not None for value in (self.coordinator, self.processes, self.process_id)):
                raise ValueError("--coordinator, --processes and --process-id are for --transport xla: leave them out")
            return
        for field in dataclasses.fields(self):
            name = field.name
            if name in _OVER_MPI and getattr(self, name) != field.default:
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)} needs --transport mpi, since all workers of one program run "
                    "in step: start with wagma launch, or use --late-probability for simulated lateness"
                )

    def examples_per_step(self) -> int:
        """What all workers see in one step."""
        return self.workers * self.batch_size

    def total_steps(self, num_examples: int, first_step: int = 0, first_example: int = 0) -> int:
        """The step at which the run ends.

        Args:
            num_examples: In the training set.
            first_step: Steps that were done before the run had this many workers.
            first_example: Examples that were seen in them.
        """
        if self.epochs is None:
            return DEFAULT_STEPS if self.steps is None else self.steps
        left = self.epochs * num_examples - first_example
        return max(first_step + math.ceil(left / self.examples_per_step()), 1)

    def step_budget(self, num_examples: int, first_example: int = 0) -> int | None:
        """Local steps of all workers together after which a run ends; None if it ends after a number of rounds.

        Args:
            num_examples: In the training set.
            first_example: Examples that were seen before the run had this many workers.
        """
        if self.transport != "mpi" or self.clock != "round" or self.epochs is None:
            return None
        return math.ceil((self.epochs * num_examples - first_example) / self.batch_size)

    def share_done(self, step: int, examples: int, num_examples: int) -> float:
        """Which share of the training, as these options have it, so many steps with so many examples are."""
        if self.epochs is None:
            return min(step / self.total_steps(num_examples), 1.0)
        return min(examples / (self.epochs * num_examples), 1.0)

    def settings(self, **others: Any) -> Settings:
        """What the algorithm is built from."""
        return Settings(
            num_workers=self.workers,
            group_size=self.group_size,
            sync_period=self.sync_period,
            simulate_lateness=self.late_probability > 0,
            quorum=self.quorum,
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
            **others,
        )

    def strategy(self, axis_name: str) -> Strategy:
        """The algorithm, ready for a training step."""
        return build(self.algorithm, self.settings(axis_name=axis_name))

    def join_processes(self) -> int:
        """Joins the other processes of the run, if there are any; the number of processes."""
        return distributed.initialize(self.coordinator, self.processes, self.process_id)

    def make_out(self, name: str) -> Path:
        """Creates the folder of the results; ValueError if it holds anything already. To be called by all processes."""
        name = f"{name}-{self.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
        made = distributed.agreed(lambda: _new_folder(Path("runs") / name, self.out) if distributed.is_first() else "")
        return Path(distributed.from_first(str(made)))

    def save(self, out: Path) -> None:
        """Writes the options to a run's folder, for :meth:`load`; without those that are of this start alone."""
        kept = dataclasses.replace(self, resume=None, coordinator=None, processes=None, process_id=None)
        write_whole(out / OPTIONS_FILE, json.dumps(kept.to_json(), indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        """The options as JSON has them, for :meth:`from_json`."""
        return {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(self).items()}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The options of the run in a folder.

        Raises:
            ValueError: There is none.
        """
        path = folder / OPTIONS_FILE
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{folder} is not the folder of a run, {OPTIONS_FILE} cannot be read ({error}): give the folder that "
                "--out named"
            ) from None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` returned; TypeError for options that do not exist."""
        hints = typing.get_type_hints(cls)
        return cls(**{name: _from_json(value, hints.get(name)) for name, value in values.items()})

    def setup(self) -> dict[str, Any]:
        """What cannot change within a run without starting again from its consensus model."""
        return {name: getattr(self, name) for name in sorted(_RESTARTING)}

    def setup_changes(self, saved: Mapping[str, Any]) -> list[str]:
        """How the set-up differs from a saved one, for people."""
        return [
            f"{flag(name)} {saved.get(name)} -> {value}"
            for name, value in self.setup().items()
            if saved.get(name) != value
        ]

    def check_resumes(self, saved: "RunOptions") -> None:
        """Raises ValueError if these options would make another run of a saved one."""
        for field in dataclasses.fields(self):
            mine, its = getattr(self, field.name), getattr(saved, field.name)
            if field.name == "dataset":  # the same data may lie elsewhere now
                mine, its = (str(name).partition(":")[0] for name in (mine, its))
            if mine != its and field.name not in _FREE | _RESTARTING:
                raise ValueError(
                    f"{flag(field.name)} is {its} in the run that --resume names, got {mine}: leave it "
                    "out, or start a new run"
                )
        if self.out not in (None, self.resume):
            raise ValueError(
                f"the results of --resume {self.resume} go on in its own folder: leave out --out {self.out}"
            )


def flag(name: str) -> str:
    """How the command line spells an option."""
    return f"--{name.replace('_', '-')}"


def _new_folder(default: Path, wanted: Path | None) -> Path:
    """Makes the folder that is wanted, or else a new one, and claims it."""
    numbered = (default.with_name(f"{default.name}-{number}") for number in itertools.count(1))
    for out in itertools.chain([default], numbered) if wanted is None else [wanted]:
        if _claim(out):
            return out
    raise ValueError(
        f"--out {wanted} exists and is not empty: choose another folder, remove it, or go on with the run in it by "
        "--resume"
    )


def _claim(out: Path) -> bool:
    """Makes a folder, with an empty file of options as the sign of its owner; False if it holds anything already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            return False
        (out / OPTIONS_FILE).open("x").close()
    except OSError as problem:
        if isinstance(problem, FileExistsError) and out.is_dir():  # another run was faster
            return False
        raise ValueError(f"--out {out} cannot be made ({problem}): choose a folder that can") from None
    return True


def parse(
    cls: type[OptionsType],
    prog: str,
    presets: Mapping[str, Mapping[str, Any]],
    cli: Callable[..., OptionsType],
    arguments: Sequence[str],
) -> OptionsType:
    """Reads a command line whose defaults come from ``--preset``, or from the run of ``--resume`` or ``--evaluate``.

    Args:
        cls: The script's options.
        prog: How the script is called.
        presets: By name, the defaults that differ from the usual ones.
        cli: ``tyro.cli``.
        arguments: The words of the command line.

    Raises:
        ValueError: A preset or run that does not exist, or both.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--resume", "--evaluate", "--transport"):
        first.add_argument(name, nargs="?")
    try:
        found, _ = first.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    given = [name for name, value in vars(found).items() if value is not None and name != "transport"]
    if len(given) > 1:
        raise ValueError(f"--{' and --'.join(given)} exclude each other: each says where the options come from")
    default = cls()
    if found.preset in presets:  # tyro says what is wrong with the others
        default = dataclasses.replace(default, **presets[found.preset])
    elif found.resume:
        default = dataclasses.replace(cls.load(Path(found.resume)), out=Path(found.resume))
    elif found.evaluate:
        try:
            default = cls.from_json(find_options(Path(found.evaluate)))
        except TypeError as error:
            raise ValueError(f"{found.evaluate} is of another script or version ({error})") from None
    if any(word.split("=")[0] in ("--epochs", "--steps") for word in arguments):  # one takes the other's place
        default = dataclasses.replace(default, steps=None, epochs=None)
    default = dataclasses.replace(default, preset=None, resume=None, evaluate=None)
    if found.transport == "xla":  # what a run over MPI had has no meaning within one program
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        default = dataclasses.replace(default, **{name: fields[name] for name in _OVER_MPI})
    size = distributed.mpi_processes(os.environ)
    if found.transport == "mpi" and (launcher := distributed.launched(os.environ)) is not None:
        size = launcher.processes  # of srun too, which may or may not speak MPI
    over_mpi = default.transport == "mpi" if found.resume else size > 1 and not found.evaluate
    if found.transport != "xla" and (over_mpi or found.transport == "mpi"):
        workers = default.workers if found.resume and size == 1 else size
        default = dataclasses.replace(default, transport="mpi", workers=workers)
    return cli(cls, prog=prog, description=str(cls.__doc__).partition("\n")[0], args=list(arguments), default=default)


def find_options(path: Path) -> dict[str, Any]:
    """The options of the run that a path belongs to: its folder, a checkpoint in it, or an exported model.

    Raises:
        ValueError: There are none.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give a run, one of its checkpoints, or an exported model")
    for folder in (path, *path.absolute().parents[:2]):
        for name in (OPTIONS_FILE, "description.json"):
            try:
                values = json.loads((folder / name).read_text())
            except (OSError, json.JSONDecodeError):
                continue
            return values if name == OPTIONS_FILE else values["options"]
    raise ValueError(
        f"{path} belongs to no run: neither it nor the folders above it have {OPTIONS_FILE} or description.json; give "
        "a run, one of its checkpoints, or an exported model"
    )


def _from_json(value: Any, hint: Any) -> Any:
    if isinstance(value, str) and Path in typing.get_args(hint):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
