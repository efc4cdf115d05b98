"""Accumulated gradients wherever a step may run, and the cross-entropy by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import CONTEXTS, data_mesh
from flax import nnx

import wagma_jax as wagma
from train.gradients import GradientOptions, cross_entropy, mean_loss_and_gradients


def linear_loss(params, carry, batch):
    """A mean over examples; the carry counts micro-batches and remembers the last example."""
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    carry = {"calls": carry["calls"] + 1, "last": batch["y"][-1]}
    return jnp.mean(errors**2), (carry, {"largest": jnp.max(errors), "positive": jnp.mean(errors > 0)})


def linear_problem(num_workers, examples=12, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=(num_workers, *shape)), jnp.float32)
    carry = {"calls": jnp.zeros(num_workers, jnp.int32), "last": draw()}
    return {"w": draw(5), "b": draw()}, carry, {"x": draw(examples, 5), "y": draw(examples)}


def assert_like_the_whole_batch(accumulate, actual, params, carry, batch):
    loss, new_carry, metrics, gradients = actual
    errors = np.asarray(batch["x"]) @ np.asarray(params["w"]) + np.asarray(params["b"]) - np.asarray(batch["y"])
    np.testing.assert_allclose(loss, np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(gradients["w"], 2 * errors @ np.asarray(batch["x"]) / len(errors), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients["b"], 2 * errors.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["positive"], np.mean(errors > 0), rtol=1e-5)
    np.testing.assert_allclose(metrics["largest"], errors.reshape(accumulate, -1).max(1).mean(), rtol=1e-5)
    assert new_carry["calls"] == carry["calls"] + accumulate
    assert new_carry["last"] == batch["y"][-1]


@pytest.mark.parametrize(
    ("context", "accumulate"), [*((context, 3) for context in CONTEXTS), ("shard_map", 1), ("vmap", 1)]
)
def test_accumulation_is_the_whole_batch_for_every_worker(context, accumulate):
    arguments = linear_problem(4)

    def step(params, carry, batch):
        return mean_loss_and_gradients(linear_loss, params, carry, batch, accumulate)

    results = CONTEXTS[context](step, 4)(*arguments)
    for worker in range(4):
        one = jax.tree.map(lambda leaf, worker=worker: leaf[worker], (results, *arguments))
        assert_like_the_whole_batch(accumulate, *one)


@pytest.mark.parametrize(("accumulate", "jit"), [(2, False), (12, False), (1, True), (4, True)])
def test_accumulation_without_workers(accumulate, jit):
    arguments = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))
    function = lambda *arguments: mean_loss_and_gradients(linear_loss, *arguments, accumulate)
    assert_like_the_whole_batch(accumulate, (jax.jit(function) if jit else function)(*arguments), *arguments)


def test_one_micro_batch_is_the_plain_program():
    arguments = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))

    def plain(params, carry, batch):
        (loss, (carry, metrics)), gradients = jax.value_and_grad(linear_loss, has_aux=True)(params, carry, batch)
        return loss, carry, metrics, gradients

    ours = lambda accumulate: str(
        jax.make_jaxpr(lambda *a: mean_loss_and_gradients(linear_loss, *a, accumulate))(*arguments)
    )
    assert ours(1) == str(jax.make_jaxpr(plain)(*arguments))
    assert "scan" in ours(2)


def test_shared_parameters_get_the_sum_of_all_workers_gradients():
    """As JAX differentiates by what does not vary over workers, with one micro-batch or several."""
    params, carry, batch = linear_problem(4)
    shared = jax.tree.map(lambda leaf: leaf[0], params)

    def gradients(accumulate):
        step = lambda carry, batch: mean_loss_and_gradients(linear_loss, shared, carry, batch, accumulate)[3]
        return jax.jit(wagma.for_workers(step, mesh=data_mesh(4)))(carry, batch)

    one, several = gradients(1), gradients(3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), several, one)
    np.testing.assert_array_equal(several["b"], np.broadcast_to(several["b"][0], 4))


class Network(nnx.Module):
    """The smallest one with statistics."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.last = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_batch_statistics_go_from_one_micro_batch_to_the_next():
    graph, params, stats = nnx.split(Network(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 8, 6)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 4, (2, 8)))

    def loss_function(params, stats, batch):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(batch["image"])
        loss = cross_entropy(logits, batch["label"], 0.1).mean()
        return loss, (nnx.state(model, nnx.BatchStat), {"accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])})

    def accumulated(params, stats, batch):
        return mean_loss_and_gradients(loss_function, params, stats, batch, 2)

    def one_by_one(params, stats, batch):
        results = []
        for part in (slice(0, 4), slice(4, 8)):
            part = jax.tree.map(lambda leaf, part=part: leaf[part], batch)
            (loss, (stats, metrics)), gradients = jax.value_and_grad(loss_function, has_aux=True)(params, stats, part)
            results.append((loss, metrics, gradients))
        loss, metrics, gradients = jax.tree.map(lambda a, b: (a + b) / 2, *results)
        return loss, stats, metrics, gradients

    workers = wagma.replicate((params, stats), 2)
    batch = {"image": images, "label": labels}
    actual, expected = (
        jax.jit(wagma.for_workers(function, mesh=data_mesh(2)))(*workers, batch)
        for function in (accumulated, one_by_one)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": jnp.zeros((10, 5)), "y": jnp.zeros(10)},
            r"--accumulate must divide .* got 4 and an array of shape",
        ),
        ({"x": jnp.zeros((8, 5)), "y": jnp.zeros(())}, r"got 4 and an array of shape \[\]: change it or --batch-size"),
    ],
)
def test_batches_that_cannot_be_split(batch, message):
    params, carry, _ = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))
    with pytest.raises(ValueError, match=message):
        mean_loss_and_gradients(linear_loss, params, carry, batch, 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_its_definition(smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)) * 3, random.integers(0, 4, 6)
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    expected = -np.sum(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True))), 1)
    actual = jax.jit(cross_entropy, static_argnums=2)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": -0.1}, r"--label-smoothing must be in \[0, 1\), got -0.1: the default is 0.0"),
        ({"label_smoothing": 1.0}, r"--label-smoothing must be in"),
        ({"label_smoothing": float("nan")}, "got nan"),
        ({"accumulate": 0}, "--accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": 1.5}, "--accumulate must be an integer"),
        ({"precision": "float16"}, "--precision must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        GradientOptions(**options).check()


def test_good_options():
    GradientOptions(label_smoothing=0.1, accumulate=4, precision="bfloat16").check()
