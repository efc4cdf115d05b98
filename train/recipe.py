"""The recipe of a training: loss, gradients, optimizer and learning rate, from options that all scripts spell alike."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from train.options import flag

ScheduleName = Literal["cosine", "step", "constant"]
OptimizerName = Literal["sgd", "lars"]
PrecisionName = Literal["float32", "bfloat16"]

# A share of the training is a rounded quotient of steps: 30 steps of 90 may come out below 1/3. Boundaries are moved
# ahead by more than the rounding, and by less than a step of any training of up to a million steps.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """How a worker computes gradients and takes its optimizer steps.

    Attributes:
        learning_rate: The highest rate, reached after the warm-up.
        warmup: Share of the training in which the rate rises linearly from 0.
        schedule: The rate after the warm-up: cosine: falls to 0 along a cosine; step: is multiplied by --step-factor
            at each of --step-boundaries; constant: stays.
        step_boundaries: Shares of the training after which --schedule step multiplies the rate; the default is 30, 60
            and 80 of 90 epochs.
        step_factor: What --schedule step multiplies the rate by at each boundary.
        optimizer: sgd: with momentum; lars: SGD whose rate is scaled for every kernel by the ratio of the norms of its
            weights and its gradient, for large batches.
        momentum: Share of the previous update's direction that goes into the next one.
        nesterov: Use Nesterov's momentum, which looks ahead by one step.
        weight_decay: Pulls the weights towards 0; norms and biases are left out.
        decoupled_weight_decay: Subtract rate * decay * weights apart from the momentum, instead of adding decay *
            weights to the gradient; not with --optimizer lars.
        label_smoothing: Share of every label that is spread evenly over all classes.
        accumulate: Micro-batches that a worker's batch is split into, whose gradients are averaged before the
            optimizer step: less memory; normalization by batch statistics looks at one micro-batch at a time.
        precision: Of activations and convolutions; parameters, normalization, loss and optimizer stay float32.
    """

    learning_rate: float = 0.1
    warmup: float = 0.1
    schedule: ScheduleName = "cosine"
    step_boundaries: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9)
    step_factor: float = 0.1
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decoupled_weight_decay: bool = False
    label_smoothing: float = 0.0
    accumulate: int = 1
    precision: PrecisionName = "float32"

    def check_recipe(self) -> None:
        """Raises ValueError, which names the option of the command line, for what is out of range or contradictory."""
        for name, high in (
            ("learning_rate", math.inf),
            ("warmup", 1),
            ("momentum", 1),
            ("weight_decay", 1),
            ("label_smoothing", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value < high:
                default = getattr(RecipeOptions, name)
                raise ValueError(f"{flag(name)} must be in [0, {high}), got {value}: the default is {default}")
        if not 0 < self.step_factor <= 1:
            raise ValueError(f"--step-factor must be in (0, 1], got {self.step_factor}: the default is 0.1")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(
                f"--accumulate must be an integer of at least 1, got {self.accumulate}: 1 does not split the batch"
            )
        for name, choices in (
            ("schedule", get_args(ScheduleName)),
            ("optimizer", get_args(OptimizerName)),
            ("precision", get_args(PrecisionName)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{flag(name)} must be one of {', '.join(choices)}, got {value!r}: pass one of those")
        limits = (0, *self.step_boundaries, 1)
        if not all(low < high for low, high in itertools.pairwise(limits)):
            raise ValueError(
                f"--step-boundaries must increase strictly within (0, 1), got {self.step_boundaries}: pass shares of "
                "the training, e.g. 0.5 0.75"
            )
        if self.schedule == "step" and self.step_boundaries and self.step_boundaries[0] <= self.warmup:
            raise ValueError(
                f"--step-boundaries must lie after the --warmup of {self.warmup}, got {self.step_boundaries}: move the "
                "first one, or shorten the warm-up"
            )
        if self.optimizer == "lars" and self.decoupled_weight_decay:
            raise ValueError(
                "--decoupled-weight-decay must be off with --optimizer lars, whose trust ratio takes in the decay, got "
                "both: drop one of them"
            )


@dataclasses.dataclass(frozen=True)
class Progress:
    """Which share of the training is done after how many steps.

    A run that goes on with another number of workers has another number of steps before it, but the same share of the
    training behind it: ``Progress(new_total, step, float(old.share(step)))``.

    Attributes:
        total_steps: The step at which the training is done, counted like the other one.
        first_step: The step from which on this counts.
        first_share: Share of the training done at ``first_step``.

    Raises:
        ValueError: ``total_steps`` is not above ``first_step``, or ``first_share`` is not in [0, 1].
    """

    total_steps: int
    first_step: int = 0
    first_share: float = 0.0

    def __post_init__(self):
        """Checks that there is a step to take."""
        if not 0 <= self.first_step < self.total_steps:
            raise ValueError(
                f"the steps in all must be more than the {self.first_step} steps done, got {self.total_steps}: raise "
                "--steps"
            )
        if not 0 <= self.first_share <= 1:
            raise ValueError(
                f"first_share must be in [0, 1], got {self.first_share}: pass what share() of the previous steps is"
            )

    def share(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The share of the training done after ``step`` steps.

        Args:
            step: Integers of any shape; may be traced.

        Returns:
            float32 of that shape in [0, 1]. Rounded, not more: float32 holds every step below 2**24.
        """
        # subtracted as integers, and only then rounded
        steps = (jnp.asarray(step) - self.first_step).astype(jnp.float32)
        done = steps / float(self.total_steps - self.first_step)
        return jnp.clip(self.first_share + (1.0 - self.first_share) * done, 0.0, 1.0)


