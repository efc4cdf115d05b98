"""How far it is to the next wall, in closed form: no step along the ray depends on the one before."""

import math

import jax
import jax.numpy as jnp

_NEAR_CORNER = 1e-4  # cells; a ray that passes a corner this closely touches both cells beside it


def depths(occupied: jax.Array, position: jax.Array, angles: jax.Array, limit: float) -> jax.Array:
    """The distances to the first occupied cells in some directions.

    A ray can enter a cell only where it crosses a line of the grid. All crossings up to the limit are computed at once,
    and the nearest one is taken behind which there is an occupied cell. A ray through the corner of an occupied cell
    ends there, so that nothing passes between two cells that touch at a corner.

    Args:
        occupied: bool [rows, columns], with occupied cells all around.
        position: float32 [2], x and y in cells, within a free cell.
        angles: float32 [rays], in radians from x towards y.
        limit: In cells; what lies further away is not seen.

    Returns:
        float32 [rays], in cells, at most ``limit``.
    """
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)  # [rays, 2]
    along_columns = _nearest(occupied.T, position, directions, limit)
    along_rows = _nearest(occupied, position[::-1], directions[:, ::-1], limit)
    return jnp.minimum(along_columns, along_rows)


def _nearest(lines: jax.Array, position: jax.Array, directions: jax.Array, limit: float) -> jax.Array:
    """Where rays first cross into an occupied cell from one line of cells to the next.

    Args:
        lines: bool [lines, cells in each].
        position: [2], across the lines and along them.
        directions: [rays, 2], likewise.
        limit: As for :func:`depths`.
    """
    across, along = directions[:, :1], directions[:, 1:]  # [rays, 1]
    here = jnp.floor(position[0])
    steps = jnp.arange(math.ceil(limit) + 1)  # [crossings]
    forwards = across > 0
    boundary = jnp.where(forwards, here + 1 + steps, here - steps)  # [rays, crossings]
    line = (boundary - jnp.where(forwards, 0, 1)).astype(jnp.int32)
    parallel = jnp.abs(across) < 1e-9
    distance = (boundary - position[0]) / jnp.where(parallel, 1.0, across)
    cell = position[1] + distance * along
    inside = (line >= 0) & (line < lines.shape[0])
    hit = jnp.zeros(line.shape, bool)
    for nudge in (-_NEAR_CORNER, _NEAR_CORNER):
        hit |= lines[
            jnp.clip(line, 0, lines.shape[0] - 1),
            jnp.clip(jnp.floor(cell + nudge).astype(jnp.int32), 0, lines.shape[1] - 1),
        ]
    return jnp.min(jnp.where(hit & inside & ~parallel, distance, limit), -1, initial=limit)
