"""Parallel text: pairs of sentences that translate each other, what is wrong with some, and batches of their tokens."""

from typing import NamedTuple


class Pairs(NamedTuple):
    """Sentences, and their translations in the same order.

    Attributes:
        source: Without line ends.
        target: As many.
    """

    source: list[str]
    target: list[str]
