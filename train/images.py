"""Trains a ResNet on images: ``python -m train.images --algorithm wagma --workers 8``."""

import contextlib
import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

import wagma_jax as wagma
from train import checkpoints as ckpt
from train import distributed, image_workers, loop, processes, recipe, report, resume
from train.classification import (
    Evaluation,
    Network,
    TrainState,
    create_network,
    input_shapes,
    inputs,
    train_step,
    unreadable,
)
from train.data import Augmentation, Dataset, TooManyUnreadableError, catalog, pipeline
from train.devices import local_rows, place, replicated, sharded, worker_mesh
from train.options import RunOptions, flag
from train.options import parse as parse_options
from train.presets import PRESETS
from wagma_jax.algorithms import Strategy, find

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(sorted(PRESETS))]

AXIS = "data"
CHECKPOINTS = "checkpoints"
CONSENSUS = "consensus"
SUMMARY = "summary.json"

_LATENESS = 3  # beside the seed, in what lateness is drawn from; the data order has the numbers below


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions):
    """Train a ResNet on images with several workers, in one program or in one process each.

    Attributes:
        preset: Take the defaults of all options from a lab record (train/presets.py).
        dataset: digits (8x8, inside of scikit-learn); fashion-mnist[:DIR] (python -m train.fetch gets it);
            imagefolder:DIR with DIR/train/CLASS/* and DIR/val/CLASS/*; or tfrecord:GLOB.
        model: Which ResNet.
        image_size: Height and width to which images from files are cropped.
        channels: Of images from files: 3 (RGB) or 1 (grey).
        num_classes: Of a large tfrecord data set, which does not tell it.
        augment: What happens to training images: nothing, random flips, or random crops and flips (resized crops of
            files, shifts of images in memory); None: crop-flip for files, nothing in memory.
        scale_learning_rate: Multiply the learning rate by workers * batch size / 256.
    """

    preset: PresetName | None = None
    dataset: str = "digits"
    model: Literal["resnet_tiny", "resnet_small", "resnet18", "resnet50"] = "resnet_tiny"
    image_size: int = 224
    channels: int = 3
    num_classes: int | None = None
    augment: Augmentation | None = None
    scale_learning_rate: bool = False

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        super().check()
        self.check_recipe()
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be split into --accumulate {self.accumulate} equal parts: use "
                "a multiple of that"
            )

    def load_dataset(self) -> Dataset:
        """The data set; ValueError if something is wrong with it."""
        return catalog.load(
            self.dataset,
            augment=self.augment,
            image_size=self.image_size,
            channels=self.channels,
            num_classes=self.num_classes,
        )

    def local_optimizer(self, progress: recipe.Progress) -> optax.GradientTransformation:
        """The local optimizer of a worker."""
        rate = self.learning_rate * (self.examples_per_step() / 256 if self.scale_learning_rate else 1)
        return recipe.create_optimizer(dataclasses.replace(self, learning_rate=rate), progress)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that has been checked, and of which nothing has been compiled.

    Attributes:
        options: Its options.
        strategy: The algorithm.
        data: The data set.
        network: The model.
        mesh: Where the workers are.
        position: Where to begin.
        out: The folder of the results.
        state: The state of all workers at ``position`` (over MPI of this one); None for a new run.
        peers: Over MPI the other workers, else None.
    """

    options: Options
    strategy: Strategy
    data: Dataset
    network: Network
    mesh: Mesh | None
    position: ckpt.Position
    out: Path
    state: TrainState | processes.State | None
    peers: processes.Peers | None = None

    @property
    def progress(self) -> recipe.Progress:
        """Which share of the training is done after how many steps."""
        return recipe.Progress(self.position.total_steps, self.position.first_step, self.position.first_share)

    @property
    def order(self) -> pipeline.Order:
        """Who takes which example when; steps count from the one at which the run got this number of workers."""
        return pipeline.Order(
            len(self.data.train),
            self.options.workers,
            self.options.batch_size,
            self.options.seed,
            self.options.sampling,
            self.position.first_example,
        )


def prepare(options: Options) -> Prepared:
    """Checks everything that can be checked before anything is compiled or overwritten, and makes the results' folder.

    Raises:
        ValueError: Options out of range, something wrong with the data, a checkpoint of another model, or ``--out``
            holds something already.
    """
    if options.transport == "mpi":
        return image_workers.prepare(options)
    options.check()
    num_processes = options.join_processes()
    mesh = worker_mesh(options.workers, AXIS, num_processes)
    strategy, data, network = distributed.agreed(lambda: check_alone(options))
    shared = {flag(name): value for name, value in options.to_json().items() if name != "process_id"}
    distributed.check_same(shared | {"training examples": len(data.train), "classes": data.classes})
    num_examples = len(data.train)
    found = None
    if options.resume is not None:
        parts = state_parts(options, network, strategy.init)
        found = resume.restore(options, options.resume / CHECKPOINTS, parts, num_examples, mesh, AXIS)
    position = planned(options, num_examples, None if found is None else found[0])
    state = None if found is None else TrainState(**found[1])
    out = options.make_out("images") if options.resume is None else options.resume
    if distributed.is_first():
        options.save(out)
    return Prepared(options, strategy, data, network, mesh, position, out, state)


def planned(options: Options, num_examples: int, found: ckpt.Position | None) -> ckpt.Position:
    """Where a run begins and ends.

    Args:
        options: Its options.
        num_examples: In the training set.
        found: The position of the checkpoint that it goes on from, if there is one.

    Raises:
        ValueError: It is at its end already.
    """
    position = ckpt.Position(setup=options.setup(), workers=options.workers, num_examples=num_examples)
    if found is not None:
        position = found
    total = options.total_steps(num_examples, position.first_step, position.first_example)
    # what was interrupted after its last step may still be evaluated, exported and summarized
    ended = options.resume is None or (options.resume / SUMMARY).exists() or position.first_step == position.step
    budget = options.step_budget(num_examples, position.first_example)
    if budget is not None:
        if ended and position.examples - position.first_example >= budget * options.batch_size:
            raise ValueError(
                f"the run in {options.resume} has seen {position.examples} examples, which is its end: raise --epochs "
                "to train on"
            )
        return dataclasses.replace(position, total_steps=total)
    if position.step >= total and ended:
        raise ValueError(
            f"the run in {options.resume} is at step {position.step} of {total}, which is its end: raise --steps or "
            "--epochs to train on"
        )
    return dataclasses.replace(position, total_steps=max(total, position.step))


def check_alone(options: Options) -> tuple[Strategy, Dataset, Network]:
    """What one process can check by itself."""
    strategy = options.strategy(AXIS)
    if options.tensorboard:
        report.check_tensorboard()
    if options.resume is not None:
        saved = Options.load(options.resume)
        options.check_resumes(saved)
        if saved.checkpoint_every == 0:
            raise ValueError(f"the run in {options.resume} was made with --checkpoint-every 0: start a new run")
    data = options.load_dataset()
    if options.examples_per_step() > len(data.train):
        raise ValueError(
            f"--workers {options.workers} times --batch-size {options.batch_size} is more than the {len(data.train)} "
            f"training examples of {options.dataset}: lower one of them"
        )
    pipeline.Order(len(data.train), options.workers, options.batch_size, options.seed, options.sampling)
    return strategy, data, create_network(options.model, options.precision, data)


def state_parts(options: Options, network: Network, strategy_state: Callable[[Any], Any]) -> resume.StateParts:
    """How the state of a worker is made, its algorithm's by ``strategy_state``."""
    optimizer = options.local_optimizer(recipe.Progress(1))  # its state does not depend on how long it is to train
    return resume.StateParts(network.like, lambda model: optimizer.init(model["params"]), strategy_state)


