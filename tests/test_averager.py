"""The averager against the NumPy reference, under every mapping, lowering and tree."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import CONTEXTS, FEW, WITH_PMAP, data_mesh
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import LateRuleReference, consensus_distance

import wagma_jax as wagma
from wagma_jax.collectives import LOWERINGS, packing

POLICY = {"w": "mean", "b": "mean", "stats": "sync", "frozen": "keep", "count": "keep"}


def random_tree(rng, num_workers):
    normal = rng.normal
    return {
        "w": normal(size=(num_workers, 3, 2)).astype(np.float32),
        "b": normal(size=(num_workers,)).astype(np.float32),
        "stats": normal(size=(num_workers, 4)).astype(np.float32),
        "frozen": normal(size=(num_workers, 2)).astype(np.float32),
        "count": rng.integers(0, 9, size=(num_workers, 2)).astype(np.int32),
    }


def check_against_reference(
    context, schedule, lateness, *, every=1, lowering="auto", seed=0, policies=POLICY, late_merge="average"
):
    """Random local steps, the same for both; ``lateness`` is [rounds, num_workers]."""
    num_workers = schedule.num_workers
    rng = np.random.default_rng(seed)
    averager = wagma.GroupAverager(
        schedule,
        policy=lambda path, leaf: policies[path[0].key],
        every=every,
        simulate_lateness=True,
        lowering=lowering,
        late_merge=late_merge,
    )
    traces = 0

    def step(tree, state, delta, late):
        nonlocal traces
        traces += 1
        local = {name: leaf + delta[name] for name, leaf in tree.items()}
        return averager.average(local, state, late)

    run = WITH_PMAP[context](step, num_workers)
    start = random_tree(rng, num_workers)
    tree = jax.tree.map(jnp.asarray, start)
    state = jax.vmap(averager.init)(tree)
    names = sorted(start)
    expected = [start[name] for name in names]
    kinds = [policies[name] for name in names]
    ref = LateRuleReference(schedule.groups, schedule.sync_period, num_workers, kinds, every, late_merge)
    ref.init(expected)
    for late in lateness:
        delta = random_tree(rng, num_workers)
        tree, state, info = run(tree, state, jax.tree.map(jnp.asarray, delta), jnp.asarray(late))
        done = len(ref.history)
        expected = ref.update([e + delta[name] for e, name in zip(expected, names, strict=True)], np.array(late))
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_allclose(tree[name], value, rtol=2e-5, atol=2e-5, err_msg=name)
        if len(ref.history) > done:
            record = ref.history[-1]
            np.testing.assert_array_equal(info.round, record.round)
            np.testing.assert_array_equal(info.is_sync, record.is_sync)
            np.testing.assert_array_equal(info.late, record.late)
            np.testing.assert_array_equal(info.staleness, record.staleness)
        else:
            np.testing.assert_array_equal(info.round, -1)
            assert not np.any(info.late)
    assert traces <= 2  # one trace for the whole schedule (vmap of a jit traces its batching once more)


def random_lateness(rounds, num_workers, seed=0, share=0.4):
    return np.random.default_rng(seed).random((rounds, num_workers)) < share


# (arguments of GroupSchedule, contexts): what is traced differs between three of them, without groups between two
CASES = [
    ((8, 4, 4), [*WITH_PMAP]),
    ((8, 3, 3), ["shard_map_unchecked", "sharded_vmap"]),
    ((7, 3, 3), ["shard_map", "vmap", "vmap_of_jit"]),
    ((8, 2, None), ["shard_map", "shard_map_unchecked", "vmap"]),
    ((1, 1, 2), ["shard_map", "vmap"]),
    ((4, 4, 3), ["shard_map", "vmap"]),
    ((6, 1, 2), ["shard_map", "vmap"]),
    ((6, 2, 1), ["shard_map", "vmap"]),
]


@pytest.mark.parametrize(
    ("schedule", "context"),
    [(wagma.GroupSchedule(*arguments), context) for arguments, contexts in CASES for context in contexts],
    ids=str,
)
def test_rounds_agree_with_the_reference(schedule, context):
    check_against_reference(context, schedule, random_lateness(7, schedule.num_workers))


@pytest.mark.parametrize(
    ("num_workers", "group_size"), [(32, 8), pytest.param(19, 10, marks=pytest.mark.long), (64, 64)]
)
def test_large_groups_in_one_vmap(num_workers, group_size):
    schedule = wagma.GroupSchedule(num_workers, group_size, 4)
    check_against_reference("vmap", schedule, random_lateness(5, num_workers))


def test_buffers_of_small_leaves_are_limited(monkeypatch):
    monkeypatch.setattr(packing, "_FUSED", 4)  # in place of 2^29: no two leaves share a buffer
    check_against_reference("shard_map", wagma.GroupSchedule(4, 2, 3), random_lateness(4, 4))


@pytest.mark.parametrize(
    "leaf", [jax.nn.relu, "relu", jax.ShapeDtypeStruct((2,), jnp.float32)], ids=["function", "string", "shape"]
)
def test_leaves_that_are_no_arrays_are_named(leaf):
    tree = {"w": jnp.ones(2), "x": leaf}
    late = wagma.GroupAverager(wagma.GroupSchedule(2, 2), simulate_lateness=True)
    punctual = wagma.GroupAverager(wagma.GroupSchedule(2, 2))
    per_worker = {
        "average": lambda w: punctual.average({**tree, "w": w}, punctual.init({"w": w}))[0]["w"],
        "consensus": lambda w: wagma.consensus({**tree, "w": w})["w"],
        "consensus_distance": lambda w: wagma.consensus_distance({**tree, "w": w}),
        "group_mean": lambda w: wagma.group_mean({**tree, "w": w}, "data", [[0, 1]])["w"],
    }
    calls = [lambda step=step: wagma.for_workers(step)(jnp.ones((2, 2))) for step in per_worker.values()]
    calls += [lambda: late.init(tree), lambda: wagma.replicate(tree, 2)]
    for call in calls:
        with pytest.raises(TypeError, match=r"^\['x'\] must be an array or a number that JAX knows, got "):
            call()
    with pytest.raises(TypeError, match=r"^argument 0\['x'\] must be an array"):
        wagma.for_workers(lambda tree: tree)(tree)


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
def test_frozen_leaves_keep_their_bits_in_groups_of_two_and_four(context, optimized):
    frozen = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    for num_workers, group_size, sync_period in ((8, 2, None), (8, 4, None), (4, 2, 1)):
        averager = wagma.GroupAverager(wagma.GroupSchedule(num_workers, group_size, sync_period))
        tree = {"frozen": jnp.tile(frozen, (num_workers, 1)), "trained": jnp.arange(num_workers, dtype=jnp.float32)}
        new, _, _ = CONTEXTS[context](averager.average, num_workers)(tree, jax.vmap(averager.init)(tree))
        np.testing.assert_array_equal(new["frozen"], tree["frozen"])
        assert (new["trained"] != tree["trained"]).any()


def test_a_nan_stays_inside_of_its_group():
    for schedule in (wagma.GroupSchedule(32, 8, None), wagma.GroupSchedule(19, 10, None), wagma.GroupSchedule(8, 2)):
        averager = wagma.GroupAverager(schedule)
        x = jnp.ones((schedule.num_workers, 3)).at[5].set(jnp.nan)
        got, _, _ = CONTEXTS["vmap"](averager.average, schedule.num_workers)(x, jax.vmap(averager.init)(x))
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(got).any(1)), schedule.group_of(5, 0))


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
def test_every_second_call_is_a_round_of_groups_that_stay(context):
    check_against_reference(context, wagma.GroupSchedule(6, 2, 3, rotate=False), random_lateness(13, 6), every=2)


@pytest.mark.parametrize(
    ("context", "lowering"),
    [
        *((c, name) for c in ("shard_map", "shard_map_unchecked", "vmap") for name in LOWERINGS[1:]),  # "auto" is above
        ("sharded_vmap", "ppermute"),  # "auto" is the matrix there
    ],
)
@pytest.mark.parametrize("schedule", [wagma.GroupSchedule(8, 4, 3), wagma.GroupSchedule(8, 3, 3)], ids=str)
def test_every_lowering_gives_the_same_numbers(context, lowering, schedule):
    refused = (lowering == "psum" and context != "shard_map_unchecked") or (
        lowering == "reduce_scatter" and (context == "vmap" or schedule.group_size == 3)
    )
    lateness = random_lateness(4, schedule.num_workers)
    if refused:
        with pytest.raises(ValueError, match=f"lowering='{lowering}' .*: pass 'auto'"):
            check_against_reference(context, schedule, lateness, lowering=lowering)
    else:
        check_against_reference(context, schedule, lateness, lowering=lowering)


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.data())
def test_the_late_rule_for_random_patterns(data):
    num_workers = data.draw(st.integers(1, 9), "num_workers")
    group_size = data.draw(st.integers(1, num_workers), "group_size")
    sync_period = data.draw(st.none() | st.integers(1, 5), "sync_period")
    rotate = data.draw(st.booleans(), "rotate")
    every = data.draw(st.integers(1, 3), "every")
    rounds = data.draw(st.integers(1, 9), "calls")
    lateness = data.draw(
        st.lists(st.lists(st.booleans(), min_size=num_workers, max_size=num_workers), min_size=rounds, max_size=rounds),
        "late",
    )
    floats = ["w", "b", "stats", "frozen"]
    policy = st.sampled_from(["mean", "sync", "keep"])
    policies = data.draw(st.fixed_dictionaries(dict.fromkeys(floats, policy)), "policies") | {"count": "keep"}
    schedule = wagma.GroupSchedule(num_workers, group_size, sync_period, rotate)
    seed = data.draw(st.integers(0, 2**16), "seed")
    late_merge = data.draw(st.sampled_from(["average", "add"]), "late_merge")
    options = {"every": every, "seed": seed, "policies": policies, "late_merge": late_merge}
    check_against_reference("vmap", schedule, lateness, **options)


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked"])
def test_a_late_worker_adds_its_step(context):
    schedule = wagma.GroupSchedule(5, 2, 4)
    check_against_reference(context, schedule, random_lateness(6, 5), late_merge="add")


@pytest.mark.parametrize("context", FEW)
def test_scan_over_steps(context):
    schedule = wagma.GroupSchedule(6, 3, 4)
    averager = wagma.GroupAverager(schedule, simulate_lateness=True)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    deltas = rng.normal(size=(6, 9, 5)).astype(np.float32)
    lateness = random_lateness(9, 6)

    def loop(x, state, deltas, lateness):
        def body(carry, inputs):
            delta, late = inputs
            x, state, info = averager.average(carry[0] + delta, carry[1], late)
            return (x, state), info.round

        return lax.scan(body, (x, state), (deltas, lateness))

    (got, state), rounds = CONTEXTS[context](loop, 6)(
        jnp.asarray(x), jax.vmap(averager.init)(jnp.asarray(x)), jnp.asarray(deltas), jnp.asarray(lateness.T)
    )
    ref = LateRuleReference(schedule.groups, 4, 6, ["mean"])
    ref.init([x])
    expected = x
    for t in range(9):
        (expected,) = ref.round([expected + deltas[:, t]], lateness[t])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rounds, np.broadcast_to(np.arange(9), (6, 9)))
    np.testing.assert_array_equal(state.round, 9)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("context", FEW)
def test_on_time_members_get_the_same_bits(context):
    schedule = wagma.GroupSchedule(8, 4, 3)
    averager = wagma.GroupAverager(schedule)
    run = CONTEXTS[context](lambda tree, state: averager.average(tree, state), 8)
    rng = np.random.default_rng(0)
    for t in range(4):
        tree = {
            "a": jnp.asarray(rng.normal(size=(8, 1001)) * 10.0 ** rng.integers(-6, 6, size=(8, 1001)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=(8, 37)), jnp.bfloat16),
        }
        state = jax.vmap(averager.init)(tree)._replace(round=jnp.full(8, t, jnp.int32))
        new, _, _ = run(tree, state)
        groups = [range(8)] if schedule.is_sync(t) else schedule.groups(t)
        for leaf in jax.tree.leaves(new):
            bits = np.asarray(leaf).view(np.uint16 if leaf.dtype == jnp.bfloat16 else np.uint32)
            for group in groups:
                for member in group:
                    np.testing.assert_array_equal(bits[member], bits[group[0]])


@pytest.mark.parametrize("context", FEW)
def test_any_pytree(context):
    schedule = wagma.GroupSchedule(4, 2, None)
    averager = wagma.GroupAverager(schedule)
    tree = {
        "half": jnp.arange(4, dtype=jnp.float16)[:, None] * jnp.ones((4, 3), jnp.float16),
        "brain": jnp.arange(4, dtype=jnp.bfloat16),
        "complex": jnp.arange(4) * (1 + 2j),
        "big": jnp.arange(4.0)[:, None] * jnp.ones((4, 300_000)),
        "empty": jnp.zeros((4, 0)),
        "int": jnp.arange(4),
        "bool": jnp.arange(4) > 1,
        "key": jax.random.split(jax.random.key(0), 4),
        "nested": (None, [], {"x": jnp.arange(4.0)[:, None, None]}),
    }
    new, _, _ = CONTEXTS[context](lambda tree, state: averager.average(tree, state), 4)(
        tree, jax.vmap(averager.init)(tree)
    )
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    means = np.array([0.5, 0.5, 2.5, 2.5])
    for name, got in new.items():
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, tree[name])
        assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, tree[name])
    for name in ("int", "bool"):
        np.testing.assert_array_equal(new[name], tree[name])
    np.testing.assert_array_equal(jax.random.key_data(new["key"]), jax.random.key_data(tree["key"]))
    np.testing.assert_array_equal(new["half"].astype(np.float32)[:, 0], means)
    np.testing.assert_array_equal(new["brain"].astype(np.float32), means)
    np.testing.assert_array_equal(new["complex"], means * (1 + 2j))
    np.testing.assert_array_equal(new["big"][:, -1], means)
    np.testing.assert_array_equal(new["nested"][2]["x"][:, 0, 0], means)


def test_empty_trees():
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2), simulate_lateness=True)
    for tree in ({}, (), None, {"n": jnp.arange(4)}):
        state = jax.vmap(averager.init, axis_size=4)(tree)
        new, state, info = jax.vmap(averager.average, axis_name="data")(tree, state)
        assert jax.tree.structure(new) == jax.tree.structure(tree)
        np.testing.assert_array_equal(state.round, 1)
        np.testing.assert_array_equal(info.round, 0)


@pytest.mark.parametrize("context", FEW)
def test_narrow_floats_are_summed_in_float32(context):
    averager = wagma.GroupAverager(wagma.GroupSchedule(8, 8, 2))
    run = CONTEXTS[context](averager.average, 8)
    values = {}
    for dtype in (jnp.bfloat16, jnp.float16):
        # 1 and seven numbers of less than half its last place: a sum in the narrow dtype would stay 1
        values[dtype.__name__] = np.asarray([1.0] + [float(jnp.finfo(dtype).eps) / 4] * 7, dtype)
    state = jax.vmap(averager.init)(values)
    for _ in range(2):  # an ordinary and a sync round
        got, state, _ = run(values, state)
        for name, leaf in values.items():
            expected = np.asarray((1 + 7 * float(leaf[1])) / 8, leaf.dtype)
            assert expected != np.asarray(1 / 8, leaf.dtype)
            np.testing.assert_array_equal(got[name], expected)


def test_leaves_may_be_sharded_or_replicated_over_a_model_axis():
    """As tensor parallelism has them: a kernel sharded over the model axis, a scale that is not."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 2))
    tree = {"kernel": jnp.arange(24.0).reshape(4, 6), "scale": jnp.arange(8.0).reshape(4, 2), "b": jnp.arange(4.0)}
    specs = {"kernel": PartitionSpec("data", "model"), "scale": PartitionSpec("data"), "b": PartitionSpec("data")}
    worker = PartitionSpec("data")
    alone = CONTEXTS["vmap"](averager.average, 4)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (specs, worker))
    for check_vma in (True, False):

        @jax.jit
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(specs, worker), out_specs=(specs, worker), check_vma=check_vma
        )
        def step(tree, state):
            tree, state = jax.tree.map(lambda leaf: leaf[0], (tree, state))
            tree, state, _ = averager.average(tree, state)
            return jax.tree.map(lambda leaf: leaf[None], (tree, state))

        expected, state = tree, jax.vmap(averager.init)(tree)
        got, got_state = jax.device_put((tree, state), shardings)
        for _ in range(2):
            expected, state, _ = alone(expected, state)
            got, got_state = step(got, got_state)
            jax.tree.map(np.testing.assert_allclose, got, expected)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("check_vma", [True, False])
