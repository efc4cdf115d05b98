"""Trees of arrays on the host: their layout, means over workers, and random keys as plain numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax import keys
from wagma_jax.averaging import accumulation_dtype


def layout(tree: Any) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def as_numpy(like: Any, num_workers: int | None = None) -> Any:
    """NumPy arrays of the shapes and dtypes of a tree, with a leading worker axis if a number of workers is given.

    Random keys become the integers that they consist of.
    """
    leading = () if num_workers is None else (num_workers,)

    def empty(leaf):
        leaf = keys.data_like(leaf) if keys.is_key(leaf) else leaf
        return np.empty((*leading, *leaf.shape), leaf.dtype)

    return jax.tree.map(empty, like)


def as_shapes(tree: Any) -> Any:
    """The shapes and dtypes of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def with_leaves(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some trees that have a leaf: what there is to save or read."""
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def plain(tree: Any) -> Any:
    """Replaces random keys by the integers that they consist of, in a tree of arrays or of their shapes."""

    def numbers(leaf):
        if not keys.is_key(leaf):
            return leaf
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.random.key_data(leaf)
        data = keys.data_like(leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    return jax.tree.map(numbers, tree)


def restored(tree: Any, like: Any) -> Any:
    """Undoes :func:`plain`: integers become keys again where ``like`` has keys."""

    def typed(leaf, like):
        return jax.random.wrap_key_data(leaf, impl=keys.implementation(like)) if keys.is_key(like) else leaf

    return jax.tree.map(typed, tree, like)


def on_host(tree: Any) -> Any:
    """NumPy arrays of a tree; typed random keys stay as they are."""
    return jax.tree.map(lambda leaf: leaf if keys.is_key(leaf) else np.asarray(leaf), tree)


def mean_of_workers(tree: Any) -> Any:
    """The consensus of a tree of NumPy arrays [num_workers, ...]: inexact leaves are averaged, in float32 or wider.

    Other leaves, such as counters and random keys, are the first worker's.
    """

    def mean(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x[0]
        return x.mean(0, dtype=accumulation_dtype(x.dtype)).astype(x.dtype)

    return jax.tree.map(mean, tree)
