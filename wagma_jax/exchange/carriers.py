"""How values are held in the buffers of an exchange: as they are, but bfloat16 as its bits, in uint16.

XLA's compiler for the CPU knows no bfloat16: it converts a whole buffer to float32 to take a slice of it. Only floating
and complex values are averaged, so that uint16 can be nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wagma_jax.averaging import accumulation_dtype


def carrier(dtype: Any) -> Any:
    """The dtype of a buffer that holds values of ``dtype``."""
    return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 else jnp.dtype(dtype)


def sum_dtype(carrier: Any) -> Any:
    """The dtype in which buffers of this dtype are summed: float32 or wider."""
    return accumulation_dtype(jnp.bfloat16 if carrier == jnp.uint16 else carrier)


def carried(values: jax.Array) -> jax.Array:
    """The carrier of an array of values."""
    return lax.bitcast_convert_type(values, carrier(values.dtype))


def values(carried: jax.Array) -> jax.Array:
    """The values of a carrier."""
    return lax.bitcast_convert_type(carried, jnp.bfloat16 if carried.dtype == jnp.uint16 else carried.dtype)


def widened(carried: jax.Array, wide: Any) -> jax.Array:
    """The values of a carrier in the dtype of their sum."""
    if carried.dtype == jnp.uint16:  # the upper half of a float32
        return lax.bitcast_convert_type(carried.astype(jnp.uint32) << 16, wide)
    return carried.astype(wide)
