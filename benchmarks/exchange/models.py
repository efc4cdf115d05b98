"""Models to be averaged: sizes, shapes, parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import model_shapes

UNITS = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def parse_size(text: str) -> int:
    """Bytes from 4K, 1M, 1.5G (powers of ten).

    Raises:
        ValueError: It is no positive number of bytes.
    """
    unit = UNITS.get(text[-1:].upper(), 1)
    try:
        size = round(float(text.rstrip("kKmMgG")) * unit)
    except ValueError:
        size = 0
    if size <= 0:
        raise ValueError(f"sizes must be positive numbers of bytes, K, M or G, got {text!r}: write for example 100M")
    return size


def leaf_shapes(elements: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model: 64 leaves of mixed sizes, or four if it has fewer than 100,000 elements."""
    if elements >= 100_000:
        return model_shapes(4 * elements)
    bias = max(1, elements // 32)
    large = (elements - 2 * bias) * 2 // 3
    return {"kernel0": (large,), "bias0": (bias,), "kernel1": (elements - large - 2 * bias,), "bias1": (bias,)}


def make_model(elements: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Parameters that are all one. They are made without the compiler, which would keep megabytes for each shape."""
    shapes = leaf_shapes(elements)
    return jax.block_until_ready({name: jnp.array(np.ones(shape, dtype)) for name, shape in shapes.items()})
