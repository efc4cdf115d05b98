"""Trains a ResNet on images: ``python -m train.images --algorithm wagma --workers 8``."""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import wagma_jax as wagma
from models.resnet import RESNETS, ResNet
from train import report
from train.data import DATASETS, Images, batch_indices
from train.devices import worker_mesh
from train.options import RunOptions
from wagma_jax.strategies import Strategy

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Train a ResNet on images with several workers in one program.

    Attributes:
        dataset: digits: 1,797 handwritten digits of 8x8, inside of scikit-learn.
        model: Which ResNet.
        learning_rate: The highest rate, reached after the warm-up; a cosine brings it back to 0.
        warmup: Share of the steps in which the rate rises from 0.
        momentum: Of SGD (Nesterov).
        weight_decay: Added to the gradients of kernels, not of norms and biases.
    """

    dataset: Literal["digits"] = "digits"
    model: Literal["resnet_tiny", "resnet_small", "resnet18", "resnet50"] = "resnet_tiny"
    learning_rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        super().check()
        for name, low, high in (
            ("learning_rate", 0, np.inf),
            ("warmup", 0, 1),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value < high:
                raise ValueError(f"--{name.replace('_', '-')} must be in [{low}, {high}), got {value}")


class TrainState(NamedTuple):
    """One worker's state.

    Attributes:
        model: The tree that is averaged: parameters and BatchNorm statistics.
        optimizer: State of the local optimizer.
        strategy: State of the algorithm.
    """

    model: Any
    optimizer: Any
    strategy: Any


def create_model(options: Options, data: Images) -> tuple[nnx.GraphDef, nnx.GraphDef, dict[str, Any]]:
    """The graphs for training and evaluation, and the initial parameters and statistics, made from the seed."""
    channels = data.train_images.shape[-1]
    config = dataclasses.replace(RESNETS[options.model], num_classes=data.num_classes, in_channels=channels)

    @nnx.jit
    def make():
        return ResNet(config, rngs=nnx.Rngs(options.seed))

    model = make()
    model.train()
    train_graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    model.eval()
    eval_graph, _, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return train_graph, eval_graph, {"params": params, "stats": stats}


def create_optimizer(options: Options) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, a warm-up and a cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, round(options.warmup * options.steps), options.steps
    )
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.sgd(rate, momentum=options.momentum, nesterov=True),
    )


def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    strategy: Strategy,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    late: jax.Array | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One worker's step; images [batch, height, width, channels], labels [batch], late a boolean scalar or None."""
    params, stats = state.model["params"], state.model["stats"]

    def loss_function(params):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (nnx.state(model, nnx.BatchStat), jnp.mean(jnp.argmax(logits, -1) == labels))

    (loss, (stats, accuracy)), grads = jax.value_and_grad(loss_function, has_aux=True)(params)
    grads = strategy.combine_gradients(grads)
    updates, opt_state = optimizer.update(grads, state.optimizer, params)
    model = {"params": optax.apply_updates(params, updates), "stats": stats}
    model, strategy_state, info = strategy.combine_models(model, state.strategy, late)
    metrics = {"loss": loss, "accuracy": accuracy, "late": info.late, "staleness": info.staleness}
    return TrainState(model, opt_state, strategy_state), metrics