def test_an_automatic_model_axis_is_not_gathered(check_vma):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 3))
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "model"))
    tree = {
        "w": jax.device_put(jnp.arange(4.0 * 64 * 32).reshape(4, 64, 32), sharding),
        "b": jnp.ones((4, 5)),
    }
    run = jax.jit(wagma.for_workers(averager.average, mesh=mesh, check_vma=check_vma))
    state = jax.vmap(averager.init)(tree)
    compiled = run.lower(tree, state).compile()
    for line in compiled.as_text().splitlines():
        assert " all-gather(" not in line, line
        assert "f32[1,64,32]" not in line, line  # each device has half of w: f32[1,64,16]
    got, _, _ = run(tree, state)
    assert got["w"].sharding.is_equivalent_to(sharding, 3)
    expected, _, _ = jax.vmap(averager.average, axis_name="data")(tree, state)
    jax.tree.map(np.testing.assert_allclose, got, expected)


def test_a_mesh_with_a_model_axis_averages_each_shard_with_its_counterparts():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    schedule = wagma.GroupSchedule(4, 2, 3)
    averager = wagma.GroupAverager(schedule)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    spec = PartitionSpec("data", "model")
    for check_vma in (True, False):

        @jax.jit
        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(spec, PartitionSpec("data")),
            out_specs=(spec, PartitionSpec("data")),
            check_vma=check_vma,
        )
        def step(x, state):
            state = jax.tree.map(lambda leaf: leaf[0], state)
            assert x.shape == (1, 3)
            new, state, _ = averager.average(x + 1, state)
            return new, jax.tree.map(lambda leaf: leaf[None], state)

        ref = LateRuleReference(schedule.groups, 3, 4, ["mean"])
        ref.init([x])
        state = jax.device_put(jax.vmap(averager.init)(x), NamedSharding(mesh, PartitionSpec("data")))
        got, expected = jax.device_put(x, NamedSharding(mesh, spec)), x
        for _ in range(4):
            got, state = step(got, state)
            (expected,) = ref.round([expected + 1], np.zeros(4, bool))
            np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("check_vma", "lowering"),
    [  # JAX has no grouped psum under check_vma=True
        *((True, lowering) for lowering in ("auto", "reduce_scatter", "ppermute", "matrix")),
        *((False, lowering) for lowering in ("auto", "psum", "reduce_scatter", "ppermute", "matrix")),
    ],
)
def test_a_tuple_of_mesh_axes_is_one_worker_axis(check_vma, lowering):
    mesh = jax.make_mesh((2, 4), ("host", "device"), axis_types=(AxisType.Auto,) * 2)
    axes = ("host", "device")
    schedule = wagma.GroupSchedule(8, 4, 3)
    averager = wagma.GroupAverager(schedule, axis_name=axes, lowering=lowering)
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    spec = PartitionSpec(axes)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    def step(x, state):
        x, state = jax.tree.map(lambda leaf: leaf[0], (x, state))
        new, state, _ = averager.average(x + 1, state)
        distance = wagma.consensus_distance(new, axes)
        return jax.tree.map(lambda leaf: leaf[None], (new, state, distance))

    ref = LateRuleReference(schedule.groups, 3, 8, ["mean"])
    ref.init([x])
    got, expected = jax.device_put((x, jax.vmap(averager.init)(x)), NamedSharding(mesh, spec)), x
    for _ in range(4):
        *got, distance = step(*got)
        (expected,) = ref.round([expected + 1], np.zeros(8, bool))
        np.testing.assert_allclose(got[0], expected, rtol=1e-6)
        np.testing.assert_allclose(distance, consensus_distance([expected]), atol=1e-5)


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_a_second_vmap_over_seeds(context):
    schedule = wagma.GroupSchedule(8, 2, 4)
    averager = wagma.GroupAverager(schedule, simulate_lateness=True)
    x = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)  # [num_workers, seeds, 5]
    late = random_lateness(5, 8)

    def run(x, late):
        def body(carry, late):
            x, state = carry
            x, state, _ = averager.average(x + 1, state, late)
            return (x, state), None

        return lax.scan(body, (x, averager.init(x)), late)[0][0]

    one = CONTEXTS[context](run, 8)
    outer = jax.vmap(one, in_axes=(1, None), out_axes=1)(x, late.T)
    inner = CONTEXTS[context](jax.vmap(run, in_axes=(0, None)), 8)(x, late.T)
    for seed in range(3):
        expected = one(x[:, seed], late.T)
        np.testing.assert_allclose(outer[:, seed], expected, rtol=1e-6)
        np.testing.assert_allclose(inner[:, seed], expected, rtol=1e-6)


