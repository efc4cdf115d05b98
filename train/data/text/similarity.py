"""How much two sentences have in common: their words and pairs of neighbouring words."""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

_WORD = re.compile(r"\w+|[^\w\s]")
_AT_ONCE = 200  # sentences that are compared with all others at a time


def nearest(sentences: Sequence[str], others: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The most similar one of the others for each sentence.

    Two sentences are as similar as the Jaccard index of their sets of words and of pairs of neighbouring words, in
    lower case: what they share, over what they have together.

    Args:
        sentences: What to find others for.
        others: At least one.

    Returns:
        Which of the others, int64 [sentences], the first of several equals; and how similar it is, float64 in [0, 1].
    """
    numbers: dict[str, int] = {}
    right, right_sizes = _matrix(others, numbers, grow=True)
    left, left_sizes = _matrix(sentences, numbers, grow=False)
    best, similarity = np.zeros(len(sentences), np.int64), np.zeros(len(sentences))
    transposed = right.T.tocsr()
    for begin in range(0, len(sentences), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        shared = (left[part] @ transposed).toarray()
        index = shared / np.maximum(left_sizes[part, None] + right_sizes - shared, 1)
        best[part] = index.argmax(axis=1)
        similarity[part] = index.max(axis=1)
    return best, similarity


def _parts(sentence: str) -> set[str]:
    words = _WORD.findall(sentence.lower())
    return {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}


def _matrix(sentences: Sequence[str], numbers: dict[str, int], grow: bool) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Which parts each sentence has, and how many; new parts get numbers if ``grow``, else they are not in the rows."""
    sizes = np.zeros(len(sentences))

    def places() -> Iterator[tuple[int, int]]:
        for row, sentence in enumerate(sentences):
            parts = _parts(sentence)
            sizes[row] = len(parts)
            for part in parts:
                number = numbers.setdefault(part, len(numbers)) if grow else numbers.get(part)
                if number is not None:
                    yield row, number

    found = np.array(list(places()), np.int64).reshape(-1, 2)
    ones = np.ones(len(found))
    matrix = sparse.csr_matrix((ones, (found[:, 0], found[:, 1])), shape=(len(sentences), max(len(numbers), 1)))
    return matrix, sizes