def learning_rate_schedule(options: RecipeOptions, progress: Progress) -> optax.Schedule:
    """The learning rate: a linear warm-up from 0, then what ``options.schedule`` says.

    The cosine is that of Loshchilov & Hutter, "SGDR", 2017 (arXiv:1608.03983), without restarts; the warm-up that of
    Goyal et al., "Accurate, Large Minibatch SGD", 2017 (arXiv:1706.02677).

    Args:
        options: Checked ones.
        progress: Of the training; only the share matters to the rate, not the number of steps.

    Returns:
        A function from a step, an integer that may be traced, to the float32 rate.
    """
    # shares take the place of steps: optax annotates integers, and computes with floats
    warmup: Any = options.warmup
    rest: Any = 1.0 - options.warmup
    if options.schedule == "cosine":
        by_share = optax.cosine_decay_schedule(options.learning_rate, rest)
    elif options.schedule == "step":
        scales: Any = {share - warmup - _ROUNDING: options.step_factor for share in options.step_boundaries}
        by_share = optax.piecewise_constant_schedule(options.learning_rate, scales)
    else:
        by_share = optax.constant_schedule(options.learning_rate)
    if warmup > 0:
        rise = optax.linear_schedule(0.0, options.learning_rate, warmup)
        by_share = optax.join_schedules([rise, by_share], [warmup])

    def schedule(step):
        return jnp.asarray(by_share(progress.share(step)), jnp.float32)

    return schedule


def create_optimizer(options: RecipeOptions, progress: Progress) -> optax.GradientTransformation:
    """The local optimizer of one worker.

    - sgd: momentum of Sutskever et al., 2013, the weight decay added to the gradient, or decoupled as in Loshchilov &
      Hutter, "Decoupled Weight Decay Regularization", 2019 (arXiv:1711.05101): SGDW, whose decay follows the rate.
    - lars: You et al., "Large Batch Training of Convolutional Networks", 2017 (arXiv:1708.03888), with the trust
      coefficient 0.001 of the paper, and its plain momentum if ``options.nesterov`` is off. The rate is a factor of the
      layers' own rates, thus larger than with sgd.

    Kernels are the leaves of more than one dimension; norms and biases have no decay and no trust ratio. So call its
    ``init`` and ``update`` per worker, without the worker axis.

    Args:
        options: Checked ones.
        progress: Of the training; the optimizer counts its steps from 0, those before ``first_step`` included.

    Returns:
        A transformation of gradients to updates; ``update`` needs the parameters.
    """
    rate = learning_rate_schedule(options, progress)
    if options.optimizer == "lars":
        return optax.lars(
            rate,
            weight_decay=options.weight_decay,
            weight_decay_mask=_kernels,
            trust_ratio_mask=_kernels,
            momentum=options.momentum,
            nesterov=options.nesterov,
        )
    decay = optax.add_decayed_weights(options.weight_decay, mask=_kernels)
    if options.decoupled_weight_decay:
        return optax.chain(
            optax.trace(options.momentum, nesterov=options.nesterov), decay, optax.scale_by_learning_rate(rate)
        )
    return optax.chain(decay, optax.sgd(rate, momentum=options.momentum, nesterov=options.nesterov))


def mean_loss_and_gradients(
    loss_function: Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
    params: Any,
    carry: Any,
    batch: Any,
    accumulate: int = 1,
) -> tuple[jax.Array, Any, Any, Any]:
    """Loss and gradients of a batch, computed one micro-batch after the other.

    The means over equal micro-batches are those over the batch if the loss is a mean over independent examples. It is
    not under normalization by batch statistics, which are then those of a micro-batch; and running statistics that
    travel in ``carry`` move on ``accumulate`` times.

    Works under ``jit``, ``vmap`` and ``shard_map``; gradients vary over workers where ``params`` do.

    Args:
        loss_function: Called as ``loss_function(params, carry, micro_batch)``; returns ``(loss, (carry, metrics))``,
            the loss a floating scalar, the metrics a tree of real arrays whose mean says something.
        params: Any tree of floating arrays: what to differentiate by.
        carry: Any tree; every micro-batch gets that of the one before, with unchanged shapes, dtypes and, under
            ``shard_map``, axes that it varies over (as ``jax.lax.scan`` demands).
        batch: Any tree of arrays [examples, ...]; consecutive examples form a micro-batch.
        accumulate: Micro-batches in the batch. 1: exactly ``jax.value_and_grad``.

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

    # zeros like the parameters, not plain ones: they vary over the same axes, and so do gradients
    start = (jax.tree.map(jnp.zeros_like, params), carry)
    (sums, carry), (losses, metrics) = jax.lax.scan(add, start, _split(batch, accumulate))
    loss, metrics = jax.tree.map(lambda each: jnp.mean(each, axis=0), (losses, metrics))
    return loss, carry, metrics, jax.tree.map(lambda total: total / accumulate, sums)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, with smoothed labels.

    Label smoothing is that of Szegedy et al., "Rethinking the Inception Architecture", 2015 (arXiv:1512.00567).

    Args:
        logits: Floating [batch, classes].
        labels: Integers [batch] in [0, classes).
        smoothing: Share of every label that is spread evenly over all classes, in [0, 1).

    Returns:
        [batch], of the logits' dtype, in nats.
    """
    if smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _split(batch: Any, parts: int) -> Any:
    """From [examples, ...] to [parts, examples / parts, ...]."""

    def split(leaf):
        if not jnp.ndim(leaf) or len(leaf) % parts:
            raise ValueError(
                f"--accumulate must divide the examples of a worker's batch, got {parts} and an array of shape "
                f"{list(jnp.shape(leaf))}: change it or --batch-size"
            )
        return leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)
