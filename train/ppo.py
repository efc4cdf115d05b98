"""Proximal policy optimization for recurrent policies: pure functions of rollouts, without policy or environment.

After Schulman et al., "Proximal Policy Optimization Algorithms", 2017 (https://arxiv.org/abs/1707.06347). Arrays of a
rollout are [time, environments]. Each environment goes through episodes one after the other, and the recurrent state
is reset where one begins. Minibatches are of whole environments, so sequences are never cut.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_EPSILON = 1e-5  # of a standard deviation, as in Habitat's baselines


@dataclasses.dataclass(frozen=True)
class PPOOptions:
    """How a policy learns from a rollout.

    Attributes:
        clip: By how much the ratio of new to old probabilities may leave 1 before it is clipped.
        value_clip: By how much a value may leave the old one before it is clipped; None: as far as it likes.
        value_weight: Of the critic's loss.
        entropy_weight: Of the entropy, which keeps the policy exploring.
        discount: Of rewards, for each step.
        decay: The lambda of generalized advantage estimation: 0 trusts the critic, 1 the rewards.
        epochs: How often each rollout is learnt from.
        minibatches: In how many parts.
        normalize_advantages: Bring the advantages of each minibatch to zero mean and unit variance.
    """

    clip: float = 0.2
    value_clip: float | None = None
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    discount: float = 0.99
    decay: float = 0.95
    epochs: int = 2
    minibatches: int = 2
    normalize_advantages: bool = True

    def check(self) -> None:
        """Raises ValueError, which names the option of the command line, for what is out of range."""
        for name in ("clip", "value_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--ppo.{_words(name)} must be above 0, got {value}: the usual one is 0.2")
        for name in ("value_weight", "entropy_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"--ppo.{_words(name)} must be at least 0, got {value}: 0 leaves that loss out")
        for name in ("discount", "decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"--ppo.{name} must be in [0, 1], got {value}: usual ones are 0.99 and 0.95")
        for name in ("epochs", "minibatches"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"--ppo.{name} must be an integer of at least 1, got {value}: 1 takes all at once")


def gae(
    reward: jax.Array,
    value: jax.Array,
    done: jax.Array,
    truncated: jax.Array,
    final_value: jax.Array,
    last_value: jax.Array,
    discount: float = 0.99,
    decay: float = 0.95,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation, Schulman et al., 2015 (https://arxiv.org/abs/1506.02438), equation 16.

    With `delta_t = reward_t + discount * next_t - value_t`, the advantage is `A_t = delta_t + discount * decay * A_t+1`
    within an episode. The value `next_t` of what follows is 0 where the episode is done, `final_value_t` where a limit
    of time has cut it (it would have gone on), `last_value` after the last step, and else `value_t+1`.

    Args:
        reward: float32 [time, environments], of the action of a step.
        value: The same: the critic's, before the action.
        done: bool: whether the action ended the episode by its own rules. It counts where `truncated` is set, too.
        truncated: bool: whether the episode was cut after the action.
        final_value: float32: the critic's value of what follows in the same episode. Read where `truncated` only.
        last_value: float32 [environments]: the critic's value of what follows the last valid step.
        discount: Of rewards, for each step.
        decay: The lambda of the estimator.
        valid: bool: False for steps, last ones of an environment, that were not taken. None: all were.

    Returns:
        Advantages, and the returns `A + value` that the critic learns, float32 [time, environments]; 0 where not valid.
    """
    if valid is None:
        valid = jnp.ones_like(done)

    def back(following: Any, step: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        advantage, value_after = following
        reward, value, done, truncated, final_value, valid = step
        value_after_this = jnp.where(done, 0, jnp.where(truncated, final_value, value_after))
        delta = reward + discount * value_after_this - value
        estimated = delta + discount * decay * jnp.where(done | truncated, 0, advantage)
        here = jnp.where(valid, estimated, advantage), jnp.where(valid, value, value_after)
        return here, (jnp.where(valid, estimated, 0), jnp.where(valid, estimated + value, 0))

    steps = (reward, value, done, truncated, final_value, valid)
    _, (advantages, returns) = jax.lax.scan(back, (jnp.zeros_like(last_value), last_value), steps, reverse=True)
    return advantages, returns


def normalize(advantages: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Brings those that are valid (all if None) to zero mean and unit variance; equal ones become 0, not NaN."""
    mean = _mean(advantages, valid)
    deviation = jnp.sqrt(_mean(jnp.square(advantages - mean), valid))
    return (advantages - mean) / (deviation + _EPSILON)


def minibatch_order(key: jax.Array, environments: int, options: PPOOptions) -> jax.Array:
    """Which environments each update learns from: a new permutation in each epoch.

    Returns:
        int32 [epochs * minibatches, environments / minibatches].

    Raises:
        ValueError: The environments cannot be split into so many equal parts.
    """
    if environments % options.minibatches:
        raise ValueError(
            f"--ppo.minibatches must divide the environments of a worker, got {options.minibatches} and "
            f"{environments}: change one of them"
        )
    keys = jax.random.split(key, options.epochs)
    orders = jax.vmap(lambda each: jax.random.permutation(each, environments))(keys)
    return orders.reshape(options.epochs * options.minibatches, -1).astype(jnp.int32)


def take_environments(rollout: Mapping[str, Any], which: jax.Array) -> dict[str, Any]:
    """The sequences of some environments (int32 [n]), whole.

    Args:
        rollout: Leaves [time, environments, ...], but for ``recurrent``: the state before the first step, leaves
            [environments, ...].
        which: Their indices.

    Returns:
        The same with leaves [time, n, ...], and [n, ...] in ``recurrent``.
    """
    axes = {name: 0 if name == "recurrent" else 1 for name in rollout}
    return {
        name: jax.tree.map(lambda leaf, axis=axes[name]: jnp.take(leaf, which, axis), tree)
        for name, tree in rollout.items()
    }


def log_probabilities(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Of the actions taken, [...] from logits [..., actions]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def ppo_loss(
    logits: jax.Array, value: jax.Array, minibatch: Mapping[str, Any], options: PPOOptions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a minibatch: that of the actor (equation 7 of the paper), that of the critic, and the entropy.

    With the ratio r of new to old probabilities and the advantage A, the actor's loss is the mean of
    `-min(r A, clip(r, 1 - clip, 1 + clip) A)`. The critic's is half the mean square of `value - return`; with
    `value_clip` the larger of that and the same for the value that is at most so far from the old one.

    Args:
        logits: float32 [..., actions], of the policy that learns.
        value: float32 [...], of its critic.
        minibatch: ``action`` (int32), ``log_prob``, ``value``, ``advantage`` and ``return`` (float32), all [...]; and,
            if some steps do not count, ``valid`` (bool).
        options: Clips and weights.

    Returns:
        The loss, float32 [], and by name: ``policy_loss``, ``value_loss``, ``entropy`` and ``approximate_kl``
        (of the old policy from the new one), both in nats, and ``clip_fraction``. All are 0 if no step counts.
    """
    valid = minibatch.get("valid")
    advantage = minibatch["advantage"]
    if options.normalize_advantages:
        advantage = normalize(advantage, valid)
    log_ratio = log_probabilities(logits, minibatch["action"]) - minibatch["log_prob"]
    error = value - minibatch["return"]
    if valid is not None:  # what stands in steps that were not taken must not overflow, nor reach gradients
        log_ratio, error = jnp.where(valid, log_ratio, 0), jnp.where(valid, error, 0)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - options.clip, 1 + options.clip)
    policy_loss = _mean(-jnp.minimum(ratio * advantage, clipped * advantage), valid)

    squares = jnp.square(error)
    if options.value_clip is not None:
        moved = value - minibatch["value"]
        near = error - moved + jnp.clip(moved, -options.value_clip, options.value_clip)
        squares = jnp.maximum(squares, jnp.square(near))
    value_loss = _mean(squares, valid) / 2

    chances = jax.nn.log_softmax(logits)
    entropy = _mean(-jnp.sum(jnp.exp(chances) * chances, axis=-1), valid)
    loss = policy_loss + options.value_weight * value_loss - options.entropy_weight * entropy
    return loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approximate_kl": _mean(ratio - 1 - log_ratio, valid),
        "clip_fraction": _mean((jnp.abs(ratio - 1) > options.clip).astype(jnp.float32), valid),
    }


def _mean(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Over the valid ones; 0 if there are none."""
    if valid is None:
        return jnp.mean(x)
    return jnp.sum(x, where=valid) / jnp.maximum(jnp.sum(valid), 1)


def _words(name: str) -> str:
    return name.replace("_", "-")
