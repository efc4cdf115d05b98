"""Layers of the Transformer: each sublayer with its residual sum, normalization and dropout."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import Cache, CrossAttention, SelfAttention, xavier

_WAVELENGTHS = 10_000


def sinusoids(positions: jax.Array, d_model: int) -> jax.Array:
    """Encodes positions as in section 3.5 of Vaswani et al., 2017; all sines stand before all cosines.

    Args:
        positions: integers `[length]`, counted from 0.
        d_model: even.

    Returns:
        float32 `[length, d_model]`.
    """
    frequencies = jnp.exp(jnp.arange(0, d_model, 2) * (-math.log(_WAVELENGTHS) / d_model))
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Dropout:
    """Sets a share of features to zero and scales the others up; every call has a mask of its own.

    Not a module: it has no state, and lives for one call of the model. The share is rounded to a multiple of 2^-16:
    one draw of 32 bits makes two features' masks, since draws are what dropout costs on CPUs.

    Args:
        share: in [0, 1).
        key: from which masks are drawn; None: the identity.
    """

    def __init__(self, share: float, key: jax.Array | None):
        self._threshold = round(share * 2**16)
        self._key = key
        self._calls = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps floating `[..., features]`, an even number, to the same shape and dtype."""
        if self._key is None or self._threshold == 0:
            return x
        key = jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        bits = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 2), jnp.uint32)
        draws = jnp.concatenate([bits >> 16, bits & 0xFFFF], axis=-1)
        return jnp.where(draws >= self._threshold, x / (1 - self._threshold / 2**16), 0)


class Residual(nnx.Module):
    """What surrounds a sublayer f: `norm(x + f(x))`, or `x + f(norm(x))` with `pre`.

    Attributes:
        pre: whether the sublayer's input is normalized, and not the sum.
        norm: layer normalization, whose statistics are float32.
    """

    def __init__(self, d_model: int, *, pre: bool, **options: Any):
        self.pre = pre
        self.norm = nnx.LayerNorm(d_model, **options)

    def before(self, x: jax.Array) -> jax.Array:
        """The sublayer's input."""
        return self.norm(x) if self.pre else x

    def after(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The result, from x and the sublayer's output."""
        return x + y if self.pre else self.norm(x + y)


class FeedForward(nnx.Module):
    """`relu(x W1 + b1) W2 + b2`, at every position alike.

    Attributes:
        inner: from `d_model` to `d_ff` features.
        out: back to `d_model`.
    """

    def __init__(self, d_model: int, d_ff: int, **options: Any):
        self.inner = nnx.Linear(d_model, d_ff, kernel_init=xavier(), **options)
        self.out = nnx.Linear(d_ff, d_model, kernel_init=xavier(), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., d_model]` to the same shape."""
        return self.out(nnx.relu(self.inner(x)))


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward network.

    Attributes:
        self_attention: over the sentence.
        feed_forward: at each position.
        residuals: those of the two.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, *, pre: bool, **options: Any):
        self.self_attention = SelfAttention(d_model, num_heads, **options)
        self.feed_forward = FeedForward(d_model, d_ff, **options)
        self.residuals = nnx.List([Residual(d_model, pre=pre, **options) for _ in range(2)])

    def __call__(self, x: jax.Array, mask: jax.Array, drop: Dropout) -> jax.Array:
        """Maps `[batch, length, d_model]` to the same; mask: bool, broadcast to `[batch, heads, length, length]`."""
        first, second = self.residuals
        x = first.after(x, drop(self.self_attention(first.before(x), mask)))
        return second.after(x, drop(self.feed_forward(second.before(x))))


class DecoderLayer(nnx.Module):
    """Self-attention, attention to the memory, and a feed-forward network.

    Attributes:
        self_attention: over the target so far.
        cross_attention: over the memory.
        feed_forward: at each position.
        residuals: those of the three.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, *, pre: bool, **options: Any):
        self.self_attention = SelfAttention(d_model, num_heads, **options)
        self.cross_attention = CrossAttention(d_model, num_heads, **options)
        self.feed_forward = FeedForward(d_model, d_ff, **options)
        self.residuals = nnx.List([Residual(d_model, pre=pre, **options) for _ in range(3)])

    def __call__(
        self, x: jax.Array, mask: jax.Array, memory: tuple[jax.Array, jax.Array], memory_mask: jax.Array, drop: Dropout
    ) -> jax.Array:
        """All positions at once.

        Args:
            x: `[batch, length, d_model]`.
            mask: bool, broadcast to `[batch, heads, length, length]`.
            memory: what `cross_attention.read` returned.
            memory_mask: bool, broadcast to `[batch, heads, length, source]`.
            drop: dropout of this call.

        Returns:
            The same shape as x.
        """
        first = self.residuals[0]
        x = first.after(x, drop(self.self_attention(first.before(x), mask)))
        return self._rest(x, memory, memory_mask, drop)

    def step(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: tuple[jax.Array, jax.Array],
        memory_mask: jax.Array,
        cache: Cache,
        position: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """One position of every beam, `[batch, beams, d_model]`, after those in the cache; no dropout."""
        first = self.residuals[0]
        y, cache = self.self_attention.step(first.before(x), mask, cache, position)
        return self._rest(first.after(x, y), memory, memory_mask, Dropout(0, None)), cache

    def _rest(
        self, x: jax.Array, memory: tuple[jax.Array, jax.Array], memory_mask: jax.Array, drop: Dropout
    ) -> jax.Array:
        """The sublayers after self-attention, for which positions and beams are alike."""
        _, second, third = self.residuals
        x = second.after(x, drop(self.cross_attention(second.before(x), memory, memory_mask)))
        return third.after(x, drop(self.feed_forward(third.before(x))))
