"""One contract for every algorithm; a new one is a row of ROWS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import CONTEXTS
from papers import reference

import wagma_jax as wagma
from wagma_jax.algorithms import ALGORITHMS, Settings, build, default_group_size, find
from wagma_jax.algorithms.sgp import SgpOptions

P = 8
# algorithm -> (group size, sync period) that it amounts to with P = 8, S = 2, tau = 4
ROWS = {
    "allreduce": (8, 1),
    "local": (1, 4),
    "wagma": (2, 4),
    "dpsgd": (3, None),
    "sgp": (2, None),
    "eager": (8, 4),
}
AVOIDS_WAITING = ("wagma", "eager")  # whose workers may be late
EQUAL_PARAMETERS = ("allreduce", "eager")  # on all workers, in every round
OVER_MPI_ALONE = ("adpsgd",)


def test_every_algorithm_has_a_row():
    assert list(ALGORITHMS) == [*ROWS, *OVER_MPI_ALONE]
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert algorithm.summary
        assert algorithm.exchanges in ("models", "gradients")
        assert algorithm.options is None or algorithm.options() == algorithm.options()
        assert find(name) is algorithm


@pytest.mark.parametrize("name", OVER_MPI_ALONE)
def test_one_program_is_refused_where_nothing_would_be_asynchronous(name):
    with pytest.raises(ValueError, match=f"{name} needs a process for each worker, got one program"):
        build(name, Settings(P))
    assert find(name).mpi is not None


def trained(name, num_workers, steps, *, context="vmap", dtype=np.float32, options=None):
    """The models [P, 3] after each step of SGD on the workers' own quadratics, by the optax transformation."""
    inner = optax.sgd(0.1)
    transformation = {
        "allreduce": lambda: wagma.allreduce_sgd(inner),
        "local": lambda: wagma.local_sgd(inner, num_workers, 4),
        "dpsgd": lambda: wagma.dpsgd(inner, num_workers),
        "sgp": lambda: wagma.sgp(inner, num_workers, **(options or {})),
        "eager": lambda: wagma.eager_sgd(inner, num_workers, 4),
    }[name]()
    targets = np.random.default_rng(0).normal(size=(num_workers, 3)).astype(dtype)

    def step(params, state, target):
        updates, state = transformation.update(
            {"w": params["w"] - target, "n": jnp.zeros((), jnp.int32)}, state, params
        )
        return optax.apply_updates(params, updates), state

    run = CONTEXTS[context](step, num_workers)
    params = {"w": jnp.zeros((num_workers, 3), dtype), "n": jnp.arange(num_workers)}
    state = jax.vmap(transformation.init)(params)
    models = []
    for _ in range(steps):
        params, state = run(params, state, jnp.asarray(targets))
        np.testing.assert_array_equal(params["n"], np.arange(num_workers))  # integers stay local
        models.append(np.asarray(params["w"], np.float64))
    return models, np.asarray(targets, np.float64), state


CASES = [("allreduce", {}), ("eager", {}), ("local", {}), ("dpsgd", {}), ("sgp", {}), ("sgp", {"overlap": 1})]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_transformations_follow_their_papers(name, options, num_workers):
    models, targets, _ = trained(name, num_workers, 9, options=options)
    expected = reference(name, num_workers, 9, targets, **options)
    np.testing.assert_allclose(models, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", [context for context in CONTEXTS if context != "vmap"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_transformations_agree_in_every_context(name, options, context):
    models, targets, _ = trained(name, 4, 5, options=options, context=context)
    np.testing.assert_allclose(models, reference(name, 4, 5, targets, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES[3:])
def test_narrow_models_are_mixed_in_float32(name, options):
    models, targets, _ = trained(name, 4, 6, options=options, dtype=jnp.bfloat16)
    np.testing.assert_allclose(models, reference(name, 4, 6, targets, **options), atol=0.02)


def test_mass_is_preserved_with_overlap():
    """The weights and, without steps, the models: what workers hold, and what is on its way."""
    strategy = build("sgp", Settings(5, options=SgpOptions(overlap=1)))
    models = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)
    state, total = jax.vmap(strategy.init)(models), np.asarray(models, np.float64).sum(0)
    combine = jax.jit(wagma.for_workers(lambda model, state: strategy.combine(model, model, state, None)[:2]))
    for _ in range(30):
        models, state = combine(models, state)
        np.testing.assert_allclose((state.weight + state.sent[1]).sum(), 5, rtol=1e-6)
        shares = jax.vmap(strategy.share)(models, state)
        np.testing.assert_allclose(np.asarray(shares, np.float64).sum(0), total, rtol=1e-5, atol=1e-5)
    assert len({float(weight) for weight in state.weight}) == 1
    assert 0.5 < float(state.weight[0]) < 0.8  # a third is on its way
    np.testing.assert_allclose(models, np.broadcast_to(total / 5, (5, 4)), atol=0.05)


@pytest.mark.parametrize("name", ["dpsgd", "sgp"])
def test_mixing_refuses_what_cannot_be_right(name):
    transformation = getattr(wagma, name)(optax.sgd(0.1), 4)
    params = jnp.zeros((3, 2))
    state = jax.vmap(transformation.init)(params)
    run = lambda update: jax.vmap(update, axis_name="data")(params, state)
    with pytest.raises(ValueError, match="axis 'data' has 3 indices, but the algorithm is for num_workers=4"):
        run(lambda p, s: transformation.update(p, s, p))
    with pytest.raises(ValueError, match="not bound"):
        transformation.update(params[0], transformation.init(params[0]), params[0])
    with pytest.raises(ValueError, match="params"):
        run(lambda p, s: transformation.update(p, s))
    strategy = build(name, Settings(3))
    with pytest.raises(ValueError, match="before must be a tree like the model after the step"):
        jax.vmap(lambda p: strategy.combine({"a": p}, p, strategy.init(p), None), axis_name="data")(params)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        getattr(wagma, name)(optax.sgd(0.1), 0)
    with pytest.raises(ValueError, match="overlap of sgp must be 0 or 1, got 2"):
        wagma.sgp(optax.sgd(0.1), 4, overlap=2)


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
        is_sync = ROWS[name][1] is not None and (t + 1) % ROWS[name][1] == 0
        np.testing.assert_allclose(w.mean(0), targets.mean(0) * (1 - 0.8 ** (t + 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats["mean"].mean(), targets.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(stats["count"], np.arange(P) + t + 1)
        assert np.allclose(w, w[:1], rtol=1e-6) == (is_sync or name in EQUAL_PARAMETERS)
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
    waits = name not in AVOIDS_WAITING
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
    with pytest.raises(ValueError, match="one of adpsgd, allreduce, dpsgd, eager, local, sgp, wagma, got 'sgp2'"):
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


def test_groups_may_be_fixed():
    rotating, fixed = (build("wagma", Settings(4, 2, rotate=rotate)).schedule for rotate in (True, False))
    assert rotating.groups(0) == fixed.groups(0) == fixed.groups(1) != rotating.groups(1)
