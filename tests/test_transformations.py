"""WAGMA as a link of an optax chain: trajectories, exactness, and what may be composed with it."""

import contextlib
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from contexts import CONTEXTS, FEW, WITH_PMAP, data_mesh
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

import wagma_jax as wagma

SCHEDULE = wagma.GroupSchedule(6, 2, 3)
P = SCHEDULE.num_workers


def quadratic(params, target):
    return sum(jnp.sum(jnp.square(p - target)) for p in jax.tree.leaves(params)) / 2


def train_step(optimizer, params, state, target, **extra):
    """One step on this worker's own quadratic: the gradient is params - target."""
    grads = jax.grad(quadratic)(params, target)
    updates, state = optimizer.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def start(seed=0):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(P, 3)).astype(np.float32), "b": rng.normal(size=(P,)).astype(np.float32)}
    return params, rng.normal(size=(P, 9)).astype(np.float32), rng.random((9, P)) < 0.4


def run_chain(context, optimizer, params, targets, lateness=None):
    """[P, ...] parameters after every step; targets [P, steps]."""
    run = WITH_PMAP[context](functools.partial(train_step, optimizer), P)
    if lateness is not None:
        run = WITH_PMAP[context](
            lambda params, state, target, late: train_step(optimizer, params, state, target, late=late), P
        )
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(jax.vmap(optimizer.init))(params)
    history = []
    for t in range(targets.shape[1]):
        late = () if lateness is None else (jnp.asarray(lateness[t]),)
        params, state = run(params, state, jnp.asarray(targets[:, t]), *late)
        history.append(jax.tree.map(np.asarray, params))
    return history, state


def run_reference(local, schedule, params, targets, lateness, every=1):
    names = sorted(params)
    ref = reference.LateRuleReference(schedule.groups, schedule.sync_period, P, ["mean"] * len(names), every)
    current = [params[name].astype(np.float64) for name in names]
    ref.init(current)
    history = []
    for t in range(targets.shape[1]):
        grads = [w - targets[:, t].reshape(-1, *[1] * (w.ndim - 1)) for w in current]
        current = ref.update(local.step(current, grads), lateness[t])
        history.append(dict(zip(names, current, strict=True)))
    return history


def assert_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **({"rtol": 2e-5, "atol": 2e-5} | tolerance)), a, b)


INNER = {
    "sgd": (optax.sgd(0.3), lambda: reference.SGD(0.3)),
    "momentum": (optax.sgd(0.1, momentum=0.9), lambda: reference.Momentum(0.1, 0.9)),
    "adam": (optax.adam(0.05), lambda: reference.Adam(0.05)),
}


@pytest.mark.parametrize(
    ("inner", "context"),
    [
        *(("momentum", context) for context in WITH_PMAP),
        *((i, c) for i in ("sgd", "adam") for c in ("shard_map", "vmap")),
    ],
)
def test_trajectories_with_lateness_agree_with_the_reference(context, inner):
    params, targets, lateness = start()
    optax_inner, local = INNER[inner]
    optimizer = wagma.wagma(optax_inner, SCHEDULE, simulate_lateness=True)
    history, state = run_chain(context, optimizer, params, targets, lateness)
    assert_close(history, run_reference(local(), SCHEDULE, params, targets, lateness))
    np.testing.assert_array_equal(state[1].round, targets.shape[1])


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    inner=st.sampled_from(sorted(INNER)),
    group_size=st.integers(1, P),
    sync_period=st.none() | st.integers(1, 4),
    every=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_schedules_and_optimizers_agree_with_the_reference(inner, group_size, sync_period, every, seed):
    schedule = wagma.GroupSchedule(P, group_size, sync_period)
    params, targets, lateness = start(seed)
    optax_inner, local = INNER[inner]
    optimizer = wagma.wagma(optax_inner, schedule, simulate_lateness=True, every=every)
    history, _ = run_chain("vmap", optimizer, params, targets, lateness)
    assert_close(history, run_reference(local(), schedule, params, targets, lateness, every))


