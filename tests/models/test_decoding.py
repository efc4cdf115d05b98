"""Tests of greedy and beam search: against exhaustive search, each other, and a model with a known answer."""

import itertools
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.decoding import beam, greedy, penalty_of
from models.transformer import BOS, EOS, PAD, Transformer, TransformerConfig

A, B, C = 3, 4, 5
SMALLEST = TransformerConfig(6, 8, 2, 16, 1, 1)
SOURCE = jnp.array([[A, B, EOS, PAD], [C, A, B, EOS], [PAD] * 4, [B, EOS, PAD, PAD]])


@cache
def model():
    """Its distributions are far from even, and targets end at various lengths."""
    graph, params = nnx.split(nnx.jit(lambda: Transformer(SMALLEST, rngs=nnx.Rngs(4)))())
    return nnx.merge(graph, jax.tree.map(lambda leaf: 1.5 * leaf, params))


class Chain(nnx.Module):
    """A Markov chain: the next token depends on the last one and, from the source, on its first token."""

    def __init__(self, tables):
        self.tables = nnx.Param(jnp.log(jnp.asarray(tables, jnp.float32)))  # [tables, vocab_size, vocab_size]

    def start(self, source, beams, length):
        return source[:, 0]

    def decode_step(self, state, tokens, ancestors):
        return self.tables[...][state[:, None], tokens], state


def chain(**rows):
    """One table: `A="A.6 end.4"` are the probabilities after A; what is left out has none."""
    names = {"begin": BOS, "end": EOS, "A": A, "B": B, "C": C}
    table = np.full((6, 6), 1e-30)
    for name, row in rows.items():
        for word in row.split():
            to, _, digits = word.partition(".")
            table[names[name], names[to]] = float(f"0.{digits}")
    return table


# Greedy search takes A (0.6), and ends with 0.6 * 0.5 * 0.6; beyond B, with 0.4, lies the likeliest target.
TRAP = chain(begin="A.6 B.4", A="A.5 C.5", C="end.6 A.4", B="B.1 end.9")
# Short targets are likelier, but long ones are nearly as likely.
LENGTHS = chain(begin="A.5 end.4 B.1", A="B.9 C.1", B="C.9 A.1", C="end.9 A.1")


@jax.jit
def log_probabilities(sources, targets):
    """Of each token after those of targets [batch, length], without a cache."""
    return jax.nn.log_softmax(model()(sources, targets))


def padded(sentences, length):
    return [[*sentence, *[PAD] * (length - len(sentence))] for sentence in sentences]


def test_the_length_penalty_is_that_of_the_paper():
    assert penalty_of(7, 0.5) == pytest.approx((12 / 6) ** 0.5)
    assert penalty_of(1, 0.7) == 1
    assert penalty_of(9, 0.0) == 1


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(length_penalty):
    sentences = [[*words, EOS] for n in range(4) for words in itertools.product([A, B, C], repeat=n)]
    assert len(sentences) == 40
    found = beam(model(), SOURCE, beam_size=41, max_length=4, length_penalty=length_penalty)
    target = jnp.array([[BOS, *row] for row in padded(sentences, 4)])
    for row in (0, 1, 3):
        steps = np.asarray(log_probabilities(jnp.broadcast_to(SOURCE[row], (40, 4)), target))
        totals = [sum(steps[i, t, token] for t, token in enumerate(s)) for i, s in enumerate(sentences)]
        scores = np.array(totals) / [((5 + len(s)) / 6) ** length_penalty for s in sentences]
        order = np.argsort(-scores)
        np.testing.assert_allclose(found.scores[row, :40], scores[order], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.tokens[row, :5], padded([sentences[i] for i in order[:5]], 4))
        assert np.isneginf(found.scores[row, 40:]).all()  # there are no others
        assert not found.tokens[row, 40:].any()


def test_a_beam_of_one_is_greedy_search():
    one = beam(model(), SOURCE, beam_size=1, max_length=9, length_penalty=0.8)
    alone = greedy(model(), SOURCE, max_length=9, length_penalty=0.8)
    np.testing.assert_array_equal(one.tokens[:, 0], alone.tokens)
    np.testing.assert_allclose(one.scores[:, 0], alone.scores, rtol=1e-6)
    assert len({row.tolist().index(EOS) for row in np.asarray(alone.tokens)[[0, 1, 3]]}) > 1


def test_greedy_search_takes_the_likeliest_token_without_a_cache():
    found = greedy(model(), SOURCE, max_length=9)
    for row in (0, 1, 3):
        sentence, score = [], 0.0
        while EOS not in sentence:
            target = jnp.array([[BOS, *sentence, *[PAD] * (8 - len(sentence))]])
            step = np.array(log_probabilities(SOURCE[row : row + 1], target)[0, len(sentence)])
            step[[PAD, BOS]] = -np.inf
            sentence.append(int(step.argmax()) if len(sentence) < 8 else EOS)
            score += step[sentence[-1]]
        assert found.tokens[row].tolist() == padded([sentence], 9)[0]
        assert found.scores[row] == pytest.approx(score, abs=1e-4)


def test_translations_do_not_depend_on_the_batch():
    together = beam(model(), SOURCE, beam_size=3, max_length=9)
    for row in (0, 3):
        alone = beam(model(), SOURCE[row : row + 1, :3], beam_size=3, max_length=9)  # less padding, too
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-4)


