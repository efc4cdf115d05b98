"""Tests of the Transformer: published sizes, what attends to what, its cache, dropout, precision, and training."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models.attention import attend, xavier
from models.layers import Dropout, sinusoids
from models.transformer import BOS, EOS, PAD, TRANSFORMERS, Transformer, TransformerConfig

SMALLEST = TransformerConfig(13, 16, 2, 32, 1, 2, dropout=0.25)
BASE, BIG = TRANSFORMERS["base"], TRANSFORMERS["big"]

SOURCE = jnp.array([[5, 6, 7, EOS, PAD, PAD], [8, 9, 5, 10, 11, EOS]])
TARGET = jnp.array([[BOS, 7, 6, PAD, PAD], [BOS, 4, 12, 5, 9]])


@cache
def drawn(norm, layers=2):
    config = replace(SMALLEST, norm=norm, num_decoder_layers=layers)
    graph, params = nnx.split(nnx.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))())
    # other than the zeros and ones with which biases and scales begin
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return graph, jax.tree.unflatten(tree, [leaf + 0.1 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


def model(norm="post"):
    return nnx.merge(*drawn(norm))


@partial(jax.jit, static_argnums=0)
def logits_of(graph, params, source, target, key=None):
    return nnx.merge(graph, params)(source, target, key)


def call(source, target, key=None, norm="post"):
    return np.asarray(logits_of(*drawn(norm), source, target, key))


def count(config):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))))


@pytest.mark.parametrize(
    ("config", "millions"),
    # Vaswani et al., 2017, Table 3: base, three of its variations, and big.
    [
        (BASE, 65),
        (replace(BASE, num_encoder_layers=2, num_decoder_layers=2), 36),
        (replace(BASE, d_model=256), 28),
        (replace(BASE, d_ff=1024), 53),
        (BIG, 213),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_parameters_are_as_many_as_published(config, millions):
    assert round(count(config) / 1e6) == millions


def test_parameters_counted_by_hand():
    d, ff, vocab = 512, 2048, 37_000
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * ff + ff + d, 2 * d
    layers = 6 * (attention + feed_forward + 2 * norm) + 6 * (2 * attention + feed_forward + 3 * norm)
    assert count(replace(BASE, vocab_size=vocab)) == layers + vocab * d == 63_082_496
    assert count(replace(SMALLEST, norm="pre")) == count(SMALLEST) + 2 * 2 * 16


def test_attention_is_that_of_the_equation():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, n, 4)).astype("f") for n in (5, 6, 6))
    mask = rng.random((2, 1, 5, 6)) < 0.6
    mask[..., 0] = True
    actual = attend(*map(jnp.asarray, (q, k, v, mask)))
    weights = np.exp(q @ k.swapaxes(-1, -2) / 2) * mask
    expected = (weights / weights.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(actual, expected.transpose(0, 2, 1, 3).reshape(2, 5, 12), rtol=1e-5, atol=1e-6)


def test_positions_are_sines_and_cosines():
    actual = sinusoids(jnp.array([0, 3]), 4)
    expected = [[0, 0, 1, 1], [np.sin(3), np.sin(3 / 100), np.cos(3), np.cos(3 / 100)]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_fused_projections_start_as_separate_ones():
    kernel = xavier(3)(jax.random.key(0), (64, 192))
    assert kernel.std() == pytest.approx(np.sqrt(2 / (64 + 64)), rel=0.03)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_token_changes_no_logits_before_it(norm):
    before = call(SOURCE, TARGET, norm=norm)
    for place in (1, 4):
        after = call(SOURCE, TARGET.at[1, place].set(3), norm=norm)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        np.testing.assert_array_equal(after[0], before[0])
        assert (after[1, place:] != before[1, place:]).any(axis=-1).all()


def test_every_source_token_matters_to_all_logits():
    before = call(SOURCE, TARGET)
    for place in (0, 5):
        after = call(SOURCE.at[1, place].set(4), TARGET)
        assert (after[1] != before[1]).any(axis=-1).all()
    swapped = call(SOURCE.at[1, :2].set(SOURCE[1, 1::-1]), TARGET)  # positions count
    assert (abs(swapped[1] - before[1]) > 1e-4).any()


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_logits_depend_neither_on_padding_nor_on_other_sentences(norm):
    together = call(SOURCE, TARGET, norm=norm)
    alone = call(SOURCE[:1, :4], TARGET[:1, :3], norm=norm)
    np.testing.assert_allclose(together[0, :3], alone[0], rtol=1e-5, atol=1e-5)
    others = call(jnp.stack([SOURCE[0], jnp.zeros_like(SOURCE[1])]), TARGET.at[1].set(PAD), norm=norm)
    np.testing.assert_array_equal(others[0, :3], together[0, :3])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_decoding_with_a_cache_gives_the_same_logits(norm):
    whole = model(norm)
    expected = call(SOURCE, TARGET, norm=norm)
    step = jax.jit(whole.decode_step)
    state = jax.jit(partial(whole.start, beams=1, length=5))(SOURCE)
    for place in range(5):
        logits, state = step(state, TARGET[:, place, None])
        real = TARGET[:, place] != PAD  # which the cache holds, where the whole model masks it
        np.testing.assert_allclose(logits[real, 0], expected[real, place], rtol=1e-5, atol=1e-5)


def test_beams_attend_to_what_their_ancestors_wrote():
    whole = model()
    step = jax.jit(whole.decode_step)
    state = jax.jit(partial(whole.start, beams=2, length=3))(SOURCE[1:])
    # The beam holds [5], [6]; then [6 7], [5 8], each written in the other's place; then [6 7 9], [6 7 10].
    tokens = jnp.array([[[5, 6], [7, 8], [9, 10]]])
    ancestors = [[[0, 9, 9], [1, 9, 9]], [[1, 0, 9], [0, 1, 9]], [[1, 0, 0], [1, 0, 1]]]
    found = []
    for place in range(3):
        logits, state = step(state, tokens[:, place], jnp.array([ancestors[place]], jnp.int32))
        found.append(logits[0])
    for place, beam, sentence in [(1, 0, [6, 7]), (1, 1, [5, 8]), (2, 0, [6, 7, 9]), (2, 1, [6, 7, 10])]:
        padded = jnp.array([sentence + [PAD] * (5 - len(sentence))])
        expected = call(SOURCE, jnp.concatenate([TARGET[:1], padded]))[1, place]
        np.testing.assert_allclose(found[place][beam], expected, rtol=1e-5, atol=1e-5)


def test_dropout_has_the_share_and_keeps_the_mean():
    drop = Dropout(0.25, jax.random.key(3))
    x = jnp.ones((100, 256))
    first, second = drop(x), drop(x)
    for dropped in (first, second):
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
        # The standard deviation of the share of n is sqrt(0.25 * 0.75 / n): 0.0027 here; five of them.
        assert jnp.mean(dropped == 0) == pytest.approx(0.25, abs=0.0135)
    kept = np.asarray((first != 0, second != 0, jnp.roll(first != 0, 128, axis=1)), np.float32).reshape(3, -1)
    correlations = np.corrcoef(kept)[np.triu_indices(3, 1)]
    assert (abs(correlations) < 0.03).all()  # of independent masks, with standard deviation 0.006
    assert Dropout(0.25, None)(x) is x


def test_dropout_depends_on_the_key_alone():
    without = call(SOURCE, TARGET)
    one, again, other = (call(SOURCE, TARGET, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=-1).all()
    assert (one != without).any(axis=-1).all()
    np.testing.assert_allclose(np.mean((one, other)), without.mean(), atol=1)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_bfloat16_computes_in_bfloat16_between_float32_ends(norm):
    narrow = nnx.eval_shape(lambda: Transformer(replace(SMALLEST, norm=norm, dtype=jnp.bfloat16), rngs=nnx.Rngs(0)))
    graph, like = nnx.split(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {jnp.dtype("float32")}
    narrow = nnx.merge(graph, drawn(norm)[1])
    memory, state = jax.eval_shape(lambda: (narrow.encode(SOURCE), narrow.start(SOURCE, 1, 5)))
    assert {memory.dtype, state.layers[0].keys.dtype} == {jnp.dtype("bfloat16")}
    logits = logits_of(graph, drawn(norm)[1], SOURCE, TARGET)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits of precision, and errors add up over the layers.
    np.testing.assert_allclose(logits, call(SOURCE, TARGET, norm=norm), atol=0.15)


def test_param_dtype_is_that_of_every_parameter():
    config = replace(SMALLEST, norm="pre", param_dtype=jnp.bfloat16)
    like = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {jnp.dtype("bfloat16")}


@jax.jit
def loss_and_gradients(params, source, target, key):
    """Mean cross-entropy of the tokens after each one, summed over those that are not padding."""
    graph, _ = drawn("pre", layers=1)
    following = jnp.concatenate([target[:, 1:], jnp.full_like(target[:, :1], EOS)], axis=1)

    def loss(params):
        logits = nnx.merge(graph, params)(source, target, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
        return jnp.sum(losses, where=target != PAD) / 8

    return jax.value_and_grad(loss)(params)


def test_a_batch_of_padding_has_gradients_of_zero():
    params = drawn("pre", layers=1)[1]
    loss, gradients = loss_and_gradients(params, jnp.zeros_like(SOURCE), jnp.zeros_like(TARGET), jax.random.key(0))
    assert loss == 0
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0)
    assert np.isfinite(call(jnp.zeros_like(SOURCE), jnp.zeros_like(TARGET))).all()


def test_workers_train_as_each_would_alone():
    params = drawn("pre", layers=1)[1]
    keys = jax.random.split(jax.random.key(0), 2)
    sources, targets = jnp.stack([SOURCE, SOURCE[::-1] % 7]), jnp.stack([TARGET, TARGET[::-1]])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    losses, gradients = jax.jit(jax.vmap(loss_and_gradients))(stacked, sources, targets, keys)
    for worker in range(2):
        arguments = sources[worker], targets[worker], keys[worker]
        loss, alone = loss_and_gradients(params, *arguments)
        np.testing.assert_allclose(losses[worker], loss, rtol=1e-5)
        mine = jax.tree.map(lambda leaf, worker=worker: leaf[worker], gradients)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), mine, alone)
        moved = jax.tree.map(lambda p, g: p - 0.01 * g, params, alone)
        assert loss_and_gradients(moved, *arguments)[0] < loss
        assert all(np.any(leaf) for leaf in jax.tree.leaves(alone))  # nothing is left untrained


def test_a_token_outside_of_the_vocabulary_shows():
    logits = call(SOURCE.at[1, 2].set(13), TARGET)
    assert np.isnan(logits[1]).all()
    assert np.isfinite(logits[0]).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 2, "vocab_size must be at least 3, got 2; count PAD"),
        ("vocab_size", 0, "vocab_size must be an integer of at least 1, got 0; pass"),
        ("d_model", 15, "d_model must be even and a multiple of num_heads, got 15 and 2 heads; pass"),
        ("num_heads", 3, "d_model must be even and a multiple of num_heads, got 16 and 3 heads; pass"),
        ("d_ff", 1.5, "d_ff must be an integer of at least 1, got 1.5; pass"),
        ("num_encoder_layers", 0, "num_encoder_layers must be an integer of at least 1, got 0; pass"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0; pass"),
        ("norm", "rms", r"norm must be one of \('post', 'pre'\), got 'rms'; pass"),
        ("dtype", jnp.int32, "dtype must be a floating type, got .*int32.*; pass"),
    ],
)
def test_config_errors_say_what_came_and_what_to_do(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(SMALLEST, **{field: value})


def test_config_is_hashable():
    assert {replace(SMALLEST): 1}[replace(SMALLEST)] == 1


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (SOURCE[0], TARGET, r"source must be integers \[batch, length\], got int32 \[6\]; pass tokens"),
        (SOURCE, TARGET * 1.0, r"target must be integers \[batch, length\], got float32 \[2, 5\]; pass tokens"),
        (SOURCE, TARGET[:1], "source and target must have the same number of sentences, got 2 and 1; pass"),
    ],
)
def test_wrong_tokens_raise_when_traced(source, target, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model(), source, target)
