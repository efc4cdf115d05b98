"""One contract for every algorithm; a new one is a row of ROWS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import CONTEXTS

from wagma_jax.algorithms import ALGORITHMS, Settings, build, default_group_size, find

P = 8
# algorithm -> (group size, sync period) that it amounts to with P = 8, S = 2, tau = 4
ROWS = {
    "allreduce": (8, 1),
    "local": (1, 4),
    "wagma": (2, 4),
}


def test_every_algorithm_has_a_row():
    assert list(ALGORITHMS) == list(ROWS)
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert algorithm.summary
        assert algorithm.exchanges in ("models", "gradients")
        assert algorithm.options is None or isinstance(algorithm.options, type)
        assert find(name) is algorithm


def one_step(name, strategy, model, state, target, late):
    """SGD with rate 0.2 on this worker's own quadratic; the statistic is the target's mean, and integers stay local."""
    grads = model["params"] - target
    stats = {"mean": target.mean(), "count": model["stats"]["count"] + 1}
    if find(name).exchanges == "gradients":
        tree, state, info = strategy.combine({"params": grads, "stats": stats}, model, state, late)
        return {"params": model["params"] - 0.2 * tree["params"], "stats": tree["stats"]}, state, info
    return strategy.combine({"params": model["params"] - 0.2 * grads, "stats": stats}, model, state, late)


def start(strategy, num_workers):
    stats = {"mean": jnp.zeros(num_workers), "count": jnp.arange(num_workers)}
    model = {"params": jnp.zeros((num_workers, 3)), "stats": stats}
    return model, jax.jit(jax.vmap(strategy.init))(model)


def train(name, context, steps, *, late=None):
    """The models [P, ...] after each step, the targets [P, 3], and what happened."""
    strategy = build(name, Settings(P, 2, 4, simulate_lateness=late is not None))
    targets = np.random.default_rng(0).normal(size=(P, 3)).astype(np.float32)
    run = CONTEXTS[context](functools.partial(one_step, name, strategy), P)
    model, state = start(strategy, P)
    models, infos = [], []
    for t in range(steps):
        model, state, info = run(model, state, jnp.asarray(targets), None if late is None else jnp.asarray(late[t]))
        models.append(jax.tree.map(np.asarray, model))
        infos.append(jax.tree.map(np.asarray, info))
    return models, targets, infos


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
@pytest.mark.parametrize("name", ROWS)
def test_converges_to_the_optimum_of_the_mean(name, context):
    """The mean of the workers follows SGD on the mean objective exactly; at sync rounds all workers agree."""
    models, targets, infos = train(name, context, 8)
    for t, (model, info) in enumerate(zip(models, infos, strict=True)):
        w, stats = model["params"], model["stats"]
        is_sync = (t + 1) % ROWS[name][1] == 0
        np.testing.assert_allclose(w.mean(0), targets.mean(0) * (1 - 0.8 ** (t + 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats["mean"].mean(), targets.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(stats["count"], np.arange(P) + t + 1)
        assert np.allclose(w, w[:1], rtol=1e-6) == is_sync
        assert np.allclose(stats["mean"], stats["mean"][0], rtol=1e-6) == is_sync
        assert (info.round == t).all()
        assert (info.is_sync == is_sync).all()
        assert not info.late.any()


@pytest.mark.parametrize("name", ROWS)
def test_schedule_says_what_it_amounts_to(name):
    schedule = build(name, Settings(P, 2, 4)).schedule
    assert (schedule.num_workers, schedule.group_size, schedule.sync_period) == (P, *ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_takes_lateness(name):
    late = np.random.default_rng(1).random((7, P)) < 0.5
    _, _, infos = train(name, "vmap", 7, late=late)
    waits = ROWS[name][1] == 1 or ROWS[name][0] == 1
    for t, info in enumerate(infos):
        expected = np.zeros(P, bool) if waits or info.is_sync.any() else late[t]
        np.testing.assert_array_equal(info.late, expected)


@pytest.mark.parametrize("name", ROWS)
def test_one_worker_is_plain_sgd(name):
    strategy = build(name, Settings(1, None, 4))
    step = functools.partial(one_step, name, strategy, late=None)
    model, state = start(strategy, 1)
    model, _, _ = jax.jit(jax.vmap(step, axis_name="data"))(model, state, jnp.ones((1, 3)))
    np.testing.assert_array_equal(model["params"], np.full((1, 3), np.float32(0.2)))


def test_bad_settings():
    with pytest.raises(ValueError, match="one of allreduce, local, wagma, got 'sgp2'"):
        build("sgp2", Settings(8))
    with pytest.raises(ValueError, match="group_size"):
        build("wagma", Settings(8, 9))
    with pytest.raises(ValueError, match="num_workers"):
        build("wagma", Settings(0))
    with pytest.raises(ValueError, match="quorum must be between 1 and the group size 2, got 3"):
        build("wagma", Settings(8, 2, quorum=3))
    with pytest.raises(ValueError, match="on_nonfinite='skip' needs a process for each worker, got one program"):
        build("wagma", Settings(8, 2, on_nonfinite="skip"))


def test_default_group_size_is_about_the_square_root():
    assert [default_group_size(n) for n in (1, 2, 4, 8, 9, 16, 25, 64, 1024)] == [1, 2, 2, 4, 3, 4, 5, 8, 32]