def compiled_text(context, num_workers, group_size, **options):
    averager = wagma.GroupAverager(wagma.GroupSchedule(num_workers, group_size, 3), **options)
    tree = {"w": jnp.ones((num_workers, 7)), "n": jnp.zeros((num_workers,), jnp.int32)}
    run = CONTEXTS[context](averager.average, num_workers)
    return run.lower(tree, jax.vmap(averager.init)(tree)).compile().as_text()


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
def test_one_worker_needs_no_collective(context):
    text = compiled_text(context, 1, 1, simulate_lateness=True)
    assert not any(name in text for name in COLLECTIVES)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked"])
def test_the_round_counter_costs_no_collective(context):
    text = compiled_text(context, 8, 2)
    assert "all-reduce" in text or "reduce-scatter" in text
    for line in text.splitlines():
        if any(f" {name}(" in line for name in COLLECTIVES):
            assert " f32[" in line, line


@pytest.mark.usefixtures("optimized")
def test_under_vmap_one_branch_executes():
    # a batched round would turn the switch into selects over the results of all branches
    for every in (1, 2):
        text = compiled_text("vmap", 8, 2, every=every)
        assert text.count(" conditional(") == 1


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("arguments", [(8, 2, 3), (8, 8, 3), (8, 1, 3), (8, 2, 1), (7, 3, None), (1, 1, 2)], ids=str)
def test_a_branch_around_that_all_workers_take(arguments, every):
    """Under vmap a cond on a batched condition runs both branches and selects; the constants inside are batched too."""
    averager = wagma.GroupAverager(wagma.GroupSchedule(*arguments), every=every)
    x = jnp.arange(3.0 * arguments[0]).reshape(-1, 3)
    state = jax.vmap(averager.init)(x)

    def step(act, x, state):
        return lax.cond(act, lambda: averager.average(x, state)[:2], lambda: (x, state))

    run = jax.jit(jax.vmap(step, axis_name="data"))
    average = jax.jit(jax.vmap(averager.average, axis_name="data"))
    for act in (True, False):
        got, got_state = run(jnp.full(arguments[0], act), x, state)
        expected, expected_state = average(x, state)[:2] if act else (x, state)
        np.testing.assert_array_equal(got, expected)
        jax.tree.map(np.testing.assert_array_equal, got_state, expected_state)


