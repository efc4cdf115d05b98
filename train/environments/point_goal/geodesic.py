"""Lengths of shortest paths on a map of cells: eight neighbours, and no cut corners."""

import math

import jax
import jax.numpy as jnp

_DIAGONAL = math.sqrt(2)
_STRAIGHT_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
_DIAGONAL_MOVES = ((1, 1), (1, -1), (-1, 1), (-1, -1))
MOVES = (*_STRAIGHT_MOVES, *_DIAGONAL_MOVES)
"""The eight neighbours of a cell, as (rows, columns) away from it."""


def distances(occupied: jax.Array, goal: jax.Array) -> jax.Array:
    """The lengths of the shortest paths from all cells to one, by relaxation until nothing changes (Bellman-Ford).

    A path goes from a free cell to one of its eight neighbours. It takes a diagonal only between two free cells, so
    that it never cuts a corner. Such paths are up to 8 % longer than the shortest ones of any direction.

    Args:
        occupied: bool [rows, columns].
        goal: int32 [2], its row and column; a free cell.

    Returns:
        float32 [rows, columns], in cells; infinite where no path leads, which occupied cells include.
    """
    free = ~occupied
    start = jnp.full(occupied.shape, jnp.inf, jnp.float32).at[goal[0], goal[1]].set(0.0)
    passable = {(dy, dx): _shifted(free, dy, 0, False) & _shifted(free, 0, dx, False) for dy, dx in _DIAGONAL_MOVES}

    def relax(field):
        best = field
        for dy, dx in _STRAIGHT_MOVES:
            best = jnp.minimum(best, _shifted(field, dy, dx, jnp.inf) + 1.0)
        for (dy, dx), open_ in passable.items():
            best = jnp.minimum(best, jnp.where(open_, _shifted(field, dy, dx, jnp.inf) + _DIAGONAL, jnp.inf))
        return jnp.where(free, best, jnp.inf)

    def going_on(fields):
        before, after = fields
        return jnp.any(before != after)

    _, field = jax.lax.while_loop(going_on, lambda fields: (fields[1], relax(fields[1])), (start, relax(start)))
    return field


def distance_at(field: jax.Array, position: jax.Array) -> jax.Array:
    """The length of a path to the goal from a point: straight to the centre of one of the nine nearest cells, and on.

    Args:
        field: float32 [rows, columns], what :func:`distances` returned, of a map with occupied cells all around.
        position: float32 [2], x and y in cells, within a free cell.

    Returns:
        float32 [], in cells: the length of the shortest of these paths; at the centre of a cell it is the cell's.
    """
    column, row = jnp.floor(position).astype(jnp.int32)
    around = jax.lax.dynamic_slice(field, (row - 1, column - 1), (3, 3))
    inside = position - jnp.floor(position)  # x and y within the cell
    centres = jnp.arange(3) - 0.5
    straight = jnp.hypot(centres[:, None] - inside[1], centres[None, :] - inside[0])
    free = jnp.isfinite(around)
    # a diagonal neighbour is reached between two free cells only
    beside = free[1, :][None, :] & free[:, 1][:, None]
    return jnp.min(jnp.where(beside, around + straight, jnp.inf))


def _shifted(array: jax.Array, rows: int, columns: int, outside: jax.typing.ArrayLike) -> jax.Array:
    """The array with element [i + rows, j + columns] at [i, j]."""
    padded = jnp.pad(array, 1, constant_values=outside)
    height, width = array.shape
    return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
