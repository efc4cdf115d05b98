"""The loss of a worker's batch and its gradients, computed at once or one micro-batch after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from train.fields import Checked

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class GradientOptions(Checked):
    """How a worker computes the gradients of a classification.

    Attributes:
        label_smoothing: Share of every label that is spread evenly over all classes.
        accumulate: Micro-batches that a worker's batch is split into, whose gradients are averaged before the
            optimizer step: less memory; normalization by batch statistics looks at one micro-batch at a time.
        precision: Of activations and matrix products; parameters, normalization, loss and optimizer stay float32.
    """

    label_smoothing: float = 0.0
    accumulate: int = 1
    precision: Precision = "float32"

    def check(self) -> None:
        """Raises ValueError for what is out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label-smoothing must be in [0, 1), got {self.label_smoothing}: the default is 0.0")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(
                f"--accumulate must be an integer of at least 1, got {self.accumulate}: 1 does not split the batch"
            )
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"--precision must be one of {choices}, got {self.precision!r}: pass one of those")
        super().check()


def mean_loss_and_gradients(
    loss_function: Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
    params: Any,
    carry: Any,
    batch: Any,
    accumulate: int = 1,
) -> tuple[jax.Array, Any, Any, Any]:
    """Loss and gradients of a batch, computed one micro-batch after the other.

    The means over equal micro-batches equal those over the batch if the loss is a mean over independent examples. They
    do not with batch normalization, which then uses the statistics of a micro-batch. Running statistics that travel in
    ``carry`` are updated ``accumulate`` times.

    Works under ``jit``, ``vmap`` and ``shard_map``; gradients vary over workers where ``params`` do.

    Args:
        loss_function: Called as ``loss_function(params, carry, micro_batch)``; returns ``(loss, (carry, metrics))``,
            where the loss is a floating scalar, and the metrics are a tree of real arrays to be averaged.
        params: Any tree of floating arrays: what to differentiate by.
        carry: Any tree; every micro-batch gets that of the one before. Its shapes, dtypes and, under ``shard_map``, the
            axes that it varies over must not change (as in ``jax.lax.scan``).
        batch: Any tree of arrays [examples, ...]; consecutive examples form a micro-batch.
        accumulate: Micro-batches in the batch; 1 is exactly ``jax.value_and_grad``.

    Returns:
        The mean loss, the last carry, the mean metrics, and the mean gradients, a tree like ``params``.

    Raises:
        ValueError: The batch cannot be split into that many equal parts.
    """
    value_and_grad = jax.value_and_grad(loss_function, has_aux=True)
    if accumulate == 1:
        (loss, (carry, metrics)), gradients = value_and_grad(params, carry, batch)
        return loss, carry, metrics, gradients

    def add(state, micro_batch):
        sums, carry = state
        (loss, (carry, metrics)), gradients = value_and_grad(params, carry, micro_batch)
        return (jax.tree.map(jnp.add, sums, gradients), carry), (loss, metrics)

    # zeros_like, not plain zeros: they must vary over the same axes as the parameters, as gradients do
    start = (jax.tree.map(jnp.zeros_like, params), carry)
    (sums, carry), (losses, metrics) = jax.lax.scan(add, start, _split(batch, accumulate))
    loss, metrics = jax.tree.map(lambda each: jnp.mean(each, axis=0), (losses, metrics))
    return loss, carry, metrics, jax.tree.map(lambda total: total / accumulate, sums)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, with smoothed labels.

    Label smoothing is that of Szegedy et al., "Rethinking the Inception Architecture", 2015 (arXiv:1512.00567). It is
    written as sums over the classes, for which XLA needs no array of probabilities: classes may be many.

    Args:
        logits: Floating [..., classes].
        labels: Integers [...] in [0, classes).
        smoothing: Share of every label that is spread evenly over all classes, in [0, 1).

    Returns:
        [...], of the logits' dtype, in nats.
    """
    if smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    classes = logits.shape[-1]
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    even = smoothing / classes
    weights = jnp.where(is_label, 1 - smoothing + even, even).astype(logits.dtype)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(weights * logits, axis=-1)


def _split(batch: Any, parts: int) -> Any:
    """Maps [examples, ...] to [parts, examples / parts, ...]."""

    def split(leaf):
        if not jnp.ndim(leaf) or len(leaf) % parts:
            raise ValueError(
                f"--accumulate must divide the examples of a worker's batch, got {parts} and an array of shape "
                f"{list(jnp.shape(leaf))}: change it or --batch-size"
            )
        return leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)