def test_one_trace_and_one_compilation_serve_the_whole_schedule():
    schedule = wagma.GroupSchedule(8, 2, 4)
    averager = wagma.GroupAverager(schedule)
    traces = []

    def step(x, state):
        traces.append(1)
        return averager.average(x, state)[:2]

    run = CONTEXTS["shard_map"](step, 8)
    sharding = NamedSharding(data_mesh(8), PartitionSpec("data"))
    x = jnp.arange(8.0)
    x, state = jax.device_put((x, jax.vmap(averager.init)(x)), sharding)
    for _ in range(2 * schedule.period * 4):
        x, state = run(x, state)
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_replicated_parameters_give_a_wrong_sum_and_are_refused():
    """Under check_vma=True, JAX sums the gradients of replicated parameters before an optimizer sees them."""
    mesh = data_mesh(4)
    schedule = wagma.GroupSchedule(4, 2)
    averager = wagma.GroupAverager(schedule)
    data = jnp.arange(4.0)

    def gradient(w, x):
        return jax.grad(lambda w: w * x[0])(w)

    seen = jax.jit(
        jax.shard_map(
            lambda w, x: gradient(w, x)[None],
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec("data"),
        )
    )(jnp.float32(1), data)
    np.testing.assert_array_equal(seen, [6, 6, 6, 6])  # 0 + 1 + 2 + 3 on every worker, not its own 0, 1, 2, 3

    def step(w, x):
        return averager.average(w - gradient(w, x), averager.init(w))[0]

    with pytest.raises(ValueError, match=r"replicated over the worker axis 'data'.*wagma_jax.replicate"):
        jax.eval_shape(
            jax.shard_map(
                step, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec()
            ),
            jnp.float32(1),
            data,
        )
    # integers may be replicated, and leaves that are kept
    run = jax.shard_map(
        lambda n, x: averager.average({"n": n, "x": x}, averager.init(x))[0],
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs={"n": PartitionSpec(), "x": PartitionSpec("data")},
    )
    assert jax.jit(run)(jnp.int32(1), data)["n"] == 1


