"""Shapes of made-up models: a few large leaves and many small ones, as real models have."""

import math

import numpy as np


def model_shapes(num_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a float32 model: four large leaves with nine tenths of the elements, and sixty small ones.

    Args:
        num_bytes: The exact total, a multiple of 4; at least 4,000.

    Raises:
        ValueError: ``num_bytes`` is no such number.
    """
    total, odd = divmod(num_bytes, 4)
    if odd or total < 1000:
        raise ValueError(
            f"num_bytes must be a multiple of 4 and at least 4,000, got {num_bytes}: pass for example 10**6"
        )
    columns = 512 if total >= 1 << 20 else 16
    large = {f"large{i}": (int(total * share) // columns, columns) for i, share in enumerate((0.4, 0.25, 0.15, 0.1))}
    rest = total - sum(map(math.prod, large.values()))
    weights = np.geomspace(1, 100, 60)  # biases and scales beside small kernels
    sizes = np.maximum(1, np.floor(rest * weights / weights.sum())).astype(int)
    sizes[-1] += rest - sizes.sum()
    return {**large, **{f"small{i}": (int(size),) for i, size in enumerate(sizes)}}
