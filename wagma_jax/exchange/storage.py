"""How the values of a model are stored in the buffers of an exchange: as they are, but bfloat16 as its bits in uint16.

XLA's compiler for CPUs has no bfloat16: it converts a whole buffer to float32 to take a slice of it. Only floating
and complex values are averaged, so uint16 cannot stand for anything else.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from wagma_jax.averaging import accumulation_dtype

Buffers = tuple[jax.Array, ...]
"""A model as it is exchanged: 1-D arrays on the CPU, one for each dtype and policy."""

_Arrays = TypeVar("_Arrays", Buffers, list[Any])


def ready(arrays: _Arrays) -> _Arrays:
    """The arrays, once they are complete: for many small ones in less time than ``jax.block_until_ready``."""
    for array in arrays:
        array.block_until_ready()
    return arrays


def storage_dtype(dtype: Any) -> Any:
    """The dtype of a buffer that holds values of ``dtype``."""
    return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 else jnp.dtype(dtype)


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which buffers of ``dtype`` are summed: float32 or wider."""
    return accumulation_dtype(jnp.bfloat16 if dtype == jnp.uint16 else dtype)


def stored(values: jax.Array) -> jax.Array:
    """Values as a buffer holds them."""
    return lax.bitcast_convert_type(values, storage_dtype(values.dtype))


def values(stored: jax.Array) -> jax.Array:
    """The values of a piece of a buffer."""
    return lax.bitcast_convert_type(stored, jnp.bfloat16 if stored.dtype == jnp.uint16 else stored.dtype)


def widened(stored: jax.Array, wide: Any) -> jax.Array:
    """The values of a piece of a buffer in ``wide``, the dtype of their sum."""
    if stored.dtype == jnp.uint16:  # the upper half of a float32
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, wide)
    return stored.astype(wide)
