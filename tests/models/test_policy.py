"""Tests of the policies: cells against their equations, resets, a scan against steps, observations, and gradients."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.policy import POLICIES, Policy, PolicyConfig
from models.recurrent import GRU, LSTM

TINY = replace(POLICIES["tiny"], depth_shape=(6,), hidden=8, embedding=4)
TIME, BATCH = 5, 3
# Episodes begin at once in all environments but the second, and later in the first and the third.
START = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], bool)


def config_of(name):
    return {"gru": TINY, "lstm": replace(TINY, core="lstm"), "images": replace(TINY, depth_shape=(9, 7, 1))}[name]


@cache
def drawn(name):
    return nnx.split(nnx.jit(lambda: Policy(config_of(name), rngs=nnx.Rngs(0)))())


@partial(jax.jit, static_argnums=0)
def unroll(name, params, observation, previous, start, state):
    return nnx.merge(drawn(name)[0], params).unroll(observation, previous, start, state)


@partial(jax.jit, static_argnums=0)
def step(name, params, observation, previous, start, state):
    return nnx.merge(drawn(name)[0], params).step(observation, previous, start, state)


def experience(name):
    rng = np.random.default_rng(2)
    depth = rng.random((TIME, BATCH, *config_of(name).depth_shape), np.float32)
    goal = rng.random((TIME, BATCH, 2), np.float32) * [5, 2 * np.pi] - [0, np.pi]
    observation = {"depth": depth, "goal": goal.astype(np.float32)}
    previous = np.where(START, 4, rng.integers(0, 4, (TIME, BATCH))).astype(np.int32)
    state = jax.tree.map(lambda leaf: leaf + 0.5, nnx.merge(*drawn(name)).initial_state(BATCH))
    return observation, previous, START, state


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_cells_are_those_of_their_equations(kind):
    core = kind(2, 3, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, state = jnp.array([[0.5, -1.0]]), tuple(jnp.full((1, 3), 0.3 + n) for n in range(kind.parts))
    output, after = core.step(x, jnp.array([False]), state)
    x, h = (
        np.asarray(of) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        for of, layer in ((x, core.inputs), (state[0], core.hidden))
    )
    if kind is GRU:
        r, z = sigmoid(x + h)[:, :3], sigmoid(x + h)[:, 3:6]
        expected = [(1 - z) * np.tanh(x[:, 6:] + r * h[:, 6:]) + z * 0.3]
    else:
        i, f, g, o = np.split(x + h, 4, axis=1)
        memory = sigmoid(f + 1) * 1.3 + sigmoid(i) * np.tanh(g)
        expected = [sigmoid(o) * np.tanh(memory), memory]
    for actual, wanted in zip(after, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)
    np.testing.assert_array_equal(output, after[0])
    for matrix in np.split(np.asarray(core.hidden.kernel[...]), kind.gates, axis=1):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "lstm", "images"])
def test_all_steps_at_once_are_the_same_as_one_after_the_other(name):
    params = drawn(name)[1]
    observation, previous, start, state = experience(name)
    output, last = unroll(name, params, observation, previous, start, state)
    assert (output.logits.shape, output.value.shape) == ((TIME, BATCH, 4), (TIME, BATCH))
    assert {leaf.dtype for leaf in jax.tree.leaves((output, last))} == {jnp.dtype("float32")}
    for t in range(TIME):
        seen = jax.tree.map(lambda leaf, t=t: leaf[t], observation)
        here, state = step(name, params, seen, previous[t], start[t], state)
        np.testing.assert_allclose(here.logits, output.logits[t], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(here.value, output.value[t], rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), last, state)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_nothing_of_an_episode_reaches_the_next(name):
    params = drawn(name)[1]
    observation, previous, start, state = experience(name)
    before = unroll(name, params, observation, previous, start, state)[0].value
    changed = {**observation, "depth": observation["depth"].copy()}
    changed["depth"][1] += 1  # at time 1, in all environments
    moved = np.asarray(unroll(name, params, changed, previous, start, state)[0].value != before)
    assert moved.tolist() == [[False] * 3, [True] * 3, [False, True, True], [False, True, True], [False, True, False]]
    other = jax.tree.map(lambda leaf: leaf + 1, state)  # from before the rollout
    moved = np.asarray(unroll(name, params, observation, previous, start, other)[0].value != before)
    assert moved.tolist() == [[False, True, False]] * TIME


def test_an_episode_begins_as_from_the_initial_state():
    params = drawn("lstm")[1]
    observation, previous, start, state = experience("lstm")
    from_within = unroll("lstm", params, observation, previous, start, state)[0].value[2:, 0]
    later = jax.tree.map(lambda leaf: np.concatenate([leaf[2:], leaf[:2]]), (observation, previous, start))
    initial = nnx.merge(*drawn("lstm")).initial_state(BATCH)
    fresh = unroll("lstm", params, *later[:2], np.zeros_like(start), initial)[0].value[:3, 0]
    np.testing.assert_allclose(from_within, fresh, rtol=1e-4)


def test_gradients_do_not_pass_an_episodes_begin():
    params = drawn("gru")[1]
    observation, previous, start, state = experience("gru")

    def last_values(state, depth):
        seen = {**observation, "depth": depth}
        return unroll("gru", params, seen, previous, start, state)[0].value[-1].sum()

    by_state, by_depth = jax.jit(jax.grad(last_values, (0, 1)))(state, jnp.asarray(observation["depth"]))
    assert np.any(by_state[0], axis=-1).tolist() == [False, True, False]
    assert np.any(by_depth, axis=-1).tolist() == [
        [False, True, False], [False, True, False], [True, True, False], [True, True, False], [True, True, True],
    ]  # fmt: skip


def test_everything_is_trained_and_everything_matters():
    observation, previous, start, state = experience("images")

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients(params, observation):
        output, _ = unroll("images", params, observation, previous, start, state)
        return jnp.sum(output.value) + jnp.sum(output.logits[..., 0]), output

    (by_params, by_observation), _ = gradients(drawn("images")[1], observation)
    for leaf in jax.tree.leaves(by_params):
        assert np.isfinite(leaf).all()
        assert np.any(leaf)
    assert np.any(by_observation["goal"], axis=(0, 1)).all()
    assert np.any(by_observation["depth"], axis=(0, 1)).mean() > 0.9


def test_actions_are_nearly_equally_likely_in_the_beginning():
    output, _ = unroll("gru", drawn("gru")[1], *experience("gru"))
    np.testing.assert_allclose(jax.nn.softmax(output.logits), 0.25, atol=0.01)
    assert abs(output.value).max() > 0.01


def test_there_is_no_jump_behind_the_agent():
    observation, previous, start, state = experience("gru")
    values = []
    for angle in (-np.pi, np.pi):
        goal = np.broadcast_to(np.array([2, angle], np.float32), (TIME, BATCH, 2))
        values.append(unroll("gru", drawn("gru")[1], {**observation, "goal": goal}, previous, start, state)[0].value)
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_bfloat16_computes_in_bfloat16_between_float32_ends():
    graph, params = drawn("gru")
    narrow = nnx.eval_shape(lambda: Policy(replace(TINY, dtype=jnp.bfloat16), rngs=nnx.Rngs(0)))
    assert jax.eval_shape(nnx.merge(nnx.graphdef(narrow), params).depth, np.zeros((1, 6))).dtype == jnp.bfloat16
    observation, previous, start, state = experience("gru")
    (output, state), (wide, _) = (
        jax.jit(lambda graph=graph: nnx.merge(graph, params).unroll(observation, previous, start, state))()
        for graph in (nnx.graphdef(narrow), graph)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((output, state))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(output.value, wide.value, atol=0.05)
    stored = nnx.eval_shape(lambda: Policy(replace(TINY, param_dtype=jnp.bfloat16), rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth_shape", (8, 8), r"depth_shape must have 1 axis \(rays\) or 3 .*, got \(8, 8\); pass"),
        ("depth_shape", (0,), "each size in depth_shape must be an integer of at least 1, got 0; pass"),
        ("hidden", 0, "hidden must be an integer of at least 1, got 0; pass"),
        ("num_actions", 2.0, "num_actions must be an integer of at least 1, got 2.0; pass"),
        ("core", "rnn", r"core must be one of \('gru', 'lstm'\), got 'rnn'; pass"),
        ("max_distance", 0, "max_distance must be above 0, got 0; pass"),
        ("dtype", "int8", "dtype must be a floating type, got 'int8'; pass"),
    ],
)
def test_config_errors_say_what_came_and_what_to_do(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(TINY, **{field: value})
    assert {PolicyConfig(): 1}[PolicyConfig()] == 1


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("depth", (BATCH, 5), r"\[3, 6\]"), ("goal", (BATCH, 3), r"\[3, 2\]"), ("depth", (2, 6), r"\[3, 6\]")],
)
def test_wrong_observations_raise_when_traced(name, shape, expected):
    policy = nnx.merge(*drawn("gru"))
    seen = {"depth": np.zeros((BATCH, 6)), "goal": np.zeros((BATCH, 2))} | {name: np.zeros(shape)}
    message = rf"the observation's {name} must have shape {expected}, .*, got .*; set depth_shape"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(policy.step, seen, np.zeros(BATCH, int), np.zeros(BATCH, bool), policy.initial_state(BATCH))
