"""Sums of contributions in one process, with the bits that an exchange gives them."""

from collections.abc import Sequence

import jax.numpy as jnp

from wagma_jax.exchange.storage import Buffers, sum_dtype, widened
from wagma_jax.exchange.wire import sum_in_order


def summed(contributions: Sequence[Buffers]) -> Buffers:
    """The sums, in the accumulation dtypes; in memory of their own, since sums are donated."""
    if len(contributions) == 1:  # a copy, since sums are donated
        contributions = [tuple(jnp.copy(buffer) for buffer in contributions[0])]
    return tuple(
        sum_in_order([widened(buffer, sum_dtype(buffer.dtype)) for buffer in buffers])
        for buffers in zip(*contributions, strict=True)
    )
