"""Translates text, line by line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train import console
from train.data.text import files
from train.data.text.translator import Translator

STANDARD_INPUT = Path("-")
LONGEST = 1024  # tokens of a line; the memory that it takes grows with their square
_AT_ONCE = 1000  # lines that are translated at a time


def read(path: Path, standard_input: Any) -> list[str]:
    """The lines of a text.

    Args:
        path: A file, plain or packed as .gz or .xz; "-" for standard input.
        standard_input: Its bytes, as ``sys.stdin.buffer``.

    Raises:
        ValueError: It cannot be read, or is not valid UTF-8.
    """
    if path == STANDARD_INPUT:
        return files.decoded(iter(standard_input), "standard input")
    return files.read_sentences(path)


def translated(translator: Translator, model: Any, sentences: Sequence[str], max_tokens: int) -> Iterator[str]:
    """The translation of each sentence, in order; a warning tells which are longer than any the model has learned from.

    Args:
        translator: Of the model.
        model: Its arrays.
        sentences: Any number.
        max_tokens: Of the longest source that the model has learned from.

    Raises:
        ValueError: A sentence has more than ``LONGEST`` tokens.
    """
    lengths = translator.lengths(sentences)
    for number, length in enumerate(lengths, 1):
        if length > LONGEST:
            raise ValueError(f"line {number} has {length} tokens, more than {LONGEST}: split it into sentences")
    for begin in range(0, len(sentences), _AT_ONCE):
        part = sentences[begin : begin + _AT_ONCE]
        for number, length in enumerate(lengths[begin : begin + _AT_ONCE], begin + 1):
            if length > max_tokens:
                console.warn_aside(
                    f"line {number} has {length} tokens, and the model has learned from {max_tokens} at most: split it "
                    "into sentences"
                )
        yield from translator(model, part)