def two_workers(**options):
    """A step of both, and what it takes: W_0, the first state, and the targets."""
    optimizer = wagma.wagma(optax.sgd(0.5), wagma.GroupSchedule(2, 2, None), simulate_lateness=True, **options)
    step = lambda w, s, target, late: train_step(optimizer, w, s, target, late=late)
    w = jnp.array([4.0, 4.0])
    return jax.jit(jax.vmap(step, axis_name="data")), w, jax.vmap(optimizer.init)(w), jnp.array([0.0, 8.0])


def test_a_trajectory_worked_by_hand():
    """P = S = 2, SGD with rate 1/2 on (w - target)^2 / 2, targets 0 and 8, W_0 = 4 and 4; worker 1 late at round 0."""
    step, w, state, targets = two_workers()
    # W' = 2, 6; worker 1 contributes W_0 = 4: sum 6; on time 6 / 2 = 3, late (6 + 6) / 3 = 4
    w, state = step(w, state, targets, jnp.array([False, True]))
    np.testing.assert_allclose(w, [3, 4])
    # W' = 1.5, 6; nobody late: 3.75
    w, state = step(w, state, targets, jnp.array([False, False]))
    np.testing.assert_allclose(w, [3.75, 3.75])
    # W' = 1.875, 5.875; worker 0 late, contributes W'_1 = 1.5 (not the mean): sum 7.375
    w, state = step(w, state, targets, jnp.array([True, False]))
    np.testing.assert_allclose(w, [(7.375 + 1.875) / 3, 7.375 / 2])


def test_a_trajectory_with_added_steps_worked_by_hand():
    """The same with worker 1 late at rounds 0 and 1, which adds its step of each to the mean."""
    step, w, state, targets = two_workers(late_merge="add")
    # W' = 2, 6; worker 1 contributes W_0 = 4: sum 6; on time 3, late 3 + (6 - 4) = 5
    w, state = step(w, state, targets, jnp.array([False, True]))
    np.testing.assert_allclose(w, [3, 5])
    # W' = 1.5, 6.5; worker 1 contributes W'_0 = 6: sum 7.5; on time 3.75, late 3.75 + (6.5 - 5) = 5.25
    w, state = step(w, state, targets, jnp.array([False, True]))
    np.testing.assert_allclose(w, [3.75, 5.25])


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_apply_updates_is_exact_up_to_an_ulp(dtype):
    rng = np.random.default_rng(0)
    schedule = wagma.GroupSchedule(8, 4, 3)
    link = wagma.group_average(schedule)
    averager = wagma.GroupAverager(schedule)
    scale = 10.0 ** rng.integers(-3, 3, size=(8, 500))
    params = jnp.asarray(rng.normal(size=(8, 500)) * scale, dtype)
    local = jnp.asarray(rng.normal(size=(8, 500)) * scale, dtype)

    def both(params, updates, link_state, state):
        target = optax.apply_updates(params, updates)
        assigned, state, _ = averager.average(target, state)
        emitted, link_state = link.update(updates, link_state, params)
        return optax.apply_updates(params, emitted), link_state, assigned, state, emitted

    run = CONTEXTS["shard_map"](both, 8)
    link_state = state = jax.vmap(averager.init)(params)
    for _ in range(4):
        added, link_state, assigned, state, emitted = run(params, local, link_state, state)
        assert added.dtype == assigned.dtype == dtype
        assert emitted.dtype == jnp.float32
        if dtype == jnp.float32:
            ulp = np.spacing(np.maximum(np.abs(params), np.abs(assigned)))
            assert np.all(np.abs(np.asarray(added) - np.asarray(assigned)) <= ulp)
        else:
            np.testing.assert_array_equal(added, assigned)