def test_init_copies_so_that_both_may_be_donated():
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2), simulate_lateness=True)
    tree = {"w": jnp.arange(8.0).reshape(4, 2)}
    for init in (jax.vmap(averager.init), jax.jit(jax.vmap(averager.init))):
        state = init(tree)
        assert state.published["w"].unsafe_buffer_pointer() != tree["w"].unsafe_buffer_pointer()
    step = jax.jit(jax.vmap(averager.average, axis_name="data"), donate_argnums=(0, 1))
    copy = jax.tree.map(jnp.copy, tree)
    new, state, _ = step(copy, state)
    new, state, _ = step(new, state)
    assert copy["w"].is_deleted()
    np.testing.assert_allclose(new["w"].mean(0), tree["w"].mean(0))


@pytest.mark.parametrize("schedule", [wagma.GroupSchedule(4, 1, 10), wagma.GroupSchedule(3, 2, 10)])
def test_whoever_is_alone_is_never_late(schedule):
    """Nobody waits for it, and nothing older of it is averaged."""
    averager = wagma.GroupAverager(schedule, simulate_lateness=True)
    workers = schedule.num_workers
    run = jax.jit(jax.vmap(averager.average, axis_name="data"))
    state = jax.vmap(averager.init)(jnp.zeros(workers))
    for t in range(4):
        new, state, info = run(jnp.full(workers, t + 1.0), state, jnp.ones(workers, bool))
        for group in schedule.groups(t):
            for worker in group:
                assert info.late[worker] == (len(group) > 1)
                assert info.staleness[worker] == (len(group) > 1)
                assert len(group) > 1 or new[worker] == t + 1


