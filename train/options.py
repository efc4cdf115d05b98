"""Options that all training scripts share, spelled the same everywhere."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from train import lateness, moments, stragglers
from train.budget import Length
from train.data.order import Sampling
from train.fields import Checked, declared, flag, option
from train.files import write_whole
from train.jsonable import from_json, same, to_json
from train.moments import Moments
from wagma_jax.algorithms import ALGORITHMS, DEFAULT, Settings, Strategy, build, find

if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(sorted(ALGORITHMS))]

if TYPE_CHECKING:

    class AlgorithmOptions(Checked):
        """The options that single algorithms have: one field for each such algorithm, of its name."""

else:
    AlgorithmOptions = dataclasses.make_dataclass(
        "AlgorithmOptions",
        [
            (name, algorithm.options, option(algorithm.options(), resume="restarts"))
            for name, algorithm in ALGORITHMS.items()
            if algorithm.options is not None
        ],
        bases=(Checked,),
        frozen=True,
    )

OPTIONS_FILE = "options.json"
DEFAULT_MEET_EVERY = 50  # where there are no sync rounds


@dataclasses.dataclass(frozen=True)
class RunOptions(AlgorithmOptions):
    """Which algorithm trains on how many workers, for how long, and where the results go.

    Attributes:
        algorithm: How the workers combine what they learn.
        transport: xla: all workers in one program, whose collectives average them; mpi: every process is a worker, and
            they exchange over MPI without waiting for late ones. Processes started by wagma launch or mpirun take mpi
            if this is left out.
        workers: Number of workers P. Up to 8 get a (virtual) device each, more are simulated by one vmap. Over MPI the
            number of processes.
        group_size: At most so many workers S in a group, where the algorithm has groups: there are ceil(P / S) of even
            sizes; None: about the square root of P.
        sync_period: Rounds between global means, unless the algorithm has one in every round; None: never.
        rotate: Whether groups change from round to round. Fixed ones mix models at sync rounds only.
        quorum: Over MPI, how many members of a group must arrive before it averages: 1, the first, waits for nobody.
        clock: Over MPI: step: every worker takes a step in every round. round: one that finds newer rounds complete
            jumps to them, so that a worker which is always slow takes fewer steps.
        on_nonfinite: Over MPI, what a worker contributes whose model is not finite. share: that, so that soon nobody's
            is. skip: the model that it has published before, with which it also goes on.
        moments: When the moments of the optimizer (those of Adam, the momentum of SGD) are averaged as the models are:
            own: never; sync: at sync rounds; round: in every round. second-sync and second-round: of Adam's, only the
            second. For algorithms that average models after the step.
        meet_every: Over MPI, rounds between meetings: barriers at which all workers can evaluate, save and stop. Sync
            rounds are meetings, too. None: no others, but every 50 rounds where there are no sync rounds.
        timeout_seconds: Over MPI, how long a worker waits for others before the run is given up.
        straggler: Over MPI, injected delays: none, rotating:SECONDS[:K] (K random workers a step), fixed:RANK:SECONDS,
            lognormal:SIGMA[:SECONDS] (all workers, of this median), or trace:FILE[:SECONDS] (step times of a real job,
            scaled to this median; files as train/traces/ has them). Drawn beforehand from the seed.
        straggler_kind: Whether delayed workers sleep, or compute and take a core meanwhile.
        late_probability: With xla, simulated lateness: the chance that a worker's contribution to a round is its
            previous model. Drawn beforehand from the seed. Algorithms that wait for everybody ignore it.
        late_trace: With xla, lateness as it was in a real run, in place of the above: a CSV file of rounds x workers,
            in which 0 is on time. Every worker follows one of them, from a round on; both are drawn from the seed.
        steps: Rounds to train for; 300 if neither this nor --epochs is given.
        epochs: How often to go through the training set, in place of --steps. With --clock round all workers stop at
            the first meeting at which they have seen so many examples together, whoever has seen which.
        batch_size: Examples per worker and step.
        sampling: whole: every worker draws from the whole training set; shard: from a part of its own. With --clock
            round a slow worker then goes through less of its part, whose examples count less.
        seed: Of the initial model, the data order, its augmentation, the delays and the lateness.
        out: Folder of the results; None: runs/NAME-ALGORITHM-TIME. It must not hold anything yet.
        resume_if_exists: For batch scripts that are queued again: start in --out if it is missing or empty, go on with
            the run that it holds, and end at once if that is complete.
        log_every: Steps between log points.
        eval_every: Steps between evaluations of the consensus model. Over MPI at the next meeting.
        checkpoint_every: Steps between checkpoints, beside the one at the end; 0: none at all. Over MPI at the next
            meeting.
        keep_checkpoints: How many of the newest checkpoints stay.
        resume: Folder of a run to go on with, from its newest checkpoint and with its options. Given beside it,
            --steps or --epochs move its end (and stretch the schedule of the rate); another number of workers,
            algorithm, batch size or the like makes it go on from the consensus model.
        evaluate: A run, one of its checkpoints, or an exported model: evaluate its consensus model, and nothing more.
        picture: Draw training.png at the end.
        tensorboard: Write the metrics for TensorBoard, too (needs the extra 'tensorboard').
        coordinator: HOST:PORT of process 0, where several processes train together and neither Slurm nor MPI tells.
        processes: Number of processes that train together; with --coordinator. 1 alone: this one, whatever Slurm or MPI
            tell.
        process_id: Which of the processes this is, from 0; with --coordinator.
    """

    algorithm: AlgorithmName = option(DEFAULT, resume="restarts")
    transport: Literal["xla", "mpi"] = option("xla", resume="restarts")
    workers: int = option(8, resume="restarts")
    group_size: int | None = option(None, resume="restarts")
    sync_period: int | None = option(10, resume="restarts")
    rotate: bool = option(True, resume="restarts")
    quorum: int = option(1, resume="restarts", mpi_only=True)
    clock: Literal["step", "round"] = option("step", resume="restarts", mpi_only=True)
    on_nonfinite: Literal["share", "skip"] = option("share", resume="restarts", mpi_only=True)
    moments: Moments = option("own", resume="restarts")
    meet_every: int | None = option(None, resume="free", mpi_only=True)
    timeout_seconds: float = option(600.0, resume="free")
    straggler: str = option("none", resume="free", mpi_only=True)
    straggler_kind: Literal["sleep", "compute"] = option("sleep", resume="free", mpi_only=True)
    late_probability: float = option(0.0, resume="restarts")
    late_trace: str | None = option(None, resume="restarts")
    steps: int | None = option(None, resume="free")
    epochs: float | None = option(None, resume="free")
    batch_size: int = option(16, resume="restarts")
    sampling: Sampling = option("whole", resume="restarts")
    seed: int = option(0)
    out: Path | None = option(None, resume="free")
    resume_if_exists: bool = option(False, resume="free")
    log_every: int = option(10, resume="free")
    eval_every: int = option(50, resume="free")
    checkpoint_every: int = option(100, resume="free")
    keep_checkpoints: int = option(2, resume="free")
    resume: Path | None = option(None, resume="free")
    evaluate: Path | None = option(None, resume="free")
    picture: bool = option(True, resume="free")
    tensorboard: bool = option(False, resume="free")
    coordinator: str | None = option(None, resume="free")
    processes: int | None = option(None, resume="free")
    process_id: int | None = option(None, resume="free")

    def check(self) -> None:
        """Raises ValueError for numbers out of range, before anything is loaded or compiled."""
        for name in (
            "workers", "steps", "batch_size", "quorum", "meet_every", "log_every", "eval_every", "keep_checkpoints"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}")
        for name in ("checkpoint_every", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{flag(name)} must not be negative, got {value}")
        self._check_algorithm()
        self._check_transport()
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"--epochs must be above 0, got {self.epochs}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"--steps {self.steps} and --epochs {self.epochs} say the same thing twice: drop one")
        if self.resume is not None and self.evaluate is not None:
            raise ValueError("--resume and --evaluate exclude each other: resume the run first, then evaluate it")
        if self.resume_if_exists and self.out is None:
            raise ValueError("--resume-if-exists needs to know which run: give --out, the same at every start")
        super().check()
        self._check_kept()

    def _check_kept(self) -> None:
        """A run that cannot read its options again could not be resumed."""
        hints = typing.get_type_hints(type(self))
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            try:
                kept = from_json(json.loads(json.dumps(to_json(value))), hints[name])
            except TypeError as error:
                kept = error
            if not same(kept, value):
                raise ValueError(
                    f"{flag(name)} {value!r} is not the same once it was kept as JSON ({kept!r}), so that no run could "
                    "go on with it: options are numbers, strings, paths, members of an Enum, and tuples, dataclasses "
                    "or None of these"
                )

    def _check_algorithm(self) -> None:
        for name, algorithm in ALGORITHMS.items():
            if algorithm.options is None or name == self.algorithm or getattr(self, name) == algorithm.options():
                continue
            raise ValueError(
                f"--{name}.* is for --algorithm {name}, got {getattr(self, name)} with --algorithm {self.algorithm}: "
                "leave it out, or choose that algorithm"
            )
        chosen = find(self.algorithm)
        if self.moments != "own" and not chosen.takes_means(getattr(self, chosen.name, None)):
            means = [name for name, each in ALGORITHMS.items() if each.takes_means(each.options and each.options())]
            got = f" with {getattr(self, chosen.name)}" if chosen.name in means else ""
            raise ValueError(
                f"--moments {self.moments} is for algorithms that average models after the step, got --algorithm "
                f"{chosen.name}{got}: leave it out, or use one of {', '.join(means)}"
            )
        if self.moments.endswith("sync") and self.sync_period is None:
            raise ValueError(f"--moments {self.moments} needs sync rounds, got --sync-period None: use --moments round")
        if self.transport == "mpi" and find(self.algorithm).mpi is None:
            raise ValueError(
                f"--algorithm {self.algorithm} runs in one program only, got --transport mpi: use --transport xla, or "
                f"one of {', '.join(name for name, each in ALGORITHMS.items() if each.mpi is not None)}"
            )

    def _check_transport(self) -> None:
        delays = stragglers.parse(self.straggler)
        delays.check(self.workers)
        if not self.timeout_seconds > 0:
            raise ValueError(f"--timeout-seconds must be above 0, got {self.timeout_seconds}: the default is 600")
        if self.on_nonfinite == "skip" and self.transport != "mpi":
            raise ValueError(
                "--on-nonfinite skip needs --transport mpi, where workers keep what they have published before: start "
                "with wagma launch"
            )
        if self.on_nonfinite == "skip" and ALGORITHMS[self.algorithm].exchanges != "models":
            raise ValueError(
                "--on-nonfinite skip is for algorithms that exchange models, got --algorithm "
                f"{self.algorithm}: leave it out"
            )
        lateness.check(self.late_probability, self.late_trace)
        if self.transport == "mpi":
            if self.late_probability or self.late_trace is not None:
                raise ValueError(
                    "--late-probability and --late-trace simulate lateness within one program, got one with "
                    "--transport mpi, where lateness is real: use --straggler"
                )
            if any(value is not None for value in (self.coordinator, self.processes, self.process_id)):
                raise ValueError("--coordinator, --processes and --process-id are for --transport xla: leave them out")
            return
        said = declared(type(self))
        for field in dataclasses.fields(self):
            if said[field.name]["mpi_only"] and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{flag(field.name)} {getattr(self, field.name)} needs --transport mpi, since all workers of one "
                    "program run in step: start with wagma launch, or use --late-probability for simulated lateness"
                )

    def length(self, units_per_step: int, units_per_epoch: int | None) -> Length:
        """How long the run is to be.

        Args:
            units_per_step: Of one worker's step.
            units_per_epoch: None where there are no epochs.

        Raises:
            ValueError: ``--epochs`` is given where there are none.
        """
        if self.epochs is not None and units_per_epoch is None:
            raise ValueError(f"--epochs {self.epochs} has no meaning here, where data has no end: use --steps")
        return Length(self.steps, self.epochs, self.workers * units_per_step, units_per_epoch, self.ends_by_units)

    def notes(self) -> list[str]:
        """What people should know of these options before the run."""
        if self.clock == "round" and self.sampling == "shard":
            return [
                "With --clock round slow workers take fewer steps, so that examples of their shards count less than "
                "others (--sampling whole avoids that); --epochs counts examples, whoever has taken them."
            ]
        return []

    def meeting_period(self, sync_period: int | None) -> int | None:
        """Over MPI, rounds between meetings that are no sync rounds; None: there are none but those.

        Args:
            sync_period: Of the algorithm; None for one without sync rounds.
        """
        if self.meet_every is None and sync_period is None:
            return DEFAULT_MEET_EVERY
        return self.meet_every

    @property
    def ends_by_units(self) -> bool:
        """Whether the run ends by the units that were really seen, and not after a number of rounds."""
        return self.transport == "mpi" and self.clock == "round" and self.epochs is not None

    def settings(self, **others: Any) -> Settings:
        """What the algorithm is built from."""
        return Settings(
            num_workers=self.workers,
            group_size=self.group_size,
            sync_period=self.sync_period,
            rotate=self.rotate,
            simulate_lateness=self.late_probability > 0 or self.late_trace is not None,
            quorum=self.quorum,
            clock=self.clock,
            on_nonfinite=self.on_nonfinite,
            policy=moments.policy(self.moments),
            timeout_seconds=self.timeout_seconds,
            options=getattr(self, self.algorithm, None),
            **others,
        )

    def strategy(self, **others: Any) -> Strategy:
        """The algorithm as one program runs it; ValueError for settings that it cannot have."""
        return build(self.algorithm, self.settings(**others))

    def averaging_schedule(self) -> Any:
        """Who averages with whom; ValueError for settings that the algorithm cannot have."""
        schedule = find(self.algorithm).schedule
        if schedule is None or self.transport != "mpi":
            return self.strategy().schedule
        return schedule(self.settings())

    def save(self, out: Path) -> None:
        """Writes the options to a run's folder, for :meth:`load`; without those that are of this start alone."""
        kept = dataclasses.replace(
            self, resume=None, resume_if_exists=False, coordinator=None, processes=None, process_id=None
        )
        write_whole(out / OPTIONS_FILE, json.dumps(kept.to_json(), indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        """The options as JSON has them, for :meth:`from_json`."""
        return to_json(self)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The options of the run in a folder.

        Raises:
            ValueError: There is none, or it is of another version or script.
        """
        path = folder / OPTIONS_FILE
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{folder} is not the folder of a run, {OPTIONS_FILE} cannot be read ({error}): give the folder that "
                "--out named"
            ) from None
        except TypeError as error:
            raise ValueError(
                f"the run in {folder} is of another version of this project or of another script ({error}): go on "
                "with the one that it was begun with, or start a new run"
            ) from None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` returned; TypeError for options that do not exist."""
        return from_json(values, cls)

    def setup(self) -> dict[str, Any]:
        """What cannot change within a run without starting again from its consensus model."""
        values = json.loads(json.dumps(self.to_json()))  # as a checkpoint keeps them
        return {name: values[name] for name, said in declared(type(self)).items() if said["resume"] == "restarts"}

    def setup_changes(self, saved: Mapping[str, Any]) -> list[str]:
        """How the set-up differs from a saved one, for people."""
        return [
            f"{flag(name)} {saved.get(name)} -> {value}"
            for name, value in sorted(self.setup().items())
            if saved.get(name) != value
        ]

    def check_resumes(self, saved: "RunOptions") -> None:
        """Raises ValueError if these options would make another run of a saved one."""
        for name, said in declared(type(self)).items():
            part = said["same"] or (lambda value: value)
            mine, its = part(getattr(self, name)), part(getattr(saved, name))
            if not same(mine, its) and said["resume"] == "fixed":
                raise ValueError(
                    f"{flag(name)} is {its} in the run that --resume names, got {mine}: leave it "
                    "out, or start a new run"
                )
        if self.out not in (None, self.resume):
            raise ValueError(
                f"the results of --resume {self.resume} go on in its own folder: leave out --out {self.out}"
            )
