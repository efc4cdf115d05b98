"""Image classification with several workers: one worker's training step, and the evaluation of a single model."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from models.resnet import RESNETS, ResNet, ResNetConfig
from train import recipe
from train.data import Batch, Dataset, pipeline
from train.devices import local_rows, place, replicated, sharded
from wagma_jax.algorithms import Strategy


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


class Network(NamedTuple):
    """A model without its numbers.

    Attributes:
        config: Its shape.
        train: The graph for training.
        eval: The graph for evaluation.
        like: The shapes of its parameters and statistics: {"params": ..., "stats": ...}, nested dicts.
    """

    config: ResNetConfig
    train: nnx.GraphDef
    eval: nnx.GraphDef
    like: dict[str, Any]

    def init(self, seed: int) -> dict[str, Any]:
        """Parameters and statistics from a seed, NumPy arrays."""

        @nnx.jit
        def make():
            return ResNet(self.config, rngs=nnx.Rngs(seed))

        return jax.tree.map(np.asarray, _split(make())[1])


def create_network(model_name: str, precision: str, data: Dataset) -> Network:
    """The model that fits the data; nothing is compiled.

    Raises:
        ValueError: The model does not take such images.
    """
    height, width, channels = data.image_shape
    config = dataclasses.replace(
        RESNETS[model_name],
        num_classes=len(data.classes),
        in_channels=channels,
        dtype=jnp.dtype(precision),
    )
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    model.train()
    train_graph, like = _split(model)
    model.eval()
    eval_graph, _ = _split(model)
    network = Network(config, train_graph, eval_graph, like)
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    try:
        jax.eval_shape(
            lambda model, images: nnx.merge(eval_graph, model["params"], model["stats"])(images), like, images
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--model {model_name} does not take the images of {data.name}, {height}x{width} with {channels} "
            f"channels: {error}"
        ) from None
    return network


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}


def normalize(images: jax.Array, data: Dataset) -> jax.Array:
    """From uint8 images to float32 with about zero mean and unit variance."""
    return (images.astype(jnp.float32) - data.mean) / data.std


def train_step(
    network: Network,
    data: Dataset,
    options: recipe.RecipeOptions,
    optimizer: optax.GradientTransformation,
    strategy: Strategy,
    exchanges: Literal["models", "gradients"],
    state: TrainState,
    batch: Mapping[str, jax.Array],
    late: jax.Array | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One worker's step.

    Args:
        network: The model.
        data: Says how to normalize.
        options: The recipe.
        optimizer: The local optimizer.
        strategy: The algorithm.
        exchanges: What it exchanges.
        state: The worker's state.
        batch: image: uint8 [batch, height, width, channels]; label: int32 [batch].
        late: A boolean scalar or None.
    """
    grads, stats, metrics = gradients(network, data, options, state.model, batch)
    if exchanges == "gradients":
        tree = {"params": grads, "stats": stats}
        tree, strategy_state, info = strategy.combine(tree, state.model, state.strategy, late)
        model, opt_state = apply_gradients(optimizer, tree["params"], tree["stats"], state.model, state.optimizer)
    else:
        model, opt_state = apply_gradients(optimizer, grads, stats, state.model, state.optimizer)
        model, strategy_state, info = strategy.combine(model, state.model, state.strategy, late)
    return TrainState(model, opt_state, strategy_state), metrics | {"late": info.late, "staleness": info.staleness}


def gradients(
    network: Network, data: Dataset, options: recipe.RecipeOptions, model: Any, batch: Mapping[str, jax.Array]
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """A worker's gradients of a batch, the statistics after it, and loss and accuracy."""

    def loss_function(params, stats, batch):
        module = nnx.merge(network.train, params, stats, copy=True)
        logits = module(normalize(batch["image"], data))
        loss = recipe.cross_entropy(logits, batch["label"], options.label_smoothing).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return loss, (nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), {"accuracy": accuracy})

    loss, stats, metrics, grads = recipe.mean_loss_and_gradients(
        loss_function, model["params"], model["stats"], dict(batch), options.accumulate
    )
    return grads, stats, {"loss": loss, **metrics}


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Any, stats: Any, model: Any, opt_state: Any
) -> tuple[Any, Any]:
    """The model after the local optimizer's step, with these statistics, and the optimizer's state."""
    updates, opt_state = optimizer.update(grads, opt_state, model["params"])
    return {"params": optax.apply_updates(model["params"], updates), "stats": stats}, opt_state


