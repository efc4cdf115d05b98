"""Pairs as tokens, in arrays that take no more room than they must."""

from collections.abc import Iterable, Sequence

import numpy as np

from models.transformer import PAD
from train.data.text import Pairs
from train.data.text.files import Counts
from train.data.text.vocabulary import Vocabulary

_AT_ONCE = 100_000  # sentences whose tokens are Python's for a moment


class Rows:
    """Rows of tokens of different lengths, one after the other in one array.

    Args:
        rows: Each int [tokens].

    Attributes:
        lengths: int64 [rows].
    """

    def __init__(self, rows: Iterable[np.ndarray]):
        rows = list(rows)
        self._tokens = np.concatenate(rows) if rows else np.empty(0, np.int32)
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, which: np.ndarray, length: int) -> np.ndarray:
        """Some rows, int32 [rows, length], padded at the end."""
        places = np.arange(length)
        inside = places < self.lengths[which][:, None]
        tokens = self._tokens[np.where(inside, self._starts[which][:, None] + places, 0)]
        return np.where(inside, tokens, PAD).astype(np.int32)


class TokenPairs:
    """Pairs as tokens.

    Args:
        source: Sources.
        target: As many targets.

    Attributes:
        source: As given.
        target: As given.
        lengths: int64 [pairs, 2], of source and target, with their ends.
    """

    def __init__(self, source: Rows, target: Rows):
        self.source, self.target = source, target
        self.lengths = np.stack([source.lengths, target.lengths], axis=1)

    def __len__(self) -> int:
        return len(self.lengths)


def encoded(
    pairs: Pairs, vocabulary: Vocabulary, max_tokens: int, max_ratio: float
) -> tuple[TokenPairs, Pairs, Counts]:
    """Pairs as tokens; those that are too long, or too different in length, are left out and counted.

    Args:
        pairs: As text.
        vocabulary: What to encode with.
        max_tokens: Of source and of target, with the end.
        max_ratio: Of the longer one's tokens to the shorter one's.

    Returns:
        The pairs that remain, as tokens and as text, and how many were left out for which reason.
    """
    sides = (_encode(pairs.source, vocabulary), _encode(pairs.target, vocabulary))
    lengths = np.array([[len(row) for row in side] for side in sides], np.int64).reshape(2, -1)
    long = lengths.max(0, initial=0) > max_tokens
    uneven = ~long & (lengths.max(0, initial=0) > max_ratio * lengths.min(0, initial=np.iinfo(np.int64).max))
    kept = np.flatnonzero(~long & ~uneven).tolist()
    counts = Counts(
        len(pairs.source),
        {f"over {max_tokens} tokens": int(long.sum()), f"lengths differ over {max_ratio:g} times": int(uneven.sum())},
    )
    source, target = (Rows(side[index] for index in kept) for side in sides)
    return TokenPairs(source, target), Pairs(*([side[index] for index in kept] for side in pairs)), counts


def translatable(pairs: Pairs, vocabulary: Vocabulary, most: int) -> tuple[Pairs, Counts]:
    """The pairs of a test set: all but those whose source has more than ``most`` tokens, however long targets are."""
    lengths = np.array([len(row) for row in _encode(pairs.source, vocabulary)], np.int64)
    kept = np.flatnonzero(lengths <= most).tolist()
    counts = Counts(len(lengths), {f"over {most} tokens": len(lengths) - len(kept)})
    return Pairs(*([side[index] for index in kept] for side in pairs)), counts


def _encode(texts: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
    return [
        row for begin in range(0, len(texts), _AT_ONCE) for row in vocabulary.encode(texts[begin : begin + _AT_ONCE])
    ]
