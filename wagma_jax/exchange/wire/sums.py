"""The order in which the contributions of a group are summed."""

from collections.abc import Sequence

import jax


def sum_in_order(contributions: Sequence[jax.Array]) -> jax.Array:
    """The sum over a group's members, in the order of their ranks, with the bits that an exchange gives it.

    Of n members those from 2^k on, the largest power of two below n, are added to the first n - 2^k. So it goes on
    until one is left: both doublings add in that order.
    """
    summands = list(contributions)
    while (n := len(summands)) > 1:
        half = largest_power(n - 1)
        summands = [summands[i] + summands[i + half] if i + half < n else summands[i] for i in range(half)]
    return summands[0]


def largest_power(n: int) -> int:
    """The largest power of two that is at most ``n``."""
    return 1 << (n.bit_length() - 1)
