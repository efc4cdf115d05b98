"""The tallies that a trainer passes."""

import operator
from collections.abc import Sequence

from wagma_jax.protocol.messages import Tally


def check_tally(tally: Sequence[int]) -> Tally:
    """A tally as a tuple.

    Raises:
        ValueError: It holds something else than integers of 64 bits.
    """
    if isinstance(tally, tuple) and not tally:  # as at most rounds
        return tally
    try:
        numbers = tuple(operator.index(number) for number in tally)
    except TypeError:
        numbers = None
    if numbers is None or not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        raise ValueError(f"tally must hold integers of at most 64 bits, got {tally!r}: pass for example (1, 250)")
    return numbers
