"""Which leaf of a model is where in the flat buffers of an exchange; plain numbers, without arrays."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wagma_jax.averaging import Policy

ALIGNMENT = 64  # bytes; XLA takes a view as it is only where it begins at a multiple
MOST_ELEMENTS = 1 << 30  # of a buffer; compiled functions count elements in 32 bits


class Part(NamedTuple):
    """A leaf within its buffer, or a piece of a leaf that is larger than a buffer. Counts are in elements.

    Attributes:
        leaf: Index of the leaf in the tree.
        shape: Of the whole leaf.
        start: Where the piece begins within the flat leaf.
        offset: Where it begins within the buffer.
        size: Of the piece.
    """

    leaf: int
    shape: tuple[int, ...]
    start: int
    offset: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole leaf."""
        return self.size == math.prod(self.shape)


class Layout(NamedTuple):
    """One buffer: its leaves' dtype, whether ordinary rounds exchange it (else only sync rounds do), size and parts."""

    dtype: np.dtype
    ordinary: bool
    size: int
    parts: tuple[Part, ...]


def make_layouts(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any], policies: Sequence[Policy], most_elements: int
) -> tuple[Layout, ...]:
    """The buffers of the leaves that are averaged, for each dtype and policy as many as it takes.

    Args:
        shapes: Of all leaves.
        dtypes: Of all leaves.
        policies: Of all leaves.
        most_elements: Of a buffer; a larger leaf is cut. A multiple of ``ALIGNMENT``.
    """
    found: dict[tuple[str, bool], list[int]] = {}
    for i, policy in enumerate(policies):
        if policy != "keep":
            found.setdefault((str(dtypes[i]), policy == "mean"), []).append(i)
    layouts = []
    for (_, ordinary), leaves in found.items():
        dtype = dtypes[leaves[0]]
        step = max(1, ALIGNMENT // dtype.itemsize)
        parts: list[Part] = []
        size = 0
        for i in leaves:
            start, left = 0, math.prod(shapes[i])
            while True:
                if parts and size + left > most_elements:
                    layouts.append(Layout(dtype, ordinary, size, tuple(parts)))
                    parts, size = [], 0
                piece = min(left, most_elements)
                parts.append(Part(i, shapes[i], start, size, piece))
                size += -(-piece // step) * step
                start, left = start + piece, left - piece
                if not left:
                    break
        layouts.append(Layout(dtype, ordinary, size, tuple(parts)))
    return tuple(layouts)


def pieces_of(layouts: Iterable[Layout]) -> list[tuple[list[int], tuple[int, ...]]] | None:
    """Of each leaf in some buffers, in order: which of their parts it consists of, and its shape.

    None: their parts are whole leaves, and in order.
    """
    found: dict[int, tuple[list[int], tuple[int, ...]]] = {}
    for count, part in enumerate(part for layout in layouts for part in layout.parts):
        found.setdefault(part.leaf, ([], part.shape))[0].append(count)
    in_order = [of for of, _ in found.values()] == [[k] for k in range(len(found))] and list(found) == sorted(found)
    return None if in_order else [found[leaf] for leaf in sorted(found)]