def test_late_inputs_are_checked():
    schedule = wagma.GroupSchedule(4, 2)
    x = jnp.ones((4, 3))
    plain, simulated = wagma.GroupAverager(schedule), wagma.GroupAverager(schedule, simulate_lateness=True)

    def run(averager, late, state=None):
        state = jax.vmap(averager.init)(x) if state is None else state
        return jax.vmap(averager.average, axis_name="data")(x, state, late)

    with pytest.raises(ValueError, match="simulate_lateness=True"):
        run(plain, jnp.zeros(4, bool))
    with pytest.raises(ValueError, match="boolean scalar per worker, got bool\\[2\\]"):
        run(simulated, jnp.zeros((4, 2), bool))
    with pytest.raises(ValueError, match="boolean scalar per worker, got int32"):
        run(simulated, jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match="boolean scalar per worker, got str"):
        jax.vmap(lambda x: simulated.average(x, simulated.init(x), "yes"), axis_name="data")(x)
    with pytest.raises(ValueError, match="belongs to another tree"):
        run(simulated, None, jax.vmap(plain.init)(x))
    with pytest.raises(ValueError, match="belongs to another tree"):
        run(simulated, None, jax.vmap(simulated.init)(jnp.ones((4, 5))))
    adding = wagma.GroupAverager(schedule, simulate_lateness=True, late_merge="add")
    with pytest.raises(ValueError, match=r"latest round has 0 leaves .* made without late_merge='add'"):
        run(adding, None, jax.vmap(simulated.init)(x))
    with pytest.raises(ValueError, match="GroupAverageState"):
        run(plain, None, (x,))
    with pytest.raises(ValueError, match="late_merge='add' needs simulate_lateness=True, got False"):
        wagma.GroupAverager(schedule, late_merge="add")
    with pytest.raises(ValueError, match="late_merge must be 'average' or 'add', got 'sum'"):
        wagma.wagma(optax.sgd(0.1), schedule, simulate_lateness=True, late_merge="sum")