def compose(name):
    """Sound compositions, each with an inner optimizer that equals plain SGD with rate 0.1."""
    sgd = optax.sgd(0.1)
    return {
        "chain": lambda: optax.chain(optax.clip(1e9), sgd, wagma.group_average(SCHEDULE)),
        "wagma": lambda: wagma.wagma(sgd, SCHEDULE),
        "inject_hyperparams": lambda: wagma.wagma(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), SCHEDULE),
        "apply_if_finite inside": lambda: wagma.wagma(optax.apply_if_finite(sgd, 3), SCHEDULE),
        "MultiSteps inside": lambda: wagma.wagma(optax.MultiSteps(sgd, 1).gradient_transformation(), SCHEDULE),
        "MultiSteps around": lambda: optax.MultiSteps(wagma.wagma(sgd, SCHEDULE), 1).gradient_transformation(),
        "masked with everything": lambda: optax.masked(wagma.wagma(sgd, SCHEDULE), {"w": True, "b": True}),
        "multi_transform with one label": lambda: optax.multi_transform(
            {"a": wagma.wagma(sgd, SCHEDULE)}, {"w": "a", "b": "a"}
        ),
    }[name]()


COMPOSITIONS = [
    "chain", "wagma", "inject_hyperparams", "apply_if_finite inside", "MultiSteps inside", "MultiSteps around",
    "masked with everything", "multi_transform with one label",
]  # fmt: skip


