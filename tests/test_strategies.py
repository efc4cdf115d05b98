"""One contract for every algorithm; a new one is a row of ROWS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import CONTEXTS

from wagma_jax.strategies import ALGORITHMS, Settings, build, default_group_size

P = 8
# algorithm -> (group size, sync period) that it amounts to with P = 8, S = 2, tau = 4
ROWS = {
    "allreduce": (8, 1),
    "local": (1, 4),
    "wagma": (2, 4),
}


def test_every_algorithm_has_a_row():
    assert set(ROWS) == set(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert algorithm.summary


def train(name, context, steps, *, late=None, seed=0):
    """SGD on each worker's own quadratic; [P, 3] models, and what happened."""
    strategy = build(name, Settings(P, 2, 4, simulate_lateness=late is not None))
    targets = np.random.default_rng(seed).normal(size=(P, 3)).astype(np.float32)

    def step(w, state, target, late):
        grads = strategy.combine_gradients(w - target)
        return strategy.combine_models(w - 0.2 * grads, state, late)

    run = CONTEXTS[context](step, P)
    w = jnp.zeros((P, 3))
    state = jax.vmap(strategy.init)(w)
    infos = []
    for t in range(steps):
        w, state, info = run(w, state, jnp.asarray(targets), None if late is None else jnp.asarray(late[t]))
        infos.append(jax.tree.map(np.asarray, info))
    return np.asarray(w), targets, infos


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
@pytest.mark.parametrize("name", ROWS)
def test_converges_to_the_optimum_of_the_mean(name, context):
    """The mean of the workers follows SGD on the mean objective exactly; at sync rounds all workers agree."""
    w, targets, infos = train(name, context, 8)
    optimum = targets.mean(0)
    np.testing.assert_allclose(w.mean(0), optimum * (1 - 0.8**8), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(w, np.broadcast_to(w[0], w.shape), rtol=1e-6)  # round 7 is a sync round
    for t, info in enumerate(infos):
        assert (info.round == t).all()
        assert (info.is_sync == ((t + 1) % ROWS[name][1] == 0)).all()
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
    step = jax.vmap(
        lambda w, state: strategy.combine_models(w - strategy.combine_gradients(w), state, None), axis_name="data"
    )
    w, _, _ = step(jnp.ones((1, 2)), jax.vmap(strategy.init)(jnp.ones((1, 2))))
    np.testing.assert_array_equal(w, np.zeros((1, 2)))


def test_bad_settings():
    with pytest.raises(ValueError, match="one of allreduce, local, wagma, got 'sgp2'"):
        build("sgp2", Settings(8))
    with pytest.raises(ValueError, match="group_size"):
        build("wagma", Settings(8, 9))
    with pytest.raises(ValueError, match="num_workers"):
        build("wagma", Settings(0))


def test_default_group_size_is_about_the_square_root():
    assert [default_group_size(n) for n in (1, 2, 4, 8, 9, 16, 25, 64, 1024)] == [1, 2, 2, 4, 3, 4, 5, 8, 32]
