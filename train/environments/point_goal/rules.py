"""The rules of point-goal navigation: one agent in one episode; no batches, no next episode.

After Anderson et al., "On Evaluation of Embodied Navigation Agents", 2018 (arXiv:1807.06757), and the Habitat
challenge: the agent succeeds if it calls for a stop within a radius of the goal, and is scored by SPL.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.environments.point_goal import geodesic, rays

FORWARD, LEFT, RIGHT, STOP = range(4)
ACTIONS = ("forward", "left", "right", "stop")
_MARGIN = 0.05  # cells between an agent and the wall that stops it


@dataclasses.dataclass(frozen=True)
class Rules:
    """What actions do, what the agent sees, and what is rewarded. Lengths are in metres, angles in degrees.

    Attributes:
        cell: The side of a cell of the map.
        forward: The length of a step.
        turn: The angle of a turn.
        rays: How many depths the agent sees.
        field_of_view: The angle between the first and the last of them.
        depth_limit: What lies further away is not seen.
        success_radius: How near to the goal a stop is a success, by the length of the path that is left.
        max_steps: An episode ends after so many.
        success_reward: For a stop near the goal.
        step_reward: Added to every step's reward, which is otherwise by how much the path to the goal gets shorter.
    """

    cell: float = 0.5
    forward: float = 0.25
    turn: float = 30.0
    rays: int = 16
    field_of_view: float = 180.0
    depth_limit: float = 5.0
    success_radius: float = 0.36
    max_steps: int = 200
    success_reward: float = 2.5
    step_reward: float = -0.01

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        for name in ("cell", "forward", "turn", "depth_limit", "success_radius"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}: the default is {getattr(Rules, name)}")
        if not 0 <= self.field_of_view <= 360:
            raise ValueError(f"field_of_view must be in [0, 360] degrees, got {self.field_of_view}: the default is 180")
        for name in ("rays", "max_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} must be an integer of at least 1, got {value}: the default is {getattr(Rules, name)}"
                )

    def ray_angles(self) -> jax.Array:
        """float32 [rays]: their directions relative to the heading, in radians, from right to left."""
        half = math.radians(self.field_of_view) / 2
        return jnp.linspace(-half, half, self.rays) if self.rays > 1 else jnp.zeros(1)


class Episode(NamedTuple):
    """What an agent is set to do.

    Attributes:
        occupied: bool [rows, columns]: the map.
        distance: float32 [rows, columns]: length of the shortest path from each cell to the goal, in metres.
        start: float32 [3]: x, y, heading.
        goal: float32 [2]: x, y.
        shortest: float32 []: length of the shortest path from the start to the goal, in metres.
    """

    occupied: jax.Array
    distance: jax.Array
    start: jax.Array
    goal: jax.Array
    shortest: jax.Array


class State(NamedTuple):
    """An agent within an episode.

    Attributes:
        pose: float32 [3]: x, y, heading in [-pi, pi).
        distance: float32 []: length of the path to the goal that is left, in metres.
        travelled: float32 []: length of the path so far, in metres.
        steps: int32 []: actions taken.
    """

    pose: jax.Array
    distance: jax.Array
    travelled: jax.Array
    steps: jax.Array


class Observation(NamedTuple):
    """What the agent sees.

    Attributes:
        depth: float32 [rays]: distances to the next wall as shares of the depth limit, in [0, 1], from right to left.
        goal: float32 [2]: where the goal is relative to the agent (GPS and compass): metres, and radians to the left of
            its heading in [-pi, pi).
    """

    depth: jax.Array
    goal: jax.Array


class Outcome(NamedTuple):
    """What comes of an action.

    Attributes:
        reward: float32 [].
        done: bool []: whether the episode is over.
        success: float32 []: 1 if it is over and the agent has stopped near the goal, else 0.
        spl: float32 []: its SPL if it is over, else 0.
    """

    reward: jax.Array
    done: jax.Array
    success: jax.Array
    spl: jax.Array


def make_episode(rules: Rules, occupied: jax.Array, start: jax.Array, goal: jax.Array, heading: jax.Array) -> Episode:
    """An episode from one cell to another; traced.

    Args:
        rules: For the side of a cell.
        occupied: bool [rows, columns], with occupied cells all around (see :func:`check_map`).
        start: int32 [2], row and column.
        goal: int32 [2], row and column.
        heading: float32 [], at the start.
    """
    field = geodesic.distances(occupied, goal) * rules.cell
    centre = lambda cell: (cell[::-1] + 0.5) * rules.cell
    pose = jnp.concatenate([centre(start), jnp.reshape(heading, (1,))]).astype(jnp.float32)
    return Episode(occupied, field, pose, centre(goal).astype(jnp.float32), field[start[0], start[1]])


def check_map(occupied) -> None:
    """Raises ValueError if a map (bool [rows, columns]) has no walls all around."""
    if occupied.ndim != 2 or min(occupied.shape) < 3 or occupied.dtype != bool:
        raise ValueError(
            f"a map must be bool [rows, columns] of at least 3 x 3 cells, got {occupied.dtype}"
            f"{list(occupied.shape)}: True stands for occupied"
        )
    if not (occupied[0].all() and occupied[-1].all() and occupied[:, 0].all() and occupied[:, -1].all()):
        raise ValueError("a map must have occupied cells all around, got a free one at its edge: add a frame of walls")


def begin(episode: Episode) -> State:
    """The state at the start."""
    return State(episode.start, episode.shortest, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def observe(rules: Rules, episode: Episode, state: State) -> Observation:
    """What the agent sees."""
    heading = state.pose[2]
    seen = rays.depths(
        episode.occupied, state.pose[:2] / rules.cell, heading + rules.ray_angles(), rules.depth_limit / rules.cell
    )
    x, y = episode.goal - state.pose[:2]
    goal = jnp.stack([jnp.hypot(x, y), wrapped(jnp.arctan2(y, x) - heading)])
    return Observation(seen * (rules.cell / rules.depth_limit), goal)


def act(rules: Rules, episode: Episode, state: State, action: jax.Array) -> tuple[State, Outcome]:
    """One step: maps (state, action, an int32 [] of :data:`ACTIONS`) to the state after it and what comes of it."""
    turns = jnp.array([0.0, 1.0, -1.0, 0.0])[action] * math.radians(rules.turn)
    pose, moved = move(rules, episode.occupied, state.pose.at[2].set(wrapped(state.pose[2] + turns)), action == FORWARD)
    distance = geodesic.distance_at(episode.distance / rules.cell, pose[:2] / rules.cell) * rules.cell
    after = State(pose, distance, state.travelled + moved, state.steps + 1)
    stops = action == STOP
    success = stops & (distance <= rules.success_radius)
    done = stops | (after.steps >= rules.max_steps)
    reward = state.distance - distance + rules.step_reward + rules.success_reward * success
    scored = spl(success, episode.shortest, after.travelled)
    return after, Outcome(reward, done, success.astype(jnp.float32), scored)


def move(rules: Rules, occupied: jax.Array, pose: jax.Array, forward: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pose after a step forward, or none, and by how much that was; a wall ends the step, and there is no sliding.

    Args:
        rules: For the length of a step.
        occupied: The map.
        pose: float32 [3].
        forward: bool []: whether there is a step.
    """
    position = pose[:2] / rules.cell
    step = rules.forward / rules.cell
    ahead = rays.depths(occupied, position, pose[2:], step + _MARGIN)[0]
    length = jnp.where(forward, jnp.maximum(ahead - _MARGIN, 0.0), 0.0)
    there = position + length * jnp.stack([jnp.cos(pose[2]), jnp.sin(pose[2])])
    column, row = jnp.floor(there).astype(jnp.int32)
    length = jnp.where(occupied[row, column], 0.0, length)  # rounding must never put anybody into a wall
    there = jnp.where(length > 0, there, position) * rules.cell
    return jnp.concatenate([there, pose[2:]]), length * rules.cell


def spl(success: jax.Array, shortest: jax.Array, travelled: jax.Array) -> jax.Array:
    """Success weighted by path length: S l / max(p, l) (Anderson et al. 2018, equation 1), of one or more episodes.

    Args:
        success: S, bool or 0 and 1.
        shortest: l, the length of the shortest path from the start to the goal, above 0.
        travelled: p, the length of the path that the agent took.
    """
    return success * shortest / jnp.maximum(travelled, shortest)


def wrapped(angle: jax.Array) -> jax.Array:
    """An angle in radians, brought into [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi
