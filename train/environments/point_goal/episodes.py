"""Episodes made beforehand, each on a map of its own: starts and goals that are always connected."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from train.environments.point_goal import maps, rules
from train.environments.point_goal.maps import Layout
from train.environments.point_goal.rules import Episode, Rules

Split = Literal["training", "evaluation"]
_SPLITS = {"training": 0, "evaluation": 1}
_AT_A_TIME = 256  # candidates, few enough to stay in the cache
_MOST_REJECTED = 20  # of the candidates for each episode, on average


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Which starts and goals are taken.

    Attributes:
        shortest: The shortest path from start to goal that there may be, in metres.
        longest: The longest.
        detour: By how much that path must be longer than the straight line, at least, as a factor. Paths of a grid are
            up to 1.08 times as long even where nothing is in the way.
    """

    shortest: float = 2.0
    longest: float = 15.0
    detour: float = 1.2

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        if not 0 < self.shortest < self.longest < math.inf:
            raise ValueError(
                f"shortest and longest must be lengths with 0 < shortest < longest, got {self.shortest} and "
                f"{self.longest}: the defaults are 2 and 15"
            )
        if not 1 <= self.detour < math.inf:
            raise ValueError(f"detour must be at least 1, got {self.detour}: the default is 1.2")


LAYOUT, DIFFICULTY, RULES = Layout(), Difficulty(), Rules()


def make(
    count: int,
    seed: int,
    split: Split,
    layout: Layout = LAYOUT,
    difficulty: Difficulty = DIFFICULTY,
    rule: Rules = RULES,
) -> Episode:
    """Makes episodes: a pure function of its arguments.

    Args:
        count: How many.
        seed: Of everything that is drawn.
        split: Training and evaluation draw from streams of their own, so that they have no map in common.
        layout: Of the maps.
        difficulty: Which starts and goals are taken.
        rule: For the side of a cell.

    Returns:
        An episode whose leaves are NumPy arrays [count, ...].

    Raises:
        ValueError: Hardly any start and goal on such maps are that difficult, or a number is out of range.
    """
    for each in (layout, difficulty, rule):
        each.check()
    if count < 1:
        raise ValueError(f"the number of episodes must be at least 1, got {count}: the pools need one")
    stream = jax.random.fold_in(jax.random.key(seed), _SPLITS[split])
    found: list[Episode] = []
    tried = kept = 0
    while kept < count:
        if tried > _MOST_REJECTED * max(kept, _AT_A_TIME):
            raise ValueError(
                f"of {tried} starts and goals on such maps only {kept} have a path of {difficulty.shortest} to "
                f"{difficulty.longest} m that is {difficulty.detour} times the straight line: ask for less detour, or "
                "for more walls"
            )
        candidates, valid = jax.device_get(_candidates(layout, difficulty, rule, stream, np.int32(tried)))
        tried += len(valid)
        kept += int(valid.sum())
        found.append(jax.tree.map(lambda leaf: leaf[valid], candidates))  # noqa: B023
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _candidates(
    layout: Layout, difficulty: Difficulty, rule: Rules, stream: jax.Array, first: jax.Array
) -> tuple[Episode, jax.Array]:
    """Some episodes, and which of them are difficult enough."""
    numbers = first + jnp.arange(_AT_A_TIME)
    return jax.vmap(lambda number: _candidate(layout, difficulty, rule, jax.random.fold_in(stream, number)))(numbers)


def _candidate(layout: Layout, difficulty: Difficulty, rule: Rules, key: jax.Array) -> tuple[Episode, jax.Array]:
    for_map, for_goal, for_start, for_heading = jax.random.split(key, 4)
    occupied = maps.make(layout, for_map)
    goal = _draw(for_goal, ~occupied)
    heading = jax.random.uniform(for_heading, (), minval=-jnp.pi, maxval=jnp.pi)
    there = rules.make_episode(rule, occupied, goal, goal, heading)
    cells = (jnp.arange(layout.size) + 0.5) * rule.cell
    straight = jnp.hypot(cells[:, None] - there.goal[1], cells[None, :] - there.goal[0])
    length = there.distance
    wanted = (length >= difficulty.shortest) & (length <= difficulty.longest) & (length >= difficulty.detour * straight)
    row, column = _draw(for_start, wanted)
    start = jnp.stack([*((jnp.stack([column, row]) + 0.5) * rule.cell), heading])
    return there._replace(start=start, shortest=length[row, column]), jnp.any(wanted)


def _draw(key: jax.Array, cells: jax.Array) -> jax.Array:
    """Row and column, int32 [2], of a random one among the cells that are True."""
    index = jax.random.categorical(key, jnp.where(cells.reshape(-1), 0.0, -jnp.inf))
    return jnp.stack(jnp.unravel_index(index, cells.shape)).astype(jnp.int32)