def eval_step(
    network: Network, data: Dataset, model: Any, batch: Mapping[str, jax.Array], counts: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the examples that count (bool [batch]) for one model, without a worker axis."""
    logits = nnx.merge(network.eval, model["params"], model["stats"])(normalize(batch["image"], data))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = jnp.argmax(logits, -1) == batch["label"]
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    among = (best == batch["label"][:, None]).any(-1)
    return {
        "accuracy": jnp.sum(correct & counts),
        "top5_accuracy": jnp.sum(among & counts),
        "loss": jnp.sum(losses, where=counts),
        "count": jnp.sum(counts),
    }


class Evaluation:
    """Evaluates models on the test set, on all devices at once.

    Args:
        network: The models' shape.
        data: With the test set.
        mesh: The devices of one program, or None.
        axis_name: Of the mesh.
        threads: That load.
        processes: That load.
        part: (which, of how many): processes without a common program take a part each of every batch.
        add_up: From the sums of this part to those of all; called by all.

    Attributes:
        unreadable: Indices of the test examples that could not be read, found so far.
    """

    ROWS_PER_DEVICE = 250

    def __init__(
        self,
        network: Network,
        data: Dataset,
        mesh: Mesh | None,
        axis_name: str,
        *,
        threads: int = 8,
        processes: int = 0,
        part: tuple[int, int] = (0, 1),
        add_up: Callable[[dict[str, float]], dict[str, float]] = lambda sums: sums,
    ):
        self._add_up = add_up
        self._loading = {"chunk": data.chunk, "threads": threads, "processes": processes}
        self._axis_name = axis_name
        self._data = data
        self._mesh = mesh
        which, parts = part
        devices = parts if mesh is None else mesh.size
        per_device = min(self.ROWS_PER_DEVICE, math.ceil(len(data.test) / devices))
        self._batch_size = devices * per_device
        self._rows = local_rows(self._batch_size, mesh, axis_name)
        if parts > 1:
            self._rows = range(which * per_device, (which + 1) * per_device)
        self._step: Any = jax.jit(functools.partial(eval_step, network, data), out_shardings=replicated(mesh))
        self.unreadable: set[int] = set()

    def compile(self, model: Any) -> None:
        """Compiles the step for a model of these shapes, as :meth:`__call__` gets one."""
        sharding = sharded(self._mesh, self._axis_name)
        shape = (self._batch_size if sharding else len(self._rows),)
        batch = input_shapes(self._data, shape, sharding)
        counts = jax.ShapeDtypeStruct(shape, np.bool_, sharding=sharding)
        whole = replicated(self._mesh)
        model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), model)
        self._step = self._step.lower(model, batch, counts).compile()

    def __call__(self, model: Any) -> dict[str, float]:
        """Loss and accuracy of a model without a worker axis."""
        batches = pipeline.evaluation_batches(self._data.test, self._batch_size, self._rows, **self._loading)
        sums: dict[str, float] = {}
        for loaded, counts in batches:
            self.unreadable |= set(unreadable(loaded).tolist())
            arguments = place((inputs(loaded), counts), self._mesh, self._axis_name)
            for name, value in jax.device_get(self._step(model, *arguments)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        sums = self._add_up(sums)
        count = sums.pop("count")
        if count == 0:
            raise ValueError(f"none of the {len(self._data.test)} test examples can be read: check the data set")
        if len(self._data.classes) <= 10:
            del sums["top5_accuracy"]  # five guesses of ten say little
        return {name: value / count for name, value in sums.items()}


def inputs(batch: Batch) -> dict[str, np.ndarray]:
    """What a step takes of a batch."""
    return {"image": batch["image"], "label": batch["label"]}


def input_shapes(data: Dataset, leading: tuple[int, ...], sharding: NamedSharding | None) -> dict[str, Any]:
    """The shapes of :func:`inputs` with some leading axes."""
    return {
        "image": jax.ShapeDtypeStruct((*leading, *data.image_shape), np.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(leading, np.int32, sharding=sharding),
    }


def unreadable(batch: Batch) -> np.ndarray:
    """Indices of the examples of a batch that could not be read."""
    return batch["unreadable"][batch["unreadable"] >= 0]
