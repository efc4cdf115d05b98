"""Random keys in pytrees: keys of each worker's own, and keys as the integers that they consist of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.averaging import leaf_name

KeyFunction = Callable[[jax.tree_util.KeyPath, Any], bool]


def fold_in(tree: Any, worker: Any, which: KeyFunction | None = None) -> Any:
    """Replaces every random key of a tree by ``jax.random.fold_in(key, worker)``, so that workers draw differently.

    Workers that start from one model otherwise have equal keys, and draw the same dropout masks. Call it once, where a
    worker's state begins: ``fold_in(exchange.params, exchange.rank)``; ``replicate(tree, num_workers, fold_in=True)``
    does it for all workers of a program. Averaging never changes a key.

    Args:
        tree: Any pytree: parameters, a ``flax.nnx`` state with its ``RngKey``, the state of an optimizer. Key arrays
            of any shape are folded key by key. All other leaves stay as they are.
        worker: The worker's index, an integer scalar; ``lax.axis_index(axis_name)`` inside of a mapped step.
        which: Maps a leaf's key path and value to whether it is a key. None: typed keys are (``jax.random.key``). Raw
            ones (``jax.random.PRNGKey``) look like any other uint32 array, so a function must name them.

    Returns:
        The tree with other keys, of the same shapes and implementations.

    Raises:
        ValueError: ``worker`` is no integer scalar.
        TypeError: ``which`` chose a leaf that is no random key.
    """
    dtype = getattr(worker, "dtype", np.dtype(type(worker) if isinstance(worker, int) else object))
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.shape(worker) != ():
        raise ValueError(
            f"worker must be an integer scalar, got {worker!r}: pass for example exchange.rank, or "
            "lax.axis_index(axis_name) inside of a mapped step"
        )
    chosen = which or (lambda path, leaf: is_key(leaf))

    def own(path: jax.tree_util.KeyPath, leaf: Any) -> Any:
        return _folded(path, leaf, worker) if chosen(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(own, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf (an array, or its shape) is made of typed random keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def implementation(like: Any) -> Any:
    """The implementation of typed random keys; for mere shapes of keys, JAX tells it only while tracing."""
    found = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), like)
    return found[0]


def data_like(like: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the integers that typed random keys consist of."""
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(like.shape, like.dtype))


def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Typed random keys of zeros."""
    like = jax.ShapeDtypeStruct(shape, dtype)
    data = data_like(like)
    return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=implementation(like))


def _folded(path: jax.tree_util.KeyPath, leaf: Any, worker: Any) -> Any:
    if is_key(leaf):
        flat = leaf.reshape(-1)
        return jax.vmap(jax.random.fold_in, (0, None))(flat, worker).reshape(leaf.shape)
    data = jnp.asarray(leaf) if hasattr(leaf, "dtype") else leaf
    try:
        typed = jax.random.wrap_key_data(data)
    except (TypeError, ValueError):
        came = f"{data.dtype}{list(data.shape)}" if hasattr(data, "dtype") else type(leaf).__name__
        raise TypeError(
            f"which() chose {leaf_name(path)}, which is {came} and no random key: choose typed keys, or uint32 arrays "
            "of raw keys"
        ) from None
    return jax.random.key_data(_folded(path, typed, worker))
