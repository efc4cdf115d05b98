"""Subwords made from a text."""

import io

import numpy as np
import pytest
import sentencepiece

from models.transformer import EOS
from train.data.text import vocabulary

SOURCE = [f"the {a} {b}" for a in ("red", "green", "blue") for b in ("house", "houses", "horse")]
TARGET = [f"das {a} {b}" for a in ("rote", "grüne", "blaue") for b in ("Haus", "Häuser", "Pferd")]


@pytest.fixture(scope="module")
def words():
    return vocabulary.train(SOURCE, TARGET, 330)


def test_text_comes_back(words):
    texts = ["the red Häuser", "never seen: \U0001f40e ☃ ≠", "", "ß"]
    assert words.decode(words.encode(["one\nline \u2028 of text"])) == ["one line of text"]
    rows = words.encode(texts)
    assert all(row[-1] == EOS and row.dtype == np.int32 for row in rows)
    assert max(row.max() for row in rows) < words.size <= 330
    padded = np.zeros((len(rows), 80), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    assert words.decode(padded) == texts
    assert words.decode(np.concatenate([padded, np.full_like(padded, 7)], 1)) == texts  # nothing after the end
    assert words.decode(padded[:0]) == []


def test_equal_text_makes_equal_vocabularies(words, tmp_path):
    again = vocabulary.train(SOURCE, TARGET, 330)
    assert again.model == words.model
    assert vocabulary.train(SOURCE[1:], TARGET, 330).digest != words.digest
    run = tmp_path / "run"
    (run / "checkpoints" / "20").mkdir(parents=True)
    (run / vocabulary.FILE).write_bytes(words.model)
    assert vocabulary.find(run / "checkpoints" / "20").digest == vocabulary.find(run).digest == words.digest


def test_what_is_no_vocabulary(tmp_path):
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ValueError, match=r"text is no model of sentencepiece: give a vocabulary\.model"):
        vocabulary.load(tmp_path / "text")
    with pytest.raises(ValueError, match=r"missing cannot be read \(No such file"):
        vocabulary.load(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"has no vocabulary.model: give a run of train.translation"):
        vocabulary.find(tmp_path)
    with pytest.raises(
        ValueError, match=r"no vocabulary of --vocabulary-size 100 can be made from 9 pairs .*: raise it"
    ):
        vocabulary.train(SOURCE, TARGET, 100)
    assert vocabulary.train(SOURCE, TARGET, 5000).size < 400  # there is no more to be had of so little text


def test_a_vocabulary_that_numbers_otherwise(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE), model_writer=model, model_type="char", vocab_size=20, minloglevel=2
    )
    with pytest.raises(ValueError, match=r"must number padding, begin, end and unknown \(0, 1, 2, 3\), got \(-1, 1, 2"):
        vocabulary.Vocabulary(model.getvalue())


def test_a_vocabulary_that_would_lose_characters():
    model = io.BytesIO()
    numbers = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE), model_writer=model, model_type="char", vocab_size=20, minloglevel=2, **numbers
    )
    with pytest.raises(ValueError, match="must turn unknown characters into bytes: train it with --byte_fallback"):
        vocabulary.Vocabulary(model.getvalue())
