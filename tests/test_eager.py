"""eager-SGD inside one XLA program, with simulated lateness: against NumPy, with each gradient applied once."""

import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import CONTEXTS

import wagma_jax as wagma
from wagma_jax.algorithms import Settings, build
from wagma_jax.algorithms.eager import EagerOptions

TAU = 4


def trained(optimizer, num_workers, late, *, context="vmap", dtype=np.float32):
    """The models [P, 3] after each step on the workers' own quadratics, and the targets."""
    targets = np.random.default_rng(0).normal(size=(num_workers, 3)).astype(dtype)

    def step(params, state, target, late):
        updates, state = optimizer.update({"w": params["w"] - target}, state, params, late=late)
        return optax.apply_updates(params, updates), state

    run = CONTEXTS[context](step, num_workers)
    params = {"w": jnp.zeros((num_workers, 3), dtype)}
    state = jax.vmap(optimizer.init)(params)
    models = []
    for t in range(len(late)):
        params, state = run(params, state, jnp.asarray(targets), jnp.asarray(late[t]))
        models.append(np.asarray(params["w"], np.float64))
    return models, np.asarray(targets, np.float64)


def reference(num_workers, late, targets, momentum=0.0, rate=0.1):
    """The same in NumPy: each worker has a send buffer, in which gradients wait that came too late."""
    x, velocity = np.zeros((num_workers, 3)), 0.0
    buffers = [[] for _ in range(num_workers)]  # gradients handed in and not contributed
    models = []
    for t, is_late in enumerate(late):
        for i in range(num_workers):
            if not is_late[i] or (t + 1) % TAU == 0:
                buffers[i].append(x[i] - targets[i])
        contributions = [np.sum(buffer, 0) if buffer else np.zeros(3) for buffer in buffers]
        buffers = [[] for _ in range(num_workers)]
        for i in range(num_workers):
            if is_late[i] and (t + 1) % TAU:
                buffers[i].append(x[i] - targets[i])
        velocity = momentum * velocity + np.sum(contributions, 0) / num_workers
        x = x - rate * velocity
        models.append(x)
    return models


def lateness(num_workers, rounds=9, seed=1):
    return np.random.default_rng(seed).random((rounds, num_workers)) < 0.5


@pytest.mark.parametrize("num_workers", [2, 5])
def test_late_gradients_are_added_to_the_next_contribution(num_workers):
    late = lateness(num_workers)
    optimizer = wagma.eager_sgd(optax.sgd(0.1, momentum=0.5), num_workers, TAU, simulate_lateness=True)
    models, targets = trained(optimizer, num_workers, late)
    np.testing.assert_allclose(models, reference(num_workers, late, targets, 0.5), rtol=1e-5, atol=1e-6)
    for model in models:
        np.testing.assert_array_equal(model, np.broadcast_to(model[0], model.shape))


@pytest.mark.parametrize("context", [context for context in CONTEXTS if context != "vmap"])
def test_agrees_in_every_context(context):
    late = lateness(4, 5)
    optimizer = wagma.eager_sgd(optax.sgd(0.1), 4, TAU, simulate_lateness=True)
    models, targets = trained(optimizer, 4, late, context=context)
    np.testing.assert_allclose(models, reference(4, late, targets), rtol=1e-5, atol=1e-6)


def test_narrow_gradients_lose_nothing_but_by_rounding():
    late = lateness(4, 8)
    optimizer = wagma.eager_sgd(optax.sgd(0.1), 4, TAU, simulate_lateness=True)
    models, targets = trained(optimizer, 4, late, dtype=jnp.bfloat16)
    np.testing.assert_allclose(models, reference(4, late, targets), atol=0.02)


def test_each_gradient_is_applied_once_and_none_stays_over_a_sync_round():
    """Gradients are powers of two, so that the parameters tell which are in them."""
    P, rounds = 4, 5  # means over 4 are exact
    strategy = build("eager", Settings(P, sync_period=TAU, simulate_lateness=True))
    late = lateness(P, rounds)
    assert late[3].any()  # has no effect at sync rounds

    def step(applied, state, grads, late):
        tree = {"params": grads, "stats": {"mean": grads}}
        mean, state, _ = strategy.combine(tree, None, state, late)
        return applied + mean["params"] * P, state, mean["stats"]["mean"]

    run = jax.jit(wagma.for_workers(step))
    applied = jnp.zeros(P)
    state = jax.vmap(strategy.init)({"params": applied, "stats": {"mean": applied}})
    handed = 0.0
    for t in range(rounds):
        grads = 2.0 ** (t * P + np.arange(P, dtype=np.float32))
        applied, state, stats = run(applied, state, jnp.asarray(grads), jnp.asarray(late[t]))
        handed += grads.sum()
        is_sync = (t + 1) % TAU == 0
        missing = 0.0 if is_sync else grads[late[t]].sum()
        np.testing.assert_array_equal(applied, np.full(P, handed - missing))
        np.testing.assert_allclose(stats, np.full(P, grads.mean()) if is_sync else grads, rtol=1e-6)


def test_goes_on_from_a_saved_state():
    late = lateness(4, 9)
    optimizer = wagma.eager_sgd(optax.adam(0.1), 4, TAU, simulate_lateness=True)
    step = jax.jit(jax.vmap(lambda g, s, late: optimizer.update(g, s, late=late), axis_name="data"))
    grads = jnp.asarray(np.random.default_rng(2).normal(size=(9, 4, 3)), jnp.float32)

    def run(saved_at=None):
        state, updates = jax.vmap(optimizer.init)(jnp.zeros((4, 3))), None
        for t in range(9):
            if t == saved_at:
                leaves, treedef = jax.tree.flatten(state)
                state = treedef.unflatten([jnp.asarray(np.asarray(leaf)) for leaf in leaves])
            updates, state = step(grads[t], state, jnp.asarray(late[t]))
        return updates

    assert late[5].any()
    np.testing.assert_array_equal(run(6), run())


def test_refuses_what_cannot_be_right():
    params = jnp.zeros((3, 2))

    def update(optimizer, **options):
        state = jax.vmap(optimizer.init)(params)
        call = functools.partial(optimizer.update, **options)
        return jax.vmap(lambda g, s: call(g, s), axis_name="data")(params, state)

    with pytest.raises(ValueError, match=r"late needs simulate_lateness=True: pass that to eager_sgd\(\)"):
        update(wagma.eager_sgd(optax.sgd(0.1), 3), late=True)
    lates = wagma.eager_sgd(optax.sgd(0.1), 3, simulate_lateness=True)
    with pytest.raises(ValueError, match="late must be a boolean scalar per worker, got int32"):
        update(lates, late=jnp.int32(1))
    with pytest.raises(ValueError, match="axis 'data' has 3 indices, but the schedule is for num_workers=4"):
        update(wagma.eager_sgd(optax.sgd(0.1), 4))
    with pytest.raises(ValueError, match="not bound"):
        lates.update(params[0], lates.init(params[0]), late=jnp.bool_(True))
    with pytest.raises(ValueError, match="sync_period"):
        wagma.eager_sgd(optax.sgd(0.1), 4, 0)
    with pytest.raises(ValueError, match="start must be 'solo' or 'majority', got 'all'"):
        EagerOptions(typing.cast(Any, "all"))
    with pytest.raises(ValueError, match="seed of eager must not be negative, got -1"):
        EagerOptions(seed=-1)
