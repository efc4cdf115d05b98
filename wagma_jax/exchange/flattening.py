"""Joins leaves into flat buffers, and splits these again; functions of arrays, to be compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wagma_jax.exchange.layouts import Layout
from wagma_jax.exchange.storage import Buffers, storage_dtype, stored, values


def concatenated(layouts: tuple[Layout, ...], wanted: Sequence[Sequence[Any]]) -> Buffers:
    """A buffer of each layout, from the leaf of each of its parts."""
    return tuple(joined(layout, leaves) for layout, leaves in zip(layouts, wanted, strict=True))


def joined(layout: Layout, leaves: Sequence[Any]) -> jax.Array:
    """A buffer from the leaf of each part."""
    pieces = []
    ends = [*(part.offset for part in layout.parts[1:]), layout.size]
    for part, end, leaf in zip(layout.parts, ends, leaves, strict=True):
        flat = jnp.asarray(leaf, layout.dtype).ravel()
        pieces.append(stored(flat if part.is_whole else lax.slice(flat, (part.start,), (part.start + part.size,))))
        if padding := end - part.offset - part.size:
            pieces.append(jnp.zeros(padding, storage_dtype(layout.dtype)))
    # explicitly a copy: JAX may hand an argument that is returned unchanged straight through
    return jnp.concatenate(pieces) if len(pieces) > 1 else jnp.copy(pieces[0])


def split(layout: Layout, buffer: jax.Array, starts: list[jax.Array]) -> list[jax.Array]:
    """The parts of a buffer; whole leaves in their shapes.

    With offsets that are arguments, all parts of one shape share one compiled copy. Constant ones, without ``starts``,
    are somewhat faster, but take ten times as long to compile.
    """
    pieces = []
    for part, start in zip(layout.parts, starts or [part.offset for part in layout.parts], strict=True):
        piece = values(lax.dynamic_slice(buffer, (start,), (part.size,)))
        pieces.append(piece.reshape(part.shape) if part.is_whole else piece)
    return pieces
