"""Maps of rooms and corridors, made from a key."""

import dataclasses

import jax
import jax.numpy as jnp

_DOOR = 2  # cells
_GAP = 2  # free cells between parallel walls, at least: what is as narrow is a corridor
_SHORTEST_WALL = 4  # cells, its door included


@dataclasses.dataclass(frozen=True)
class Layout:
    """What maps look like.

    Attributes:
        size: Rows and columns, the outer walls included.
        walls: How many walls are tried; those for which there is room are built.
        second_door: The chance that a wall has two doors, so that there is a way around.
        blocks: How many pieces of furniture are tried; of one or two cells on each side.
    """

    size: int = 20
    walls: int = 40
    second_door: float = 0.25
    blocks: int = 12

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        if not isinstance(self.size, int) or self.size < 8:
            raise ValueError(f"size must be an integer of at least 8 cells, got {self.size}: the default is 20")
        for name in ("walls", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"{name} must be a nonnegative integer, got {value}: the default is {getattr(Layout, name)}"
                )
        if not 0 <= self.second_door <= 1:
            raise ValueError(f"second_door must be in [0, 1], got {self.second_door}: the default is 0.25")


def make(layout: Layout, key: jax.Array) -> jax.Array:
    """A map: bool [size, size], True where a cell is occupied; traced.

    Walls divide a space from wall to wall, leave a door, and are never built into an earlier door. Both sides of a new
    wall are free all along, so any path that it cuts can go along it and through its door: all free cells stay
    connected. Furniture is put where all cells around it are free, and does not divide anything either.
    """
    size = layout.size
    edge = jnp.zeros((size, size), bool).at[jnp.array([0, -1])].set(True).at[:, jnp.array([0, -1])].set(True)
    for_walls, for_blocks = jax.random.split(key)

    def build(spaces: tuple[jax.Array, jax.Array], key: jax.Array):
        return _wall(layout, *spaces, key), None

    def furnish(spaces: tuple[jax.Array, jax.Array], key: jax.Array):
        return _block(*spaces, key), None

    spaces = (edge, jnp.zeros_like(edge))
    spaces, _ = jax.lax.scan(build, spaces, jax.random.split(for_walls, layout.walls))
    (occupied, _), _ = jax.lax.scan(furnish, spaces, jax.random.split(for_blocks, layout.blocks))
    return occupied


def _wall(layout: Layout, occupied: jax.Array, kept: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tries a wall through a random cell; maps (occupied, cells kept free) to both after it."""
    size = layout.size
    where, across, door, second, whether = jax.random.split(key, 5)
    row, column = jax.random.randint(where, (2,), 1, size - 1)
    across = jax.random.bernoulli(across)
    turned = lambda cells: jnp.where(across, cells.T, cells)
    cells, clear = turned(occupied), turned(kept)
    index = jnp.arange(size)
    here = cells[row]
    left = jnp.max(jnp.where(here & (index <= column), index, -1))
    right = jnp.min(jnp.where(here & (index >= column), index, size))
    line = (index > left) & (index < right)
    near = jnp.clip(row + jnp.arange(-_GAP, _GAP + 1), 0, size - 1)
    fits = (right - left > _SHORTEST_WALL) & ~jnp.any(cells[near] & line) & ~jnp.any(clear[row] & line)
    doors = jnp.zeros(size, bool)
    for draw, present in ((door, True), (second, jax.random.bernoulli(whether, layout.second_door))):
        first = jax.random.randint(draw, (), left + 1, jnp.maximum(right - _DOOR, left + 1) + 1)
        doors |= (index >= first) & (index < first + _DOOR) & present
    wall = (index == row)[:, None] & (line & ~doors)[None, :] & fits
    doorway = (jnp.abs(index - row) <= 1)[:, None] & (line & doors)[None, :] & fits
    return turned(cells | wall), turned(clear | doorway)


def _block(occupied: jax.Array, kept: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tries a piece of furniture at a random place."""
    where, how_large = jax.random.split(key)
    size = occupied.shape[0]
    corner = jax.random.randint(where, (2,), 1, size - 3)
    height, width = jax.random.randint(how_large, (2,), 1, 3)
    index = jnp.arange(size)

    def rectangle(margin):
        rows = (index >= corner[0] - margin) & (index < corner[0] + height + margin)
        columns = (index >= corner[1] - margin) & (index < corner[1] + width + margin)
        return rows[:, None] & columns[None, :]

    fits = ~jnp.any((occupied | kept) & rectangle(1))
    return occupied | (rectangle(0) & fits), kept
