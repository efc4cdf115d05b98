"""Multi-head attention with fused projections, and its cache of keys and values for decoding step by step.

Scaled dot-product attention of Vaswani et al., "Attention Is All You Need", 2017, section 3.2
(https://arxiv.org/abs/1706.03762). Queries, keys and values have the shape `[batch, heads, positions, features]`, in
which the matrix products need no transposition. Softmax is computed in float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

_MASKED = -1e9  # a logit whose exponential is 0 next to any other, and that leaves rows without any key finite


def xavier(parts: int = 1):
    """Glorot and Bengio's uniform initialization, 2010, of matrices `[rows, columns / parts]` side by side.

    A fused projection then starts as separate ones would.
    """

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, *unused: Any, **ignored: Any) -> jax.Array:
        rows, columns = shape
        limit = math.sqrt(6 / (rows + columns / parts))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Cache(NamedTuple):
    """Keys and values of the positions decoded so far, of one layer, for several beams of each sentence.

    All beams of a position stand together, so that one place is written at a step, and all are read without a copy.

    Attributes:
        keys: `[batch, heads, length * beams, features]`.
        values: The same.
    """

    keys: jax.Array
    values: jax.Array

    def put(self, keys: jax.Array, values: jax.Array, position: jax.Array) -> "Cache":
        """Writes those of one position (int32 []), `[batch, heads, beams, features]`."""

        def put(all_of_them: jax.Array, one: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(all_of_them, one, position * one.shape[2], axis=2)

        return Cache(put(self.keys, keys), put(self.values, values))


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """`softmax(Q K^T / sqrt(features)) V`, each query over the keys that its mask admits.

    Args:
        queries: `[batch, heads, queries, features]`.
        keys: `[batch, heads, keys, features]`.
        values: The same.
        mask: bool, broadcast to `[batch, heads, queries, keys]`. Where it admits no key, the result is finite and
            has no meaning.

    Returns:
        `[batch, queries, heads * features]`, of the values' dtype.
    """
    batch, heads, length, features = queries.shape
    logits = jnp.einsum("bhqf,bhkf->bhqk", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, logits / math.sqrt(features), _MASKED))
    mixed = jnp.einsum("bhqk,bhkf->bhqf", weights.astype(values.dtype), values)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, heads * features)


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself; queries, keys and values come from one projection.

    Attributes:
        num_heads: Attention heads.
        project: From `d_model` to three times as many features.
        out: From `d_model` to `d_model`.
    """

    def __init__(self, d_model: int, num_heads: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads = num_heads
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.project = nnx.Linear(d_model, 3 * d_model, kernel_init=xavier(3), **options)
        self.out = nnx.Linear(d_model, d_model, kernel_init=xavier(), **options)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `[batch, length, d_model]` to the same; mask: bool, broadcast to `[batch, heads, length, length]`."""
        queries, keys, values = _split_heads(self.project(x), 3, self.num_heads)
        return self.out(attend(queries, keys, values, mask))

    def step(self, x: jax.Array, mask: jax.Array, cache: Cache, position: jax.Array) -> tuple[jax.Array, Cache]:
        """One position, after those in the cache.

        Args:
            x: `[batch, beams, d_model]`.
            mask: bool, broadcast to `[batch, heads, beams, length * beams]`.
            cache: Of the positions before.
            position: int32 [], counted from 0.

        Returns:
            `[batch, beams, d_model]`, and the cache with this position.
        """
        queries, keys, values = _split_heads(self.project(x), 3, self.num_heads)
        cache = cache.put(keys, values, position)
        return self.out(attend(queries, *cache, mask)), cache


class CrossAttention(nnx.Module):
    """Attention to another sequence, the memory; its keys and values come from one projection.

    Attributes:
        num_heads: Attention heads.
        project: From `d_model` to `d_model`: the queries.
        project_memory: From `d_model` to twice as many features.
        out: From `d_model` to `d_model`.
    """

    def __init__(self, d_model: int, num_heads: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads = num_heads
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.project = nnx.Linear(d_model, d_model, kernel_init=xavier(), **options)
        self.project_memory = nnx.Linear(d_model, 2 * d_model, kernel_init=xavier(2), **options)
        self.out = nnx.Linear(d_model, d_model, kernel_init=xavier(), **options)

    def read(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values `[batch, heads, length, features]` of a memory `[batch, length, d_model]`."""
        keys, values = _split_heads(self.project_memory(memory), 2, self.num_heads)
        return keys, values

    def __call__(self, x: jax.Array, memory: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        """Maps `[batch, queries, d_model]` to the same; mask: bool, broadcast to `[batch, heads, queries, keys]`."""
        (queries,) = _split_heads(self.project(x), 1, self.num_heads)
        return self.out(attend(queries, *memory, mask))


def _split_heads(x: jax.Array, parts: int, num_heads: int) -> jax.Array:
    """Maps `[batch, length, parts * heads * features]` to `[parts, batch, heads, length, features]`."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, parts, num_heads, -1).transpose(2, 0, 3, 1, 4)
