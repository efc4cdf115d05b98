"""Whether a model is finite: one that is not would spread to all workers within the mixing time."""

import functools

import jax
import jax.numpy as jnp

from wagma_jax.exchange.storage import Buffers, values


def check_start(on_nonfinite: str, *models: Buffers) -> None:
    """Raises ValueError if a model to start from is not finite where such models are skipped."""
    if on_nonfinite == "skip" and not all(map(is_finite, models)):
        raise ValueError("params must be finite with on_nonfinite='skip', got NaN or infinity: start from others")


def is_finite(buffers: Buffers) -> bool:
    """Whether all values of a model are finite."""
    return not buffers or bool(_compiled(buffers[0].sharding)(buffers))


@functools.cache
def _compiled(sharding):
    # explicit, as in Staging: whether arrays are committed would make another compilation each
    return jax.jit(_all_finite, in_shardings=sharding, out_shardings=sharding)


def _all_finite(buffers: Buffers) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(values(buffer))) for buffer in buffers]))
