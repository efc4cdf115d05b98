"""Translates sentences with a model, in batches of a few shapes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from models import decoding
from models.transformer import PAD
from train.data.text.tokens import Rows
from train.data.text.vocabulary import Vocabulary

_SHORTEST = 16  # tokens; the lengths of sources are this, and twice, four times, ... as much
_TOKENS = 1024  # of the sources of a batch, with padding
_MORE = 40  # tokens of a translation, beyond one and a half times its source's


class Search(NamedTuple):
    """How translations are searched for.

    Attributes:
        beam: Hypotheses that are kept; 1 is greedy search.
        length_penalty: Exponent of the penalty of Wu et al. 2016 (arXiv:1609.08144).
    """

    beam: int = 4
    length_penalty: float = 0.6


class Translator:
    """Translates; compiled once for each length of sources, which are powers of two.

    The shape of a sentence's batch depends on the sentence alone, so its translation does not depend on others. A
    translation has at most 40 tokens more than one and a half times the length of its source: what an untrained model
    would never end is cut there.

    Args:
        module: Maps a model's arrays to the network; traced.
        vocabulary: Of the model.
        search: How to search.
    """

    def __init__(self, module: Callable[[Any], nnx.Module], vocabulary: Vocabulary, search: Search):
        self._module, self._vocabulary, self._search = module, vocabulary, search
        self._compiled = jax.jit(self._translate)

    def __call__(self, model: Any, sentences: Sequence[str], device: Any = None) -> list[str]:
        """The translation of each sentence; that of an empty one is empty.

        Args:
            model: Its arrays.
            sentences: Of any length.
            device: Where to compute; None: on the first one.
        """
        rows = Rows(self._vocabulary.encode(sentences))
        sizes = np.array([_padded(length) for length in rows.lengths], np.int64)
        empty = np.array([not sentence for sentence in sentences], bool)
        made = [""] * len(sentences)
        model = jax.device_put(model, device or jax.local_devices()[0])
        for size in np.unique(sizes[~empty]):
            places = np.flatnonzero((sizes == size) & ~empty)
            count = max(1, _TOKENS // int(size))
            for begin in range(0, len(places), count):
                which = places[begin : begin + count]
                source = np.full((count, size), PAD, np.int32)
                source[: len(which)] = rows.padded(which, size)
                tokens = np.asarray(self._compiled(model, source))[: len(which)]
                for place, text in zip(which, self._vocabulary.decode(tokens), strict=True):
                    made[place] = text
        return made

    def lengths(self, sentences: Sequence[str]) -> list[int]:
        """The tokens of each sentence, with its end."""
        return [len(row) for row in self._vocabulary.encode(sentences)]

    def _translate(self, model: Any, source: jax.Array) -> jax.Array:
        """The tokens of the best translation of each row; traced."""
        network: Any = self._module(model)
        longest = source.shape[1] * 3 // 2 + _MORE
        beam, penalty = self._search
        if beam == 1:
            return decoding.greedy(network, source, max_length=longest).tokens
        found = decoding.beam(network, source, beam_size=beam, max_length=longest, length_penalty=penalty)
        return found.tokens[:, 0]


def _padded(length: int) -> int:
    size = _SHORTEST
    while size < length:
        size *= 2
    return size
