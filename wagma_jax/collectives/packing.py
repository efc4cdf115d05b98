"""Joining small leaves to buffers, so that a round sends few messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.collectives.axes import all_manual, is_varying, tracks_varying

_FUSE_BELOW = 1 << 18
"""Leaves of fewer elements travel together, in one buffer per dtype; larger ones alone, since a copy would cost more
than a message."""
_FUSED = 1 << 29
"""Elements of such a buffer (and one leaf more), since positions beyond 2^31 would overflow."""


def pack(leaves: list[jax.Array]) -> tuple[list[jax.Array], Callable[[list[jax.Array]], list[jax.Array]]]:
    """Joins small leaves to buffers, so that fewer messages are sent.

    Only leaves of equal dtype that vary over the same mesh axes are joined, and none where the compiler may have
    sharded them over further axes: flattening would gather them.

    Returns:
        The buffers (large leaves stay alone, in their shapes), and a function from what became of the buffers (equal
        shapes, any dtypes) to what became of the leaves.
    """
    mesh_axes = jax.sharding.get_abstract_mesh().axis_names
    joined: dict[Any, list[int]] = {}
    filled: dict[Any, int] = {}
    checked = all_manual() and tracks_varying(mesh_axes)
    for i, leaf in enumerate(leaves):
        alone = leaf.size >= _FUSE_BELOW or not all_manual()
        varies = tuple(is_varying(leaf, name) for name in mesh_axes) if checked else ()
        key: Any = i
        if not alone:
            key = leaf.dtype, varies
            filled[key] = filled.get(key, 0) + leaf.size
            key = *key, filled[key] // _FUSED
        joined.setdefault(key, []).append(i)
    buffers = [
        leaves[indices[0]] if len(indices) == 1 else jnp.concatenate([leaves[i].reshape(-1) for i in indices])
        for indices in joined.values()
    ]

    def unpack(buffers):
        results: list[Any] = [None] * len(leaves)
        for buffer, indices in zip(buffers, joined.values(), strict=True):
            if len(indices) == 1:
                results[indices[0]] = buffer
                continue
            ends = list(np.cumsum([leaves[i].size for i in indices]))
            for i, start, end in zip(indices, [0, *ends[:-1]], ends, strict=True):
                results[i] = buffer[start:end].reshape(leaves[i].shape)
        return results

    return buffers, unpack