def test_a_row_of_padding_takes_no_steps():
    assert beam(model(), SOURCE, beam_size=3, max_length=9).scores[2].tolist() == [0, -np.inf, -np.inf]
    found = greedy(model(), SOURCE[2:3], max_length=9)
    assert (found.tokens.tolist(), found.scores.tolist()) == ([[PAD] * 9], [0])


def test_a_beam_finds_what_greedy_search_misses():
    model, source = Chain([TRAP] * 4), jnp.array([[A]])
    assert greedy(model, source, max_length=6, length_penalty=0).tokens[0, 0] == A
    found = beam(model, source, beam_size=2, max_length=6, length_penalty=0)
    assert found.tokens[0].tolist() == padded([[B, EOS], [A, C, EOS]], 6)
    np.testing.assert_allclose(np.exp(found.scores[0]), [0.4 * 0.9, 0.6 * 0.5 * 0.6], rtol=1e-5)


def test_more_penalty_prefers_longer_targets():
    model, source = Chain([LENGTHS] * 4), jnp.array([[A]])
    short, long = [EOS], [A, B, C, EOS]
    found = {penalty: beam(model, source, beam_size=2, max_length=6, length_penalty=penalty) for penalty in (0.0, 1.0)}
    assert found[0.0].tokens[0].tolist() == padded([short, long], 6)
    assert found[1.0].tokens[0].tolist() == padded([long, short], 6)
    np.testing.assert_allclose(found[0.0].scores[0], np.log([0.4, 0.5 * 0.9**3]), rtol=1e-5)
    np.testing.assert_allclose(found[1.0].scores[0], [np.log(0.5 * 0.9**3) * 6 / 9, np.log(0.4)], rtol=1e-5)


def test_a_hypothesis_that_has_ended_stays_whatever_comes_later():
    # [EOS] ends in the first step; in the second, the beam holds two likelier beginnings, which end badly.
    table = chain(begin="A.5 end.3 B.2", A="A.5 B.5", B="A.5 B.5")
    found = beam(Chain([table] * 4), jnp.array([[A]]), beam_size=2, max_length=5, length_penalty=0.6)
    assert found.tokens[0, 0].tolist() == padded([[EOS]], 5)[0]
    assert found.scores[0, 0] == pytest.approx(np.log(0.3), abs=1e-5)
    assert found.scores[0, 1] < -30  # EOS was forced upon it


def test_sentences_of_a_batch_end_independently():
    tables = [TRAP] * 3 + [TRAP, LENGTHS, LENGTHS]
    together = beam(Chain(tables), jnp.array([[A], [B]]), beam_size=2, max_length=6, length_penalty=0.0)
    assert together.tokens[:, 0].tolist() == padded([[B, EOS], [EOS]], 6)
    assert together.tokens[:, 1].tolist() == padded([[A, C, EOS], [A, B, C, EOS]], 6)


def test_a_target_is_cut_at_the_maximum_with_an_end():
    endless = chain(begin="A.9", A="A.9")
    model, source = Chain([endless] * 4), jnp.array([[A]])
    assert greedy(model, source, max_length=4).tokens[0].tolist() == [A, A, A, EOS]
    assert beam(model, source, beam_size=2, max_length=4).tokens[0, 0].tolist() == [A, A, A, EOS]


def test_a_batch_is_compiled_once_and_searches_work_inside_of_jit():
    from models import decoding

    beam(model(), SOURCE, beam_size=3, max_length=9)
    compiled = decoding._beam._cache_size()
    weights = jax.tree.map(lambda leaf: leaf + 0.01, nnx.state(model()))
    other = nnx.merge(nnx.graphdef(model()), weights)
    expected = beam(other, SOURCE[::-1], beam_size=3, max_length=9, length_penalty=0.9)
    assert decoding._beam._cache_size() == compiled

    @jax.jit
    def inside(weights, source):
        return beam(nnx.merge(nnx.graphdef(model()), weights), source, beam_size=3, max_length=9, length_penalty=0.9)

    jax.tree.map(np.testing.assert_array_equal, inside(weights, SOURCE[::-1]), expected)


def test_the_vocabulary_is_not_sorted(optimized):
    from models import decoding

    graph, state = nnx.split(Chain(np.ones((6, 50, 50)) / 50))
    text = decoding._beam.lower(graph, state, SOURCE, 0.6, beam_size=3, max_length=9).compile().as_text()
    assert "f32[4,50]" in text or "f32[4,150]" in text  # what is chosen from
    assert not [line for line in text.splitlines() if " sort(" in line and ("50]" in line)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be an integer of at least 1, got 0; pass"),
        ({"max_length": 2.5}, "max_length must be an integer of at least 1, got 2.5; pass"),
        ({"length_penalty": -1}, "length_penalty must be at least 0, got -1; pass e.g. 0.6"),
    ],
)
def test_errors_say_what_came_and_what_to_do(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        beam(model(), SOURCE, **{"beam_size": 2, "max_length": 4, **options})


def test_bfloat16_searches_too():
    narrow = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: Transformer(replace(SMALLEST, dtype=jnp.bfloat16), rngs=nnx.Rngs(0)))),
        nnx.state(model()),
    )
    found = greedy(narrow, SOURCE[:2], max_length=9)
    assert found.scores.dtype == jnp.float32
    for row in range(2):
        target = jnp.concatenate([jnp.array([BOS]), found.tokens[row, :-1]])[None]
        steps = log_probabilities(SOURCE[row : row + 1], target)[0]
        score = sum(steps[place, token] for place, token in enumerate(found.tokens[row]) if token != PAD)
        assert found.scores[row] == pytest.approx(float(score), rel=0.05)  # bfloat16 has 8 bits of precision