def train(options: Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole run: trains, evaluates, and writes to ``--out``; see the README for what.

    Returns:
        The summary, and the rows of the metrics file.

    Raises:
        ValueError: As :func:`prepare`.
    """
    return run(prepare(options))


def run(prepared: Prepared) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As :func:`train`, with what :func:`prepare` returned.

    Raises:
        loop.Interrupted: A signal asked the run to stop; it can be resumed.
    """
    options, data, out, position = prepared.options, prepared.data, prepared.out, prepared.position
    report.say(prepared.strategy.schedule.describe().splitlines()[0])
    report.say("compiling ...")
    if prepared.peers is not None:
        return image_workers.run(prepared)
    evaluation = _evaluation(options, prepared.network, data, prepared.mesh)
    consensus = _consensus(prepared.mesh)
    state = prepared.state if isinstance(prepared.state, TrainState) else _new_state(prepared)
    evaluation.compile(jax.eval_shape(consensus, state.model))
    work = _work(prepared, state, lambda state: evaluation(consensus(state.model)))
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(report.MetricsFile(out / "metrics.jsonl", position.step, distributed.is_first()))
        if options.tensorboard and distributed.is_first():
            metrics.sinks.append(stack.enter_context(report.TensorBoard(out / "tensorboard", position.step)))
        saver = None
        if options.checkpoint_every:
            saver = stack.enter_context(ckpt.Checkpoints(out / CHECKPOINTS, options.keep_checkpoints))
        outcome = loop.run(
            options,
            work,
            state,
            position,
            metrics,
            saver,
            lambda index: report.warn(f"unreadable: {data.train.describe(index)}"),
        )
    if outcome.signal is not None:
        raise loop.Interrupted(outcome, out, saved=saver is not None)
    model = distributed.fetch(consensus(outcome.state.model))
    ckpt.export(out / CONSENSUS, model, description(prepared))
    evaluated = [row["eval"] for row in metrics.rows if "eval" in row and row["step"] == outcome.position.step]
    lost = distributed.union(evaluation.unreadable)
    values = evaluated[-1] if evaluated else evaluation(model)
    return finish(prepared, outcome.position, metrics.rows, values, lost), metrics.rows


def finish(
    prepared: Prepared,
    position: ckpt.Position,
    rows: list[dict[str, Any]],
    evaluated: dict[str, float],
    lost: set[int],
) -> dict[str, Any]:
    """The summary of a run, written on the first process together with its picture and what could not be read.

    Args:
        prepared: The run.
        position: Its end.
        rows: Of the metrics file.
        evaluated: Metrics of the consensus model.
        lost: Indices of test examples that could not be read.
    """
    options, data, out = prepared.options, prepared.data, prepared.out
    distances = [row["consensus_distance"] for row in rows if "consensus_distance" in row]
    summary = _summary(prepared, position, evaluated, lost, distances[-1] if distances else None)
    if distributed.is_first():
        _write_unreadable(out / "unreadable.txt", data, position.unreadable, lost)
        report.plot_runs(
            out / "training.png",
            {options.algorithm: rows},
            f"{options.dataset}, {options.model}, {options.workers} workers, seed {options.seed}",
        )
        report.write_summary(out / SUMMARY, summary)  # the last: it says that all else is there
    return summary | {"out": str(out)}


def description(prepared: Prepared) -> dict[str, Any]:
    """What a reader of the exported model needs to know."""
    data, config = prepared.data, prepared.network.config
    kept = {name: value for name, value in dataclasses.asdict(config).items() if not name.endswith("dtype")}
    return {
        "model": prepared.options.model,
        "config": kept,
        "classes": data.classes,
        "input": {
            "shape": data.image_shape,
            "range": "uint8; the model takes (image - mean) / std",
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
        },
        "options": prepared.options.to_json(),
    }


def _new_state(prepared: Prepared) -> TrainState:
    options, mesh = prepared.options, prepared.mesh
    parts = state_parts(options, prepared.network, prepared.strategy.init)
    model = wagma.replicate(prepared.network.init(options.seed), options.workers, mesh=mesh, axis_name=AXIS)
    return TrainState(**jax.jit(wagma.for_workers(parts.create, axis_name=AXIS, mesh=mesh))(model))


def _evaluation(options: Options, network: Network, data: Dataset, mesh: Mesh | None) -> Evaluation:
    return Evaluation(network, data, mesh, AXIS, threads=options.loader_threads, processes=options.loader_processes)


def _consensus(mesh: Mesh | None) -> Callable[[Any], Any]:
    """From the models of all workers to their mean, which every device gets whole."""
    mean = wagma.for_workers(functools.partial(wagma.consensus, axis_name=AXIS), axis_name=AXIS, mesh=mesh)
    return jax.jit(lambda models: jax.tree.map(lambda leaf: leaf[0], mean(models)), out_shardings=replicated(mesh))


def _work(prepared: Prepared, state: TrainState, evaluate: Callable[[TrainState], dict[str, float]]) -> loop.Work:
    """Compiles what the loop calls."""
    options, data, mesh, position = prepared.options, prepared.data, prepared.mesh, prepared.position
    for_workers = functools.partial(wagma.for_workers, axis_name=AXIS, mesh=mesh)
    mine = local_rows(options.workers, mesh, AXIS)

    def batches(first_step: int) -> Iterator[tuple[Any, np.ndarray]]:
        return pipeline.training_batches(
            data.train,
            prepared.order,
            mine,
            range(first_step - position.first_step, position.total_steps - position.first_step),
            lambda batch: (place(inputs(batch), mesh, AXIS), unreadable(batch)),
            chunk=data.chunk,
            threads=options.loader_threads,
            processes=options.loader_processes,
        )

    def lateness(t: int) -> Any:
        if options.late_probability == 0:
            return None
        draws = np.random.default_rng((options.seed, _LATENESS, t)).random(options.workers)
        return place(draws[mine.start : mine.stop] < options.late_probability, mesh, AXIS)

    batch = input_shapes(data, (options.workers, options.batch_size), sharded(mesh, AXIS))
    optimizer = options.local_optimizer(prepared.progress)
    exchanges = find(options.algorithm).exchanges
    one_step = functools.partial(train_step, prepared.network, data, options, optimizer, prepared.strategy, exchanges)
    step = jax.jit(for_workers(one_step), donate_argnums=0).lower(state, batch, lateness(0)).compile()
    apart = for_workers(functools.partial(wagma.consensus_distance, axis_name=AXIS))
    distance = jax.jit(lambda state: apart(state.model["params"])[0], out_shardings=replicated(mesh))
    jax.block_until_ready(distance(state))
    return loop.Work(step, batches, lateness, evaluate, lambda state: float(distance(state)))


def _summary(
    prepared: Prepared, position: ckpt.Position, evaluated: dict[str, float], lost: set[int], distance: float | None
) -> dict[str, Any]:
    options, schedule = prepared.options, prepared.strategy.schedule
    # the workers of one program wait inside of its collectives, where nothing tells their waits apart
    waited = list(position.wait_seconds) or [None] * options.workers
    return {
        "algorithm": options.algorithm,
        "transport": options.transport,
        "workers": options.workers,
        "group_size": schedule.group_size,
        "group_sizes": sorted({len(group) for group in schedule.groups(0)}),
        "sync_period": schedule.sync_period,
        "clock": options.clock,
        "quorum": options.quorum,
        "straggler": options.straggler,
        "straggler_kind": options.straggler_kind,
        "seed": options.seed,
        "steps": position.step,
        "examples": position.examples,
        "examples_per_second": position.examples / position.seconds,
        "wall_seconds": position.seconds,
        "data_wait_fraction": position.data_wait_seconds / position.seconds,
        "wait_seconds": waited,
        "late_fraction": position.late / position.contributions,
        "max_staleness": position.max_staleness,
        "eval": evaluated,
        "test_examples": len(prepared.data.test) - len(lost),
        "unreadable": {"train": len(position.unreadable), "test": len(lost)},
        "consensus_distance_before_last_round": distance,
        "processes": jax.process_count() if prepared.peers is None else prepared.peers.size,
        "devices": 1 if prepared.mesh is None else prepared.mesh.size,
        "jax_version": jax.__version__,
        "options": options.to_json(),
    }


def _write_unreadable(path: Path, data: Dataset, train: Iterable[int], test: Iterable[int]) -> None:
    """Lists the files that could not be read, if there are any."""
    lines = [f"train: {data.train.describe(i)}" for i in train] + [
        f"test: {data.test.describe(i)}" for i in sorted(test)
    ]
    if lines:
        path.write_text("\n".join(lines) + "\n")
        report.warn(f"{len(lines)} examples could not be read, and are listed in {path}")


def evaluate(options: Options) -> tuple[dict[str, float], int]:
    """Metrics of the consensus model of a run, of one of its checkpoints, or of an exported model.

    Returns:
        The metrics by name, and how many test examples could not be read.

    Raises:
        ValueError: ``options.evaluate`` is none of these, or its model does not fit the data.
    """
    path = options.evaluate
    assert path is not None
    options.check()
    data = options.load_dataset()
    network = create_network(options.model, options.precision, data)
    mesh = worker_mesh(min(options.workers, len(jax.devices())), AXIS)
    evaluation = _evaluation(options, network, data, mesh)
    return evaluation(load_consensus(path, network)), len(evaluation.unreadable)


def load_consensus(path: Path, network: Network) -> Any:
    """The consensus model of a run, of one of its checkpoints, or an exported one; NumPy arrays, no worker axis.

    Raises:
        ValueError: ``path`` is none of these, or holds another model.
    """

    def like(position: ckpt.Position) -> dict[str, Any]:
        return {"model": ckpt.as_numpy(network.like, position.workers)}

    if (path / "description.json").is_file():
        return ckpt.load_export(path, network.like)
    named = path.name.isdigit()
    found = ckpt.restore(path, like) if named else ckpt.restore_newest(path / CHECKPOINTS, like, report.warn)
    if found is not None:
        return ckpt.mean_of_workers(found.items["model"])
    if (path / CONSENSUS).is_dir():
        return ckpt.load_export(path / CONSENSUS, network.like)
    raise ValueError(f"{path} has neither a checkpoint nor an exported model: train on with --resume {path}")


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line; tyro exits with its own messages, ValueError for what it cannot know."""
    return parse_options(Options, "python -m train.images", PRESETS, tyro.cli, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of what it then puts right itself
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options.evaluate is not None:
            metrics, lost = evaluate(options)
            if lost:
                report.warn(f"{lost} test examples could not be read, and do not count")
            report.say(f"consensus model of {options.evaluate}, {options.dataset}")
            report.console.print(report.evaluation_table(metrics))
            return
        with distributed.ending_together(ValueError):
            prepared = prepare(options)
    except ValueError as error:
        # over MPI all raise the same, and the first speaks for all
        sys.exit(f"train.images: {error}" if distributed.is_first() or jax.process_count() > 1 else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    launcher = "" if prepared.peers is None else f"wagma launch -n {prepared.peers.size} -- "
    again = f"go on with: {launcher}python -m train.images --resume {prepared.out}"
    try:
        with distributed.ending_together():
            summary, _ = run(prepared)
    except loop.Interrupted as interrupted:
        report.say(f"{interrupted}{f'; {again}' if interrupted.saved else ', without a checkpoint'}")
        sys.exit(128 + interrupted.signal)
    except TooManyUnreadableError as error:
        sys.exit(f"train.images: {error}; then {again}")
    except KeyboardInterrupt:
        report.warn(f"stopped without saving; {again}")
        sys.exit(130)
    if distributed.is_first():
        report.console.print(report.summary_table([summary], f"{options.dataset}, {options.model}"))
        report.console.print(f"results: {summary['out']}")


if __name__ == "__main__":
    main()
