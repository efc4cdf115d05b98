"""Subword vocabularies, made by sentencepiece from the training text; both languages share one."""

import hashlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.transformer import BOS, EOS, PAD

FILE = "vocabulary.model"
UNKNOWN = 3
MOST_LINES = 1_000_000  # of each language that a vocabulary is made from; more hardly change it


class Vocabulary:
    """Turns text into tokens and back, without loss but for runs of white space: unknown characters become bytes.

    Args:
        model: The content of a sentencepiece model whose first tokens are padding, begin, end and unknown.
        name: What messages call it.

    Attributes:
        model: As given.
        size: Number of tokens.

    Raises:
        ValueError: It is no such model, or the extra 'translation' is missing.
    """

    def __init__(self, model: bytes, name: str = "the vocabulary"):
        self.model = model
        sentencepiece = _sentencepiece()
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(f"{name} is no model of sentencepiece: give a {FILE} that a run has saved") from None
        of = self._processor
        found = (of.pad_id(), of.bos_id(), of.eos_id(), of.unk_id())
        if found != (PAD, BOS, EOS, UNKNOWN):
            raise ValueError(
                f"{name} must number padding, begin, end and unknown {(PAD, BOS, EOS, UNKNOWN)}, got {found}: train it "
                "with --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3"
            )
        self.size = int(of.get_piece_size())
        if sum(map(of.is_byte, range(self.size))) < 256:  # else characters that it does not know would get lost
            raise ValueError(f"{name} must turn unknown characters into bytes: train it with --byte_fallback")

    @property
    def digest(self) -> str:
        """Tells vocabularies apart."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, int32, with EOS at the end."""
        rows = self._processor.encode(list(texts), add_eos=True, num_threads=1)
        return [np.array(row, np.int32) for row in rows]

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The text of each row of integers [rows, length], up to its EOS; one line, whatever bytes are in it."""
        rows = []
        for row in np.asarray(tokens).tolist():
            row = row[: row.index(EOS)] if EOS in row else row
            rows.append([token for token in row if token > UNKNOWN])
        return [" ".join(text.split()) for text in self._processor.decode(rows)] if rows else []


def train(source: Sequence[str], target: Sequence[str], size: int) -> Vocabulary:
    """Makes a vocabulary by byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909); equal text makes equal ones.

    Args:
        source: Sentences.
        target: Their translations.
        size: Number of tokens at most, 260 for bytes and the like among them. A small text has fewer.

    Raises:
        ValueError: That is too few, or the extra 'translation' is missing.
    """
    sentencepiece = _sentencepiece()
    model = io.BytesIO()
    every = -(-len(source) // MOST_LINES)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*source[::every], *target[::every]]),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            byte_fallback=True,
            hard_vocab_limit=False,  # a small text may not have so many
            normalization_rule_name="identity",
            max_sentence_length=1 << 16,  # bytes; longer lines would be left out
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNKNOWN,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]
        raise ValueError(
            f"no vocabulary of --vocabulary-size {size} can be made from {len(source):,} pairs ({reason}): raise it"
        ) from None
    return Vocabulary(model.getvalue())


def load(path: Path) -> Vocabulary:
    """The vocabulary in a file.

    Raises:
        ValueError: It cannot be read, or is none.
    """
    try:
        return Vocabulary(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a {FILE} that a run has saved") from None


def find(path: Path) -> Vocabulary:
    """The vocabulary of a run, from its folder, one of its checkpoints, or its exported model.

    Raises:
        ValueError: There is none.
    """
    for folder in (path, *path.absolute().parents[:2]):
        if (folder / FILE).is_file():
            return load(folder / FILE)
    raise ValueError(f"{path} has no {FILE}: give a run of train.translation, or the model that it has exported")


def _sentencepiece() -> Any:
    if importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            "translation needs sentencepiece, which the extra 'translation' brings: run make setup in the project, or "
            "pip install 'wagma_jax[train,translation]'"
        )
    import sentencepiece

    return sentencepiece
