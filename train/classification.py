"""Image classification with several workers: one worker's training step, and the evaluation of a single model."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

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
from wagma_jax.strategies import Strategy


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
        state: The worker's state.
        batch: image: uint8 [batch, height, width, channels]; label: int32 [batch].
        late: A boolean scalar or None.
    """
    params = state.model["params"]

    def loss_function(params, stats, batch):
        model = nnx.merge(network.train, params, stats, copy=True)
        logits = model(normalize(batch["image"], data))
        loss = recipe.cross_entropy(logits, batch["label"], options.label_smoothing).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), {"accuracy": accuracy})

    loss, stats, metrics, grads = recipe.mean_loss_and_gradients(
        loss_function, params, state.model["stats"], dict(batch), options.accumulate
    )
    grads = strategy.combine_gradients(grads)
    updates, opt_state = optimizer.update(grads, state.optimizer, params)
    model = {"params": optax.apply_updates(params, updates), "stats": stats}
    model, strategy_state, info = strategy.combine_models(model, state.strategy, late)
    metrics = {"loss": loss, **metrics, "late": info.late, "staleness": info.staleness}
    return TrainState(model, opt_state, strategy_state), metrics


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
    ):
        self._loading = {"chunk": data.chunk, "threads": threads, "processes": processes}
        self._axis_name = axis_name
        self._data = data
        self._mesh = mesh
        devices = 1 if mesh is None else mesh.size
        self._batch_size = devices * min(self.ROWS_PER_DEVICE, math.ceil(len(data.test) / devices))
        self._step: Any = jax.jit(functools.partial(eval_step, network, data), out_shardings=replicated(mesh))
        self.unreadable: set[int] = set()

    def compile(self, model: Any) -> None:
        """Compiles the step for a model of these shapes, as :meth:`__call__` gets one."""
        shape, sharding = (self._batch_size,), sharded(self._mesh, self._axis_name)
        batch = input_shapes(self._data, shape, sharding)
        counts = jax.ShapeDtypeStruct(shape, np.bool_, sharding=sharding)
        whole = replicated(self._mesh)
        model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), model)
        self._step = self._step.lower(model, batch, counts).compile()

    def __call__(self, model: Any) -> dict[str, float]:
        """Loss and accuracy of a model without a worker axis."""
        rows = local_rows(self._batch_size, self._mesh, self._axis_name)
        batches = pipeline.evaluation_batches(self._data.test, self._batch_size, rows, **self._loading)
        sums: dict[str, float] = {}
        for loaded, counts in batches:
            self.unreadable |= set(unreadable(loaded).tolist())
            arguments = place((inputs(loaded), counts), self._mesh, self._axis_name)
            for name, value in jax.device_get(self._step(model, *arguments)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
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
