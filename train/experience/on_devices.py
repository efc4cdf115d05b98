"""Rollouts in environments that are arrays: all of one is a single compiled program."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

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


def collect(world: World, network: Network, ppo: PPOOptions, model: Model, carry: Carry) -> Carry:
    """A worker's next rollout; traced."""
    policy = rollouts.policy_of(network, model)
    steps, _ = carry.rollout["action"].shape
    key, for_world, last, *keys = jax.random.split(carry.key, steps + 3)
    none = jnp.asarray(policy.num_actions, jnp.int32)
    begun = world.begin(for_world)
    state = jax.tree.map(lambda new, old: jnp.where(carry.begun, old, new), begun, carry.world)

    def advance(at: Any, key: jax.Array) -> Any:
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
        return (state, acted.recurrent, jnp.where(done, none, acted.action), done), step

    at = (state, carry.recurrent, carry.previous_action, carry.start)
    at, made = jax.lax.scan(advance, at, jnp.stack(keys))
    state, recurrent, previous_action, start = at
    final = rollouts.act(policy, world.observe(state), previous_action, start, recurrent, last)
    following = carry._replace(world=state, recurrent=recurrent, previous_action=previous_action, start=start, key=key)
    return rollouts.collected(carry, made, final.value, ppo, following)