# "wagma" in all contexts: above
@pytest.mark.parametrize("context", ["shard_map", pytest.param("vmap", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_sound_compositions(context, name):
    params, targets, _ = start()
    targets = targets[:, :4]
    history, _ = run_chain(context, compose(name), params, targets)
    assert_close(history, run_reference(reference.SGD(0.1), SCHEDULE, params, targets, np.zeros((4, P), bool)))


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_masked_leaves_are_not_averaged(context):
    params, targets, _ = start()
    targets = targets[:, :4]
    optimizer = optax.multi_transform(
        {"group": wagma.wagma(optax.sgd(0.1), SCHEDULE), "alone": optax.sgd(0.1)}, {"w": "group", "b": "alone"}
    )
    history, _ = run_chain(context, optimizer, params, targets)
    never = wagma.GroupSchedule(P, 1, None)
    nobody = np.zeros((4, P), bool)
    together = run_reference(reference.SGD(0.1), SCHEDULE, params, targets, nobody)
    alone = run_reference(reference.SGD(0.1), never, params, targets, nobody)
    assert_close([h["w"] for h in history], [h["w"] for h in together])
    assert_close([h["b"] for h in history], [h["b"] for h in alone])


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_policies_reach_the_chain(context):
    params, targets, _ = start()
    targets = targets[:, :4]
    optimizer = wagma.wagma(optax.sgd(0.1), SCHEDULE, policy=lambda path, leaf: {"w": "sync", "b": "keep"}[path[0].key])
    history, _ = run_chain(context, optimizer, params, targets)
    syncs_only = wagma.GroupSchedule(P, 1, SCHEDULE.sync_period)
    never = wagma.GroupSchedule(P, 1, None)
    nobody = np.zeros((4, P), bool)
    expected_w = run_reference(reference.SGD(0.1), syncs_only, params, targets, nobody)
    expected_b = run_reference(reference.SGD(0.1), never, params, targets, nobody)
    assert_close([h["w"] for h in history], [h["w"] for h in expected_w])
    assert_close([h["b"] for h in history], [h["b"] for h in expected_b])


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
@pytest.mark.parametrize("place", ["inside", "around"])
def test_accumulated_gradients(place, context):
    """MultiSteps(k) inside with every=k, or around: a round for each emitted step, as if the mean had come at once."""
    k, (params, targets, _) = 3, start()
    lateness = np.zeros((9, P), bool)
    lateness[k - 1 :: k] = np.random.default_rng(0).random((3, P)) < 0.4  # only lateness of emitted steps counts
    lateness[0] = True
    if place == "inside":
        inner = optax.MultiSteps(optax.sgd(0.1), k).gradient_transformation()
        optimizer = wagma.wagma(inner, SCHEDULE, every=k, simulate_lateness=True)
    else:
        optimizer = optax.MultiSteps(wagma.wagma(optax.sgd(0.1), SCHEDULE, simulate_lateness=True), k)
    history, state = run_chain(context, optimizer, params, targets, lateness)
    mean_targets = targets.reshape(P, 3, k).mean(2)
    expected = run_reference(reference.SGD(0.1), SCHEDULE, params, mean_targets, lateness[k - 1 :: k])
    assert_close(history[k - 1 :: k], expected)
    assert_close(history[: k - 1], [params] * (k - 1), rtol=0, atol=0)  # nothing moves between emitted steps
    rounds = (state[1] if place == "inside" else state.inner_opt_state[1]).round
    np.testing.assert_array_equal(rounds, 3)


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_leaves_that_are_kept_need_no_update(context):
    """Random keys and integers pass a chain as they are: they cannot be added to."""
    link = wagma.group_average(wagma.GroupSchedule(4, 4, None))
    tree = {"key": jax.random.split(jax.random.key(0), 4), "n": jnp.arange(4), "w": jnp.arange(4.0)}

    def step(tree, state):
        updates, state = link.update({"key": None, "n": None, "w": jnp.ones(())}, state, tree)
        assert updates["key"] is None
        assert updates["n"] is None
        return tree["w"] + updates["w"], state

    got, _ = CONTEXTS[context](step, 4)(tree, jax.vmap(link.init)(tree))
    np.testing.assert_allclose(got, 2.5)


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
def test_a_nan_is_stopped_inside(context):
    """A worker whose gradient is NaN skips its local step, and still takes part in the round."""
    optimizer = wagma.wagma(optax.apply_if_finite(optax.sgd(0.1), 5), SCHEDULE)
    params, targets, _ = start()
    bad = targets[:, :2].copy()
    bad[4, 0] = np.nan
    history, _ = run_chain(context, optimizer, params, bad)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(history))


def test_a_nan_rejected_outside_reaches_the_peers():
    """Why apply_if_finite around group_average is documented as unsound (under vmap, where it does not hang)."""
    optimizer = optax.apply_if_finite(wagma.wagma(optax.sgd(0.1), SCHEDULE), 5)
    params, targets, _ = start()
    bad = targets[:, :1].copy()
    bad[4, 0] = np.nan
    history, _ = run_chain("vmap", optimizer, params, bad)
    (peer,) = set(SCHEDULE.group_of(4, 0)) - {4}
    assert np.isfinite(history[0]["b"][4])
    assert np.isnan(history[0]["b"][peer])


def test_a_link_after_it_breaks_the_mean():
    """Why group_average must be the last link: members of a group no longer agree."""
    params, targets, _ = start()
    sound = optax.chain(optax.sgd(0.1), wagma.group_average(SCHEDULE))
    unsound = optax.chain(optax.sgd(0.1), wagma.group_average(SCHEDULE), optax.scale(0.5))
    for optimizer, agree in ((sound, True), (unsound, False)):
        history, _ = run_chain("vmap", optimizer, params, targets[:, :1])
        members = history[0]["w"][list(SCHEDULE.group_of(0, 0))]
        assert np.allclose(members[0], members[1], rtol=1e-5) == agree


@pytest.mark.parametrize("context", ["shard_map", "vmap", "sharded_vmap"])
def test_scan_and_donation(context):
    params, targets, lateness = start()
    optimizer = wagma.wagma(optax.sgd(0.1, momentum=0.9), SCHEDULE, simulate_lateness=True)

    def loop(params, state, targets, lateness):
        def body(carry, inputs):
            target, late = inputs
            return train_step(optimizer, *carry, target, late=late), None

        return lax.scan(body, (params, state), (targets, lateness))[0]

    expected = run_reference(reference.Momentum(0.1, 0.9), SCHEDULE, params, targets, lateness)[-1]
    run = CONTEXTS[context](loop, P)
    run = jax.jit(run, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, params)
    got, _ = run(params, jax.vmap(optimizer.init)(params), jnp.asarray(targets), jnp.asarray(lateness.T))
    assert_close([got], [expected])


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
def test_nnx_optimizer(context):
    """nnx.Optimizer.update(model, grads, late=...) inside a per-worker step."""

    def make():
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        tx = wagma.wagma(optax.sgd(0.1), wagma.GroupSchedule(4, 2, 3), simulate_lateness=True)
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    graph, start_state = nnx.split(make())
    state = wagma.replicate(start_state, 4)

    def step(state, x, late):
        model, optimizer = nnx.merge(graph, state)

        def loss(model):
            return jnp.mean(jnp.square(model(x) - 1))

        grads = nnx.grad(loss)(model)
        optimizer.update(model, grads, late=late)
        return nnx.state((model, optimizer))

    run = CONTEXTS[context](step, 4)
    rng = np.random.default_rng(0)
    schedule = wagma.GroupSchedule(4, 2, 3)
    kernel = np.asarray(state[0]["kernel"].get_value(), np.float64)
    bias = np.asarray(state[0]["bias"].get_value(), np.float64)
    ref = reference.LateRuleReference(schedule.groups, 3, 4, ["mean", "mean"])
    ref.init([kernel, bias])
    for _ in range(5):
        x = rng.normal(size=(4, 3, 2)).astype(np.float32)
        late = rng.random(4) < 0.4
        state = run(state, jnp.asarray(x), jnp.asarray(late))
        error = 2 * (np.einsum("pni,pio->pno", x, kernel) + bias[:, None] - 1) / 3
        kernel, bias = ref.round([kernel - 0.1 * np.einsum("pni,pno->pio", x, error), bias - 0.1 * error.sum(1)], late)
        np.testing.assert_allclose(state[0]["kernel"].get_value(), kernel, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state[0]["bias"].get_value(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", FEW)
def test_allreduce_gradients_is_sgd_on_the_whole_batch(context):
    params, targets, _ = start()
    params = {name: np.broadcast_to(leaf[:1], leaf.shape) for name, leaf in params.items()}
    optimizer = optax.chain(wagma.allreduce_gradients(), optax.sgd(0.1))
    history, _ = run_chain(context, optimizer, params, targets[:, :3])
    current = {name: leaf[0].astype(np.float64) for name, leaf in params.items()}
    for t in range(3):
        current = {name: w - 0.1 * (w - targets[:, t].mean()) for name, w in current.items()}
        for name, w in current.items():
            np.testing.assert_allclose(
                history[t][name], np.broadcast_to(w, history[t][name].shape), rtol=1e-5, atol=1e-6
            )


def test_update_without_params_raises_the_message_of_optax():
    optimizer = wagma.group_average(SCHEDULE)
    with pytest.raises(ValueError, match="params") as ours:
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
    link = optax.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match="params") as theirs:
        link.update(jnp.ones(3), link.init(jnp.ones(3)), None)
    assert str(ours.value) == str(theirs.value)


def test_replicated_parameters_are_refused_even_when_updates_vary():
    optimizer = wagma.wagma(optax.sgd(0.1), wagma.GroupSchedule(4, 2))

    def step(w, x):
        grads = jax.grad(lambda w: w * x[0])(w) + x[0]  # the sum over all workers, plus something of this one
        return optimizer.update(grads, optimizer.init(w), w)[0]

    mapped = jax.shard_map(
        step, mesh=data_mesh(4), in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec("data")
    )
    with pytest.raises(ValueError, match=r"\(the whole tree\) is replicated over the worker axis"):
        mapped(jnp.float32(1), jnp.arange(4.0))


def test_allreduce_gradients_checks_its_axis():
    link = wagma.allreduce_gradients()
    with pytest.raises(ValueError, match="'data' is not bound"):
        link.update(jnp.ones(3), link.init(jnp.ones(3)))
    with pytest.raises(ValueError, match="axis_name must be"):
        wagma.allreduce_gradients(None)  # type: ignore


def test_averaging_twice_is_refused():
    inner = optax.chain(optax.sgd(0.1), wagma.group_average(SCHEDULE))
    with pytest.raises(ValueError, match="already averages models"):
        wagma.wagma(inner, SCHEDULE).init(jnp.ones(3))
    with pytest.raises(ValueError, match="already averages models"):
        wagma.wagma(optax.apply_if_finite(wagma.wagma(optax.sgd(0.1), SCHEDULE), 3), SCHEDULE).init(jnp.ones(3))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (lambda inner: wagma.wagma(inner, SCHEDULE), lambda: wagma.dpsgd(optax.sgd(0.1), P)),
        (lambda inner: wagma.sgp(inner, P), lambda: wagma.wagma(optax.sgd(0.1), SCHEDULE)),
        (lambda inner: wagma.dpsgd(inner, P), lambda: wagma.sgp(optax.sgd(0.1), P)),
    ],
)
def test_averaging_twice_is_refused_whoever_averages(outer, inner):
    with pytest.raises(ValueError, match=r"already averages models \(1 such link inside\)"):
        outer(inner()).init({"w": jnp.zeros(3)})


@pytest.mark.parametrize("algorithm", [wagma.dpsgd, wagma.sgp])
def test_lateness_is_not_swallowed_where_all_wait(algorithm):
    optimizer = algorithm(optax.sgd(0.1), P)
    with pytest.raises(ValueError, match="late= is for algorithms in which workers may be late"):
        run_chain("vmap", optimizer, *start())


@pytest.mark.parametrize("overlap", [0, 1])
def test_push_sum_in_a_scan_on_a_mesh(overlap):
    """Its state is made inside of the mapping, and carried."""
    optimizer = wagma.sgp(optax.sgd(0.1), 4, overlap=overlap)

    def several(params):
        step = lambda carry, _: (train_step(optimizer, *carry, 1.0), None)
        return lax.scan(step, (params, optimizer.init(params)), None, 5)[0][0]

    params = {"w": jnp.arange(8.0).reshape(4, 2)}
    on_mesh = jax.jit(wagma.for_workers(several, mesh=data_mesh(4)))(params)
    np.testing.assert_allclose(on_mesh["w"], jax.jit(wagma.for_workers(several))(params)["w"], rtol=1e-6)


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_strict_promotion(context):
    """Under strict promotion of dtypes and ranks the numbers are the same, in updates as narrow as the leaves."""
    optimizer = wagma.wagma(optax.sgd(0.25), SCHEDULE, simulate_lateness=True, every=2)
    grid = np.random.default_rng(3).normal(size=(P, 2, 3)).astype(np.float32)
    params = {"single": grid, "complex": grid * np.complex64(1 - 2j), "half": jnp.asarray(grid[:, 0], jnp.bfloat16)}

    def step(params, state, late):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params, late=late)
        params = optax.apply_updates(params, updates)
        mean, distance = wagma.consensus(params), wagma.consensus_distance(params)
        return params, state, (mean, distance, wagma.group_mean(params, "data", SCHEDULE.groups(0)))

    seen = []
    for promotion in (None, "strict"):
        with contextlib.ExitStack() as stack:
            if promotion:
                stack.enter_context(jax.numpy_dtype_promotion("strict"))
                stack.enter_context(jax.numpy_rank_promotion("raise"))
            run = CONTEXTS[context](step, P)
            new, state = jax.tree.map(jnp.asarray, params), jax.jit(jax.vmap(optimizer.init))(params)
            for t in range(6):
                new, state, others = run(new, state, jnp.arange(P) == t)
            seen.append((new, others))
    widths = {"single": 1e-6, "complex": 1e-6, "half": 2e-2}
    (new, others), expected = seen[1], seen[0]
    for name, width in widths.items():
        assert new[name].dtype == params[name].dtype
        np.testing.assert_allclose(
            np.asarray(new[name], np.complex64), np.asarray(expected[0][name], np.complex64), rtol=width, atol=width
        )
    np.testing.assert_allclose(others[1], expected[1][1], rtol=2e-2)


def test_late_without_simulation_is_refused():
    optimizer = wagma.wagma(optax.sgd(0.1), SCHEDULE)
    with pytest.raises(ValueError, match="simulate_lateness=True"):
        run_chain("vmap", optimizer, *start())
