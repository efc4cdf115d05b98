"""Many agents at once, each of which goes on with another episode when one ends. The rules know nothing of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.environments.point_goal import rules
from train.environments.point_goal.rules import Episode, Observation, Outcome, Rules, State


class Agents(NamedTuple):
    """Agents in a pool of episodes.

    Attributes:
        state: Leaves [agents, ...].
        episode: int32 [agents]: the index in the pool of each agent's episode.
        key: The random key that the next episodes are drawn from.
    """

    state: State
    episode: jax.Array
    key: jax.Array


def empty(count: int, key: jax.Array) -> Agents:
    """Agents that are nowhere yet: the shapes of what :func:`begin` returns, without a pool."""
    zeros = jnp.zeros(count, jnp.float32)
    state = State(jnp.zeros((count, 3), jnp.float32), zeros, zeros, zeros.astype(jnp.int32))
    return Agents(state, state.steps, key)


def begin(pool: Episode, count: int, key: jax.Array) -> Agents:
    """Agents at the starts of random episodes of a pool, whose leaves are [episodes, ...]."""
    key, draw = jax.random.split(key)
    episode = jax.random.randint(draw, (count,), 0, len(pool.shortest))
    return Agents(jax.vmap(rules.begin)(_at(pool, episode)), episode, key)


def observe(rule: Rules, pool: Episode, agents: Agents) -> Observation:
    """What the agents see; leaves [agents, ...]."""
    return jax.vmap(lambda index, state: rules.observe(rule, _at(pool, index), state))(agents.episode, agents.state)


def step(rule: Rules, pool: Episode, agents: Agents, action: jax.Array) -> tuple[Agents, Outcome]:
    """One step of all agents.

    Args:
        rule: The rules.
        pool: Episodes with leaves [episodes, ...].
        agents: Agents in them.
        action: int32 [agents].

    Returns:
        (agents, what came of their actions). Agents whose episode is over are at the start of another one.
    """

    def advance(index, following, state, action):
        after, outcome = rules.act(rule, _at(pool, index), state, action)
        anew = rules.begin(pool._replace(start=pool.start[following], shortest=pool.shortest[following]))
        return jax.tree.map(lambda new, old: jnp.where(outcome.done, new, old), anew, after), outcome

    key, draw = jax.random.split(agents.key)
    following = jax.random.randint(draw, agents.episode.shape, 0, len(pool.shortest))
    state, outcome = jax.vmap(advance)(agents.episode, following, agents.state, action)
    return Agents(state, jnp.where(outcome.done, following, agents.episode), key), outcome


@dataclasses.dataclass(frozen=True)
class World:
    """The agents of a worker as ``train.experience.on_devices`` has them.

    Attributes:
        rule: The rules.
        pool: Episodes with leaves [episodes, ...].
        count: Agents.
    """

    rule: Rules
    pool: Episode
    count: int

    def begin(self, key: jax.Array) -> Agents:
        """Agents at the starts of random episodes."""
        return begin(self.pool, self.count, key)

    def observe(self, state: Agents) -> dict[str, jax.Array]:
        """What the agents see, by name."""
        return observe(self.rule, self.pool, state)._asdict()

    def step(self, state: Agents, action: jax.Array) -> tuple[Agents, jax.Array, jax.Array, dict[str, jax.Array]]:
        """The agents after actions, rewards, which episodes ended, and their scores."""
        state, outcome = step(self.rule, self.pool, state, action)
        return state, outcome.reward, outcome.done, {"success": outcome.success, "spl": outcome.spl}


def _at(pool: Episode, index: jax.Array) -> Episode:
    return jax.tree.map(lambda leaf: leaf[index], pool)