def eval_step(graph: nnx.GraphDef, model: Any, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Loss and accuracy of one model (without a worker axis) on all images at once."""
    logits = nnx.merge(graph, model["params"], model["stats"])(images)
    return {
        "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels),
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(),
    }


def check_batches(options: Options, data: Images) -> None:
    """Raises ValueError if one step takes more examples than there are."""
    examples = len(data.train_labels)
    if options.workers * options.batch_size > examples:
        raise ValueError(
            f"--workers {options.workers} times --batch-size {options.batch_size} is more than the {examples} training "
            f"examples of {options.dataset}: lower one of them"
        )


def prepare(options: Options) -> tuple[Strategy, Images, Path]:
    """Checks the options and makes the folder of the results, before anything is compiled.

    Returns:
        The algorithm, the data, and the folder.

    Raises:
        ValueError: Options out of range, or ``--out`` holds something already.
    """
    options.check()
    strategy = options.strategy(AXIS)
    data = DATASETS[options.dataset]()
    check_batches(options, data)
    return strategy, data, options.make_out("images")


def train(options: Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole run: trains, evaluates, and writes metrics.jsonl, summary.json and training.png to ``--out``.

    Returns:
        The summary, and the rows of the metrics file.

    Raises:
        ValueError: As :func:`prepare`.
    """
    return run(options, *prepare(options))


def run(options: Options, strategy: Strategy, data: Images, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As :func:`train`, with what :func:`prepare` returned."""
    report.console.print(strategy.schedule.describe().splitlines()[0])
    num_workers = options.workers
    mesh = worker_mesh(num_workers, AXIS)
    for_workers = functools.partial(wagma.for_workers, axis_name=AXIS, mesh=mesh)

    train_graph, eval_graph, model = create_model(options, data)
    optimizer = create_optimizer(options)
    create = jax.jit(for_workers(lambda m: TrainState(m, optimizer.init(m["params"]), strategy.init(m))))
    state = create(wagma.replicate(model, num_workers, mesh=mesh, axis_name=AXIS))
    step = jax.jit(for_workers(functools.partial(train_step, train_graph, optimizer, strategy)), donate_argnums=0)
    distance = jax.jit(for_workers(functools.partial(wagma.consensus_distance, axis_name=AXIS)))
    consensus = jax.jit(for_workers(functools.partial(wagma.consensus, axis_name=AXIS)))
    evaluate = jax.jit(functools.partial(eval_step, eval_graph))

    batches = batch_indices(len(data.train_labels), num_workers, options.batch_size, options.seed)
    lateness = np.random.default_rng([options.seed, 1]).random((options.steps, num_workers)) < options.late_probability

    def step_arguments(t):
        indices = next(batches)
        late = lateness[t] if options.late_probability > 0 else None
        return data.train_images[indices], data.train_labels[indices], late

    def evaluate_consensus():
        mean = jax.tree.map(lambda leaf: np.asarray(leaf[0]), consensus(state.model))
        return {name: float(value) for name, value in evaluate(mean, data.test_images, data.test_labels).items()}

    arguments = step_arguments(0)
    compiled = step.lower(state, *arguments).compile()
    jax.block_until_ready((distance(state.model["params"]), evaluate_consensus()))

    metrics_file = report.MetricsFile(out / "metrics.jsonl")
    seconds, steps_logged, logged_seconds = 0.0, 0, 0.0
    pending: list[dict[str, jax.Array]] = []
    late_count, max_staleness, apart = 0, 0, 0.0
    examples_per_step = num_workers * options.batch_size
    started = time.perf_counter()
    with report.progress_bar() as bar:
        task = bar.add_task(options.algorithm, total=options.steps, status="")
        for t in range(options.steps):
            done = t + 1
            evaluating = done % options.eval_every == 0 or done == options.steps
            logging = done % options.log_every == 0 or evaluating
            if logging:  # before the round: after it, the distance at every sync round would be 0
                jax.block_until_ready(state)
                seconds += time.perf_counter() - started
                apart = float(distance(state.model["params"])[0])
                started = time.perf_counter()
            state, metrics = compiled(state, *arguments)
            pending.append(metrics)
            if done < options.steps:
                arguments = step_arguments(done)
            if not logging:
                continue
            jax.block_until_ready(state)
            seconds += time.perf_counter() - started
            window = {name: np.array([m[name] for m in pending]) for name in pending[0]}  # [steps, num_workers]
            late_count += int(window["late"].sum())
            max_staleness = max(max_staleness, int(window["staleness"].max()))
            rate = (done - steps_logged) * examples_per_step / (seconds - logged_seconds)
            metrics_file.write(
                step=done,
                examples=done * examples_per_step,
                seconds=seconds,
                loss=float(window["loss"].mean()),
                accuracy=float(window["accuracy"].mean()),
                consensus_distance=apart,
                examples_per_second=rate,
                late_fraction=float(window["late"].mean()),
            )
            if evaluating:
                metrics_file.write(
                    step=done, examples=done * examples_per_step, seconds=seconds, eval=evaluate_consensus()
                )
            bar.update(task, completed=done, status=f"loss {window['loss'].mean():.4f}  {rate:,.0f} examples/s")
            pending, steps_logged, logged_seconds = [], done, seconds
            started = time.perf_counter()
    metrics_file.close()

    examples = options.steps * examples_per_step
    summary = {
        "algorithm": options.algorithm,
        "transport": options.transport,
        "workers": num_workers,
        "group_size": strategy.schedule.group_size,
        "group_sizes": sorted({len(group) for group in strategy.schedule.groups(0)}),
        "sync_period": strategy.schedule.sync_period,
        "clock": "step",
        "seed": options.seed,
        "steps": options.steps,
        "examples": examples,
        "examples_per_second": examples / seconds,
        "wall_seconds": seconds,
        # the workers of one program wait inside of its collectives, where nothing tells their waits apart
        "wait_seconds": [None] * num_workers,
        "late_fraction": late_count / (options.steps * num_workers),
        "max_staleness": max_staleness,
        "eval": metrics_file.rows[-1]["eval"],
        "consensus_distance_before_last_round": apart,
        "devices": 1 if mesh is None else mesh.size,
        "jax_version": jax.__version__,
        "options": dataclasses.asdict(options) | {"out": out},
    }
    report.write_summary(out / "summary.json", summary)
    report.plot_runs(
        out / "training.png",
        {options.algorithm: metrics_file.rows},
        f"{options.dataset}, {options.model}, {num_workers} workers, seed {options.seed}",
    )
    return summary | {"out": str(out)}, metrics_file.rows


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m train.images", description=str(Options.__doc__).partition("\n")[0])
    try:
        prepared = prepare(options)
    except ValueError as error:
        sys.exit(f"train.images: {error}")
    summary, _ = run(options, *prepared)
    report.console.print(report.summary_table([summary], f"{options.dataset}, {options.model}"))
    report.console.print(f"results: {summary['out']}")


if __name__ == "__main__":
    main()
