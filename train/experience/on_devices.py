"""Rollouts in environments that are arrays: one is a single compiled program, or several calls of one for a part."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from models.policy import Policy
from train.experience import rollouts
from train.experience.rollouts import Carry
from train.networks import Network
from train.ppo import PPOOptions
from train.task import Model


class World(Protocol):
    """A worker's environments, whose state is a tree of arrays; traced."""

    def begin(self, key: jax.Array) -> Any:
        """The state of all environments at the start."""
        ...

    def observe(self, state: Any) -> dict[str, jax.Array]:
        """What the policy takes; leaves [environments, ...]."""
        ...

    def step(self, state: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Maps actions, int32 [environments], to the state after them, rewards, which episodes ended, and their scores.

        An environment whose episode ended is at the start of the next one.
        """
        ...


class At(NamedTuple):
    """Where a worker is in a rollout.

    Attributes:
        world: State of its environments.
        recurrent: The policy's state.
        previous_action: int32 [environments].
        start: bool [environments]: whether the next observation is the first of its episode.
    """

    world: Any
    recurrent: Any
    previous_action: jax.Array
    start: jax.Array


class _Keys(NamedTuple):
    """The random keys of a rollout: of what follows it, its environments' start, its last value, and each step."""

    following: jax.Array
    world: jax.Array
    last: jax.Array
    steps: jax.Array


def collect(world: World, network: Network, ppo: PPOOptions, model: Model, carry: Carry) -> Carry:
    """A worker's next rollout; traced."""
    policy = rollouts.policy_of(network, model)
    keys = _keys(carry)
    at, made = _advance(world, policy, _begin(world, carry, keys), keys.steps)
    return _collected(world, policy, ppo, carry, at, made, keys, None)


def begin(world: World, network: Network, model: Model, carry: Carry) -> tuple[At, Any]:
    """Where a rollout in parts begins, and room for all of its steps; traced."""
    policy, keys = rollouts.policy_of(network, model), _keys(carry)
    at = _begin(world, carry, keys)
    _, made = jax.eval_shape(lambda: _advance(world, policy, at, keys.steps))
    return at, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)


def collect_part(
    world: World, network: Network, steps: int, model: Model, carry: Carry, at: At, made: Any, first: jax.Array
) -> tuple[At, Any]:
    """Some steps of a rollout, the same as they would be in one piece; traced.

    Args:
        world: The environments.
        network: Of the policy.
        steps: How many.
        model: Its arrays.
        carry: From before the rollout.
        at: Where the worker is.
        made: The steps before this part.
        first: int32 []: the first of its steps.
    """
    keys = jax.lax.dynamic_slice_in_dim(_keys(carry).steps, first, steps)
    at, more = _advance(world, rollouts.policy_of(network, model), at, keys)
    put = lambda whole, some: jax.lax.dynamic_update_slice_in_dim(whole, some, first, 0)
    return at, jax.tree.map(put, made, more)


def end(
    world: World, network: Network, ppo: PPOOptions, model: Model, carry: Carry, at: At, made: Any, steps: jax.Array
) -> Carry:
    """The carry after a rollout of which only the first steps (int32 []) were taken; traced."""
    policy = rollouts.policy_of(network, model)
    return _collected(world, policy, ppo, carry, at, made, _keys(carry), steps)


def _keys(carry: Carry) -> _Keys:
    steps, _ = carry.rollout["action"].shape
    following, world, last, *each = jax.random.split(carry.key, steps + 3)
    return _Keys(following, world, last, jnp.stack(each))


def _begin(world: World, carry: Carry, keys: _Keys) -> At:
    begun = world.begin(keys.world)
    state = jax.tree.map(lambda new, old: jnp.where(carry.begun, old, new), begun, carry.world)
    return At(state, carry.recurrent, carry.previous_action, carry.start)


def _advance(world: World, policy: Policy, at: At, keys: jax.Array) -> tuple[At, Any]:
    """A step for each key; and by the names of ``ppo``, leaves [steps, environments, ...]."""
    none = jnp.asarray(policy.num_actions, jnp.int32)

    def advance(at: At, key: jax.Array) -> tuple[At, Any]:
        state, recurrent, previous_action, start = at
        observation = world.observe(state)
        acted = rollouts.act(policy, observation, previous_action, start, recurrent, key)
        state, reward, done, scores = world.step(state, acted.action)
        step = {
            "observation": observation,
            "previous_action": previous_action,
            "start": start,
            "action": acted.action,
            "log_prob": acted.log_prob,
            "value": acted.value,
            "reward": reward,
            "done": done,
            "truncated": jnp.zeros_like(done),  # the limit of steps is one of the rules
            "final_value": jnp.zeros_like(acted.value),
            "scores": scores,
        }
        return At(state, acted.recurrent, jnp.where(done, none, acted.action), done), step

    return jax.lax.scan(advance, at, keys)


def _collected(
    world: World, policy: Policy, ppo: PPOOptions, carry: Carry, at: At, made: Any, keys: _Keys, steps: Any
) -> Carry:
    state, recurrent, previous_action, start = at
    final = rollouts.act(policy, world.observe(state), previous_action, start, recurrent, keys.last)
    following = carry._replace(
        world=state, recurrent=recurrent, previous_action=previous_action, start=start, key=keys.following
    )
    return rollouts.collected(carry, made, final.value, ppo, following, steps)
