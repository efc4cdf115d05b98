"""What a worker has collected, and what it carries from step to step.

An iteration is one rollout of all the environments of a worker, and then several updates from minibatches of it. The
carry holds the rollout and all that the next one begins with, so that a run goes on exactly in the middle of one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.policy import Policy
from train.networks import Network
from train.ppo import PPOOptions, gae, log_probabilities, minibatch_order, take_environments
from train.task import Mean, Model


class Size(NamedTuple):
    """The sizes of a worker's experience.

    Attributes:
        steps: Of each environment in a rollout.
        environments: Of a worker.
        actions: How many there are; the next number stands for none, before the first action of an episode.
    """

    steps: int
    environments: int
    actions: int


class Carry(NamedTuple):
    """What a worker carries from step to step.

    Attributes:
        begun: bool []: whether anything has been collected.
        world: State of its environments; () where simulators keep it.
        recurrent: The policy's state; leaves [environments, ...].
        previous_action: int32 [environments].
        start: bool [environments]: whether the next observation is the first of its episode.
        key: Of all that is drawn for rollouts.
        rollout: What updates learn from, by the names of ``ppo``.
        order: int32 [updates, environments of a minibatch]: whose experience each update takes.
        sums: float32 [] by name: ``steps``, ``return``, and of the episodes that ended ``episodes`` and their scores.
    """

    begun: jax.Array
    world: Any
    recurrent: Any
    previous_action: jax.Array
    start: jax.Array
    key: jax.Array
    rollout: dict[str, Any]
    order: jax.Array
    sums: dict[str, jax.Array]


def empty(
    size: Size,
    policy: Policy,
    depth_shape: tuple[int, ...],
    ppo: PPOOptions,
    scores: tuple[str, ...],
    world: Any,
    key: Any,
    may_end: bool = False,
) -> Carry:
    """The carry before anything is collected; traced.

    Args:
        size: Of the experience.
        policy: For the shapes of its state.
        depth_shape: Of one observation's depths.
        ppo: How many updates there are.
        scores: Names of what ended episodes are scored by.
        world: State of the environments.
        key: Of all that is drawn for rollouts.
        may_end: Whether rollouts may end early: they then say which of their steps were taken.
    """
    steps, count, actions = size
    number = jnp.zeros((steps, count), jnp.float32)
    state = policy.initial_state(count)
    rollout = {
        "observation": {"depth": jnp.zeros((steps, count, *depth_shape)), "goal": jnp.zeros((steps, count, 2))},
        "previous_action": number.astype(jnp.int32),
        "start": number > 0,
        "action": number.astype(jnp.int32),
        **dict.fromkeys(("log_prob", "value", "advantage", "return"), number),
        "recurrent": state,
    }
    if may_end:
        rollout["valid"] = number > 0
    zero = jnp.zeros((), jnp.float32)
    return Carry(
        zero > 0,
        world,
        state,
        jnp.full(count, actions, jnp.int32),
        jnp.ones(count, bool),
        key,
        rollout,
        jnp.zeros((ppo.epochs * ppo.minibatches, count // ppo.minibatches), jnp.int32),
        dict.fromkeys(("steps", "return", "episodes", *scores), zero),
    )


class Acted(NamedTuple):
    """What a policy does; leaves [environments, ...]."""

    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    recurrent: Any


def act(
    policy: Policy, observation: dict[str, jax.Array], previous_action: Any, start: Any, recurrent: Any, key: jax.Array
) -> Acted:
    """Draws actions from the policy; traced."""
    output, recurrent = policy.step(observation, previous_action, start, recurrent)
    action = jax.random.categorical(key, output.logits).astype(jnp.int32)
    return Acted(action, log_probabilities(output.logits, action), output.value, recurrent)


def collected(
    carry: Carry,
    steps: dict[str, Any],
    last_value: jax.Array,
    ppo: PPOOptions,
    following: Carry,
    taken: jax.Array | None = None,
) -> Carry:
    """The carry after a rollout; traced.

    Args:
        carry: That before it.
        steps: By the names of ``ppo``, leaves [steps, environments, ...]; ``scores`` among them, by name, of the
            episodes that end at a step.
        last_value: float32 [environments]: the policy's value of what follows.
        ppo: How advantages are computed, and how many updates there are.
        following: What the next rollout begins with; all else of it is replaced.
        taken: int32 []: how many of the steps of each environment were taken, the first ones; None: all. What stands in
            the others must be finite.
    """
    done, truncated = steps["done"], steps["truncated"]
    valid = None
    if taken is not None:
        valid = jnp.broadcast_to(jnp.arange(len(done))[:, None] < taken, done.shape)
    advantage, returns = gae(
        steps["reward"], steps["value"], done, truncated, steps["final_value"], last_value, ppo.discount, ppo.decay,
        valid,
    )  # fmt: skip
    names = ("observation", "previous_action", "start", "action", "log_prob", "value")
    rollout = {name: steps[name] for name in names}
    if valid is not None:
        rollout["valid"] = valid
    key, draw = jax.random.split(following.key)
    add = lambda x: jnp.sum(x, where=valid)
    count = jnp.full_like(last_value[0], done.size) if valid is None else valid.sum(dtype=jnp.float32)
    ended = (done | truncated).astype(jnp.float32)
    sums = {"steps": count, "return": add(steps["reward"]), "episodes": add(ended)}
    return following._replace(
        begun=jnp.ones_like(carry.begun),
        key=key,
        rollout=rollout | {"advantage": advantage, "return": returns, "recurrent": carry.recurrent},
        order=minibatch_order(draw, len(last_value), ppo),
        sums=sums | {name: add(each) for name, each in steps["scores"].items()},
    )


def minibatch(carry: Carry, update: jax.Array) -> dict[str, Any]:
    """The experience that an update (int32 []) learns from: leaves [steps, environments of it, ...]; traced."""
    return take_environments(carry.rollout, carry.order[update])


def episode_metrics(carry: Carry, update: jax.Array) -> dict[str, Mean]:
    """Means over the episodes that ended in the rollout, counted at its first update only; traced.

    ``return`` is what was rewarded in it, for each episode that ended. Where rollouts may end early, ``collected`` is
    the share of their steps that was taken.
    """
    counted = (update == 0).astype(jnp.float32)
    episodes = carry.sums["episodes"] * counted
    means = {
        name: Mean(total * counted, episodes) for name, total in carry.sums.items() if name not in ("steps", "episodes")
    }
    if "valid" in carry.rollout:
        means["collected"] = Mean(carry.sums["steps"] * counted, carry.rollout["valid"].size * counted)
    return means


def policy_of(network: Network, model: Model) -> Policy:
    """The policy with these arrays."""
    policy = network.for_evaluation(model)
    assert isinstance(policy, Policy)
    return policy