def test_axes_are_checked():
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2))
    x = jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"has 6 indices.*num_workers=4"):
        jax.vmap(averager.average, axis_name="data")(x, jax.vmap(averager.init)(x))
    with pytest.raises(ValueError, match="'data' is not bound"):
        averager.average(x, averager.init(x))
    with pytest.raises(ValueError, match="'data' is not bound"):
        jax.vmap(averager.average, axis_name="workers")(x, jax.vmap(averager.init)(x))
    for bad in ((), None, 0, ("data", 1)):
        with pytest.raises(ValueError, match="axis_name must be a name or a tuple of names"):
            wagma.GroupAverager(wagma.GroupSchedule(4, 2), axis_name=bad)


def test_policies_are_checked():
    x = {"a": {"b": jnp.ones(3)}, "n": jnp.ones(3, jnp.int32)}
    schedule = wagma.GroupSchedule(4, 2)
    with pytest.raises(ValueError, match=r"got 'average' for \['a'\]\['b'\]"):
        wagma.GroupAverager(schedule, policy=lambda path, leaf: "average").init(x)
    with pytest.raises(TypeError, match=r"\['n'\], which is int32"):
        wagma.GroupAverager(schedule, policy=lambda path, leaf: "mean").init(x)
    with pytest.raises(TypeError, match="policy must be a function"):
        wagma.GroupAverager(schedule, policy="mean")


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_bad_every(every):
    with pytest.raises(ValueError, match="every must be an integer of at least 1"):
        wagma.GroupAverager(wagma.GroupSchedule(4, 2), every=every)


def test_bad_lowering_and_schedule():
    with pytest.raises(ValueError, match="lowering must be one of auto, psum"):
        wagma.GroupAverager(wagma.GroupSchedule(4, 2), lowering="nccl")
    with pytest.raises(TypeError, match="GroupSchedule"):
        wagma.GroupAverager((4, 2))
