"""The order in which the contributions of a group are summed."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def sum_in_order(contributions: Sequence[jax.Array]) -> jax.Array:
    """The sum over a group's members, in the order of their ranks, with the bits that an exchange gives it.

    For 2^k members halves are added until one is left, in the order of both doublings; else one after the other.
    """
    n = len(contributions)
    if n & (n - 1):
        return functools.reduce(jnp.add, contributions)
    while n > 1:
        n //= 2
        contributions = [contributions[i] + contributions[i + n] for i in range(n)]
    return contributions[0]
