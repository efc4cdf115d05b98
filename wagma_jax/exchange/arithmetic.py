"""What is computed with live models, in functions compiled for their buffers: ``protocol.live.Arithmetic``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from wagma_jax.exchange.storage import Buffers, stored, sum_dtype, values, widened


class Compiled:
    """The arithmetic of live models. Everything is computed in float32 or wider.

    Where nobody has interfered nothing is rounded: an element of which ``live`` is what was taken or sent becomes that
    of W', or of the mean, bit for bit. So both partners of a swap agree if neither has made a step meanwhile.

    Args:
        device: The CPU device of the buffers.
    """

    def __init__(self, device: Any):
        # explicit, as in Staging: whether arrays are committed would make another compilation each
        here = jax.sharding.SingleDeviceSharding(device)
        jit = functools.partial(jax.jit, in_shardings=here, out_shardings=here, donate_argnums=0)
        self._moved, self._mean, self._merged = jit(_moved), jit(_mean), jit(_merged)

    def warm_up(self, model: Buffers) -> None:
        """Compiles everything beforehand, for buffers like those of ``model``."""
        for function in (self._moved, self._merged):
            function(_copied(model), model, model)
        self._mean(_copied(model), model)

    def moved(self, own: Buffers, live: Buffers, base: Buffers) -> Buffers:
        """``own + (live - base)``; ``own`` is donated, or is the result."""
        return own if live is base else jax.block_until_ready(self._moved(own, live, base))

    def mean(self, live: Buffers, received: Buffers) -> Buffers:
        """``(live + received) / 2``; ``received`` is donated."""
        return jax.block_until_ready(self._mean(received, live))

    def merged(self, received: Buffers, live: Buffers, sent: Buffers) -> Buffers:
        """``(sent + received) / 2 + (live - sent)``; ``received`` is donated."""
        if live is sent:
            return self.mean(live, received)
        return jax.block_until_ready(self._merged(received, live, sent))


def _copied(model: Buffers) -> Buffers:
    return tuple(map(jnp.copy, model))


def _moved(own: Buffers, live: Buffers, base: Buffers) -> Buffers:
    def move(own: jax.Array, live: jax.Array, base: jax.Array) -> jax.Array:
        x, now, then = _wide(own, live, base)
        moved = jnp.where(now == then, x, jnp.where(x == then, now, x + (now - then)))
        return _as(own, moved)

    return tuple(map(move, own, live, base))


def _mean(received: Buffers, live: Buffers) -> Buffers:
    def mean(received: jax.Array, live: jax.Array) -> jax.Array:
        a, b = _wide(received, live)
        return _as(live, (a + b) / 2)

    return tuple(map(mean, received, live))


def _merged(received: Buffers, live: Buffers, sent: Buffers) -> Buffers:
    def merge(received: jax.Array, live: jax.Array, sent: jax.Array) -> jax.Array:
        came, now, then = _wide(received, live, sent)
        mean = (then + came) / 2
        return _as(live, jnp.where(now == then, mean, mean + (now - then)))

    return tuple(map(merge, received, live, sent))


def _wide(*buffers: jax.Array) -> list[jax.Array]:
    return [widened(buffer, sum_dtype(buffer.dtype)) for buffer in buffers]


def _as(like: jax.Array, wide: jax.Array) -> jax.Array:
    return stored(wide.astype(values(like).dtype))
