"""Agents that do not learn, to compare with: an oracle, one that goes straight to the goal, one that draws its actions.

An agent is a function of (rules, episode, state, observation, key) to an action, int32 [].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from train.environments.point_goal import geodesic, rules
from train.environments.point_goal.rules import FORWARD, LEFT, RIGHT, STOP, Episode, Observation, Rules, State

Agent = Callable[[Rules, Episode, State, Observation, jax.Array], jax.Array]


def oracle(rule: Rules, episode: Episode, state: State, observation: Observation, key: jax.Array) -> jax.Array:
    """Knows the map: turns to where two steps bring it nearest to the goal, and goes on from there."""
    del observation, key
    turns = max(round(360 / rule.turn), 1)
    half = turns // 2
    options = jnp.arange(turns) - half  # turns to the left

    def towards(pose, turn):
        turned = pose.at[2].add(turn * math.radians(rule.turn))
        pose, _ = rules.move(rule, episode.occupied, turned, jnp.array(True))
        return pose, geodesic.distance_at(episode.distance / rule.cell, pose[:2] / rule.cell)

    poses, near = jax.vmap(towards, (None, 0))(state.pose, options)
    _, further = jax.vmap(jax.vmap(towards, (None, 0)), (0, None))(poses, options)
    # ties are broken by the first step and by the fewest turns
    left = jnp.min(further, -1) + 1e-3 * near + 1e-4 * jnp.abs(options)
    best = options[jnp.argmin(left)]
    turn = jnp.where(best > 0, LEFT, RIGHT)
    return jnp.where(state.distance <= rule.success_radius, STOP, jnp.where(best == 0, FORWARD, turn))


def straight(rule: Rules, episode: Episode, state: State, observation: Observation, key: jax.Array) -> jax.Array:
    """Turns to the goal and walks, as if there were no walls."""
    del episode, state, key
    distance, bearing = observation.goal
    turn = jnp.where(bearing > 0, LEFT, RIGHT)
    on = jnp.where(jnp.abs(bearing) <= math.radians(rule.turn) / 2 + 1e-6, FORWARD, turn)
    return jnp.where(distance <= rule.success_radius, STOP, on)


def random(rule: Rules, episode: Episode, state: State, observation: Observation, key: jax.Array) -> jax.Array:
    """Draws one of the four actions."""
    del rule, episode, state, observation
    return jax.random.randint(key, (), 0, len(rules.ACTIONS))


BASELINES: dict[str, Agent] = {"oracle": oracle, "straight": straight, "random": random}
