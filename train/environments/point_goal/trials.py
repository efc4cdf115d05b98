"""Agents on given episodes, each of them once, and their scores."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.environments.point_goal import rules
from train.environments.point_goal.agents import Agent
from train.environments.point_goal.rules import Episode, Observation, Rules, State

Policy = Callable[[Any, Episode, State, Observation, jax.Array], tuple[Any, jax.Array]]
"""Maps (its memory [episodes, ...], episodes, states, observations, key) to (its memory after, actions [episodes])."""


class Trials(NamedTuple):
    """How an agent fared in some episodes.

    Attributes:
        success: float32 [episodes]: 1 or 0.
        spl: float32 [episodes].
        steps: int32 [episodes].
        travelled: float32 [episodes], in metres.
        poses: float32 [max_steps + 1, episodes, 3]: where it was before each step, and in the end, which repeats.
    """

    success: jax.Array
    spl: jax.Array
    steps: jax.Array
    travelled: jax.Array
    poses: jax.Array


def run(rule: Rules, episodes: Episode, policy: Policy, memory: Any, key: jax.Array) -> Trials:
    """Runs a policy through episodes side by side, without a next one; traced.

    Args:
        rule: The rules.
        episodes: Leaves [episodes, ...].
        policy: Sees all episodes at once.
        memory: What it begins with; leaves [episodes, ...].
        key: Of what it draws.
    """
    count = len(episodes.shortest)
    zeros = jnp.zeros(count, jnp.float32)

    def advance(carried, key):
        states, memory, over, success, spl = carried
        observations = jax.vmap(functools.partial(rules.observe, rule))(episodes, states)
        memory, actions = policy(memory, episodes, states, observations, key)
        after, outcome = jax.vmap(functools.partial(rules.act, rule))(episodes, states, actions)
        after = jax.tree.map(lambda new, old: jnp.where(_like(over, new), old, new), after, states)
        success = jnp.where(over, success, outcome.success)
        spl = jnp.where(over, spl, outcome.spl)
        return (after, memory, over | outcome.done, success, spl), states.pose

    start = jax.vmap(rules.begin)(episodes), memory, zeros > 0, zeros, zeros
    (states, _, _, success, spl), poses = jax.lax.scan(advance, start, jax.random.split(key, rule.max_steps))
    return Trials(success, spl, states.steps, states.travelled, jnp.concatenate([poses, states.pose[None]]))


@functools.partial(jax.jit, static_argnums=(0, 2))
def run_agent(rule: Rules, episodes: Episode, agent: Agent, key: jax.Array) -> Trials:
    """Runs an agent that does not learn through episodes with leaves [episodes, ...]."""

    def policy(memory, episodes, states, observations, key):
        each = jax.vmap(functools.partial(agent, rule))
        return memory, each(episodes, states, observations, jax.random.split(key, len(states.steps)))

    return run(rule, episodes, policy, (), key)


def scores(trials: Trials) -> Mapping[str, float]:
    """Mean success and SPL."""
    return {"success": float(np.mean(trials.success)), "spl": float(np.mean(trials.spl))}


def _like(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))
