"""The recipe of a training: its options, the learning rate and the local optimizer."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from train.fields import Checked, flag

ScheduleName = Literal["cosine", "linear", "step", "constant", "inverse-sqrt"]
OptimizerName = Literal["sgd", "lars", "adam", "adamw"]

# Options that only some optimizers have. Given to others they would do nothing, which is never what was meant.
_OWNERS: dict[str, tuple[OptimizerName, ...]] = {
    "momentum": ("sgd", "lars"),
    "beta1": ("adam", "adamw"),
    "beta2": ("adam", "adamw"),
    "epsilon": ("adam", "adamw"),
}

# A share is a rounded quotient: 30 steps of 90 may come out below 1/3. So the rate drops this much ahead of each
# boundary: more than the rounding, and less than a step of any training of up to a million steps.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class RecipeOptions(Checked):
    """How a worker takes its optimizer steps.

    Attributes:
        learning_rate: The highest rate, reached after the warm-up.
        warmup: Share of the training in which the rate rises linearly from 0.
        schedule: The rate after the warm-up: cosine: falls to 0 along a cosine; linear: falls to 0 along a line; step:
            is multiplied by --step-factor at each of --step-boundaries; constant: stays; inverse-sqrt: falls as 1 /
            sqrt(share of the training done), as for Transformers.
        step_boundaries: Shares of the training after which --schedule step multiplies the rate; the default is 30, 60
            and 80 of 90 epochs.
        step_factor: What --schedule step multiplies the rate by at each boundary.
        optimizer: sgd: with momentum; lars: SGD whose rate is scaled for every kernel by the ratio of the norms of its
            weights and its gradient, for large batches; adam, adamw: gradients divided by the root of their mean
            square; the two differ in the weight decay.
        momentum: Share of the previous update's direction that goes into the next one (sgd and lars).
        nesterov: Use Nesterov's momentum, which looks ahead by one step (sgd and lars).
        beta1: Share of the previous mean that stays in the running mean of the gradients (adam and adamw).
        beta2: The same for the running mean of their squares (adam and adamw).
        epsilon: Added to the root of the mean square, so that nothing is divided by 0 (adam and adamw).
        weight_decay: Pulls the weights towards 0; norms and biases are left out. sgd, lars and adam add decay *
            weights to the gradient (L2 regularization); adamw subtracts rate * decay * weights apart from it.
        decoupled_weight_decay: With sgd, subtract rate * decay * weights apart from the momentum, as adamw always does.
    """

    learning_rate: float = 0.1
    warmup: float = 0.1
    schedule: ScheduleName = "cosine"
    step_boundaries: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9)
    step_factor: float = 0.1
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    decoupled_weight_decay: bool = False

    def check(self) -> None:
        """Raises ValueError for what is out of range or contradictory."""
        self._check_ranges()
        self._check_schedule()
        self._check_optimizer()
        super().check()

    def _check_ranges(self) -> None:
        for name, high in (
            ("learning_rate", math.inf),
            ("warmup", 1),
            ("momentum", 1),
            ("beta1", 1),
            ("beta2", 1),
            ("weight_decay", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value < high:
                default = getattr(RecipeOptions, name)
                raise ValueError(f"{flag(name)} must be in [0, {high}), got {value}: the default is {default}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"--epsilon must be above 0 and finite, got {self.epsilon}: the default is 1e-8")
        if not 0 < self.step_factor <= 1:
            raise ValueError(f"--step-factor must be in (0, 1], got {self.step_factor}: the default is 0.1")
        for name, choices in (
            ("schedule", get_args(ScheduleName)),
            ("optimizer", get_args(OptimizerName)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{flag(name)} must be one of {', '.join(choices)}, got {value!r}: pass one of those")

    def _check_schedule(self) -> None:
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
        if self.schedule == "inverse-sqrt" and self.warmup == 0:
            raise ValueError(
                "--schedule inverse-sqrt falls from the end of the warm-up, which must be above 0, got --warmup "
                f"{self.warmup}: the default is 0.1"
            )

    def _check_optimizer(self) -> None:
        for name, owners in _OWNERS.items():
            value = getattr(self, name)
            if self.optimizer not in owners and value != getattr(RecipeOptions, name):
                raise ValueError(
                    f"{flag(name)} is for --optimizer {' and '.join(owners)}, got {value} with --optimizer "
                    f"{self.optimizer}: leave it out, or choose one of those"
                )
        if self.optimizer == "lars" and self.decoupled_weight_decay:
            raise ValueError(
                "--decoupled-weight-decay must be off with --optimizer lars, whose trust ratio takes in the decay, got "
                "both: drop one of them"
            )
        if self.optimizer == "adam" and self.decoupled_weight_decay:
            raise ValueError(
                "--decoupled-weight-decay must be off with --optimizer adam, whose decay is part of the gradient, got "
                "both: use --optimizer adamw"
            )


def learning_rate_schedule(options: RecipeOptions) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """The learning rate: a linear warm-up from 0, then what ``options.schedule`` says.

    - The warm-up is that of Goyal et al., "Accurate, Large Minibatch SGD", 2017 (arXiv:1706.02677).
    - cosine: Loshchilov & Hutter, "SGDR", 2017 (arXiv:1608.03983), without restarts.
    - inverse-sqrt: Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762), section 5.3; the peak, at the
      end of the warm-up, is ``options.learning_rate``. It ends at ``sqrt(warmup)`` of that, not at 0.

    Args:
        options: Checked ones.

    Returns:
        A function from the share of the training that is done, floats that may be traced, to the float32 rate, of the
        same shape. Shares are clipped to [0, 1].
    """
    peak = options.learning_rate
    # Shares take the place of steps: optax annotates integers, but computes with floats.
    warmup: Any = options.warmup
    rest: Any = 1.0 - options.warmup
    after: Callable[[Any], Any]  # Maps the share since the end of the warm-up to the rate.
    if options.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest)
    elif options.schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    elif options.schedule == "step":
        scales: Any = {share - warmup - _ROUNDING: options.step_factor for share in options.step_boundaries}
        after = optax.piecewise_constant_schedule(peak, scales)
    elif options.schedule == "inverse-sqrt":
        # Negative within the warm-up, where the result is not used, but should still be finite.
        after = lambda share: peak * jnp.sqrt(warmup / (warmup + jnp.maximum(share, 0.0)))
    else:
        after = optax.constant_schedule(peak)
    by_share = after
    if warmup > 0:
        rise = optax.linear_schedule(0.0, peak, warmup)
        by_share = optax.join_schedules([rise, after], [warmup])

    def schedule(share):
        share = jnp.clip(jnp.asarray(share, jnp.float32), 0.0, 1.0)
        return jnp.broadcast_to(jnp.asarray(by_share(share), jnp.float32), share.shape)

    return schedule


def create_optimizer(options: RecipeOptions) -> optax.GradientTransformationExtraArgs:
    """The local optimizer of one worker.

    - sgd: momentum of Sutskever et al., 2013. The weight decay is added to the gradient, or decoupled as in Loshchilov
      & Hutter, "Decoupled Weight Decay Regularization", 2019 (arXiv:1711.05101): SGDW, whose decay follows the rate.
    - lars: You et al., "Large Batch Training of Convolutional Networks", 2017 (arXiv:1708.03888), with the trust
      coefficient 0.001 of the paper, and its plain momentum if ``options.nesterov`` is off. The rate is a factor of the
      layers' own rates, thus larger than with sgd.
    - adam: Kingma & Ba, 2015 (arXiv:1412.6980). The decay is added to the gradient, before its means are taken.
    - adamw: Adam with the decoupled decay of Loshchilov & Hutter, which follows the rate.

    The rate is given from outside, by ``share``. Adam's bias correction counts this worker's own updates, so it is
    right for a worker that skips rounds. The state has no other count.

    Kernels are the leaves of more than one dimension; the others (norms, biases) have no decay and no trust ratio. So
    call ``init`` and ``update`` per worker, without the worker axis.

    Args:
        options: Checked ones.

    Returns:
        A transformation whose ``update(grads, state, params, share=share)`` needs all four. ``share``, a floating
        scalar in [0, 1] that may be traced, is the share of the training that is done before this update.
        ``update`` raises TypeError without it, or if it is an integer (a step, say) or no scalar.
    """
    decay = optax.add_decayed_weights(options.weight_decay, mask=_kernels)
    trace = optax.trace(options.momentum, nesterov=options.nesterov)
    adam = optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)
    descend = _descend(learning_rate_schedule(options))
    if options.optimizer == "lars":
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), _kernels)
        return optax.chain(decay, trust, descend, trace)  # the rate is part of what the momentum adds up
    if options.optimizer == "adamw":
        return optax.chain(adam, decay, descend)
    if options.optimizer == "adam":
        return optax.chain(decay, adam, descend)
    if options.decoupled_weight_decay:
        return optax.chain(trace, decay, descend)
    return optax.chain(decay, trace, descend)


def _descend(rate: Callable[[jax.typing.ArrayLike], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the rate at the share that ``update`` is given."""

    def update(updates, state, params=None, *, share=None, **others):
        del params, others
        if share is None:
            raise TypeError(
                "the optimizer's update needs share, which share of the training is done before it, got none: call "
                "update(grads, state, params, share=...)"
            )
        kind, shape = jnp.result_type(share), jnp.shape(share)
        if shape or not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"share must be a floating scalar in [0, 1], got {kind}{list(shape)}: pass which share of the training "
                "is done, not a step, and under vmap that of one worker"
            )
        step_size = -rate(share)
        return jax.tree.map(lambda leaf: step_size.astype(leaf.dtype) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
