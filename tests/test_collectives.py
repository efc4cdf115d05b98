import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contexts import CONTEXTS, WITH_PMAP, data_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import wagma_jax as wagma

GROUPS = [[0, 3], [1, 2, 5], [4]]


@pytest.mark.parametrize("lowering", ["auto", "ppermute", "matrix"])
@pytest.mark.parametrize("context", WITH_PMAP)
def test_group_mean_of_unequal_groups(context, lowering):
    x = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    run = WITH_PMAP[context](lambda x, n: wagma.group_mean((x, n), "data", GROUPS, lowering=lowering), 6)
    got, n = run(jnp.asarray(x), jnp.arange(6))
    np.testing.assert_allclose(got, reference.mixing_matrix(GROUPS, 6) @ x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(n, np.arange(6))


@pytest.mark.parametrize("context", CONTEXTS)
def test_consensus_and_distance(context):
    rng = np.random.default_rng(1)
    tree = {
        "w": rng.normal(size=(6, 4, 2)).astype(np.float32),
        "c": (rng.normal(size=(6, 3)) + 1j * rng.normal(size=(6, 3))).astype(np.complex64),
        "b": rng.normal(size=(6,)).astype(jnp.bfloat16),
        "n": np.arange(6),
    }

    def both(tree):
        return wagma.consensus(tree), wagma.consensus_distance(tree)

    mean, distance = CONTEXTS[context](both, 6)(jax.tree.map(jnp.asarray, tree))
    for name in ("w", "c"):
        np.testing.assert_allclose(
            mean[name], np.broadcast_to(tree[name].mean(0), tree[name].shape), rtol=1e-5, atol=1e-6
        )
        assert mean[name].dtype == tree[name].dtype
    wide = tree["b"].astype(np.float32)
    np.testing.assert_array_equal(mean["b"], np.full(6, wide.mean(), jnp.bfloat16))
    np.testing.assert_array_equal(mean["n"], tree["n"])
    expected = reference.consensus_distance([tree["w"], tree["c"], wide])
    np.testing.assert_allclose(distance, np.full(6, expected), rtol=1e-5)
    assert distance.dtype == jnp.float32


def test_consensus_distance_by_hand():
    # two workers at -1 and 3: both 2 away from the mean 1; a second leaf adds a difference of 1 on each side
    tree = (jnp.array([-1.0, 3.0]), jnp.array([[0.0], [2.0]]), jnp.arange(2))
    distance = jax.vmap(wagma.consensus_distance, axis_name="data")(tree)
    np.testing.assert_allclose(distance, np.sqrt(2.0**2 + 1.0**2), rtol=1e-6)
    assert jax.vmap(wagma.consensus_distance, axis_name="data")(jnp.arange(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("context", CONTEXTS)
def test_one_worker_is_its_own_consensus(context):
    x = jnp.arange(3.0)[None]
    run = CONTEXTS[context](
        lambda x: (wagma.consensus(x), wagma.consensus_distance(x), wagma.group_mean(x, "data", [[0]])), 1
    )
    mean, distance, group = run(x)
    np.testing.assert_array_equal(mean, x)
    np.testing.assert_array_equal(group, x)
    np.testing.assert_array_equal(distance, [0])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1]], "partition of the axis's 4 workers.*every worker from 0 to 3"),
        ([[0, 1], [2, 3, 4]], "partition"),
        ([[0, 1], [1, 2, 3]], "partition"),
        ([[0.5, 1], [2, 3]], "static sequence of sequences"),
        (["01", "23"], "static sequence of sequences"),
        ([0, 1, 2, 3], "static sequence of sequences"),
        (None, "static sequence of sequences"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        jax.vmap(lambda x: wagma.group_mean(x, "data", groups), axis_name="data")(jnp.ones(4))


@pytest.mark.parametrize("context", ["shard_map", "shard_map_unchecked", "vmap"])
@pytest.mark.parametrize("everyone", [False, True])
def test_a_mean_is_its_own_transpose(context, everyone):
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(2, 6, 3)).astype(np.float32)
    groups = [range(6)] if everyone else GROUPS

    def gradient(x, weights):
        def scalar(x):
            mean = wagma.consensus(x) if everyone else wagma.group_mean(x, "data", groups)
            return jnp.vdot(weights, mean)

        return jax.grad(scalar)(x)

    got = CONTEXTS[context](gradient, 6)(jnp.asarray(x), jnp.asarray(weights))
    np.testing.assert_allclose(got, reference.mixing_matrix(groups, 6).T @ weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_the_consensus_may_leave_shard_map_as_one_copy(num_workers):
    """Equal on all workers, and known to be so: out_specs need no worker axis."""

    def both(x):
        return wagma.consensus(x[0]), wagma.consensus_distance(x[0])

    run = jax.shard_map(both, mesh=data_mesh(num_workers), in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
    mean, distance = jax.jit(run)(jnp.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]])[:num_workers])
    np.testing.assert_array_equal(mean, [3, 1] if num_workers == 4 else [0, 1])
    np.testing.assert_allclose(distance, np.sqrt(5) if num_workers == 4 else 0, rtol=1e-6)


def test_what_is_kept_is_in_no_mean():
    lowest = jnp.finfo(jnp.float32).min  # whose sums overflow
    policy = lambda path, leaf: {"mask": "keep", "w": "mean", "s": "sync"}[path[0].key]

    def all_of_it(tree):
        means = wagma.consensus(tree, policy=policy), wagma.group_mean(tree, "data", [[0, 1]], policy=policy)
        return *means, wagma.consensus_distance(tree, policy=policy)

    tree = {"mask": jnp.full((2, 3), lowest), "w": jnp.array([[0.0], [2.0]]), "s": jnp.array([[1.0], [1.0]])}
    consensus, of_group, distance = CONTEXTS["shard_map"](all_of_it, 2)(tree)
    for mean in (consensus, of_group):
        np.testing.assert_array_equal(mean["mask"], tree["mask"])
        np.testing.assert_array_equal(mean["w"], [[1], [1]])
    np.testing.assert_array_equal(distance, [1, 1])


def test_distances_of_several_dtypes_under_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        tree = {"a": jnp.array([0.0, 2.0], jnp.float64), "b": jnp.array([0.0, 4.0], jnp.float32)}
        distance = jax.vmap(wagma.consensus_distance, axis_name="data")(tree)
        assert distance.dtype == jnp.float64
        np.testing.assert_allclose(distance, np.sqrt(5))


def test_unbound_axes_and_unknown_lowerings():
    for call in (
        lambda x: wagma.group_mean(x, "data", [[0]]),
        wagma.consensus,
        wagma.consensus_distance,
    ):
        with pytest.raises(ValueError, match=r"'data' is not bound here.*wagma_jax.for_workers"):
            call(jnp.ones(3))
    with pytest.raises(ValueError, match="lowering must be one of"):
        wagma.group_mean(jnp.ones(3), "data", [[0]], lowering="gather")


@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_reduces_and_scatters_where_that_is_wrong(allowed, monkeypatch):
    """Before JAX 0.12 a reduce-scatter across processes on CPUs is wrong: no function may compile to one, anywhere."""
    monkeypatch.setattr("wagma_jax.collectives.sums.reduce_scatter_is_wrong", lambda: not allowed)
    schedule = wagma.GroupSchedule(8, 4, 3)
    averager = wagma.GroupAverager(schedule, simulate_lateness=True)
    functions = {
        "rounds": lambda x: averager.average(x, averager.init(x), x["w"][0, 0] > 0)[0],
        "group_mean": lambda x: wagma.group_mean(x, "data", schedule.groups(0)),
        "gradient": jax.grad(lambda x: jnp.square(wagma.group_mean(x["w"], "data", schedule.groups(0))).sum()),
        "allreduce": lambda x: wagma.allreduce_gradients().update(x, None)[0],
        "consensus": wagma.consensus,
        "distance": wagma.consensus_distance,
    }
    x = {"b": jnp.ones((8, 3)), "w": jnp.ones((8, 600, 600))}  # packed with others, and alone
    model_parallel = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    found = set()
    for context in ("shard_map",) if allowed else ("shard_map", "shard_map_unchecked", "sharded_vmap", "pmap"):
        for name, function in functions.items():
            if "reduce-scatter" in WITH_PMAP[context](function, 8).lower(x).compile().as_text():
                found.add((context, name))
    half = jax.tree.map(lambda leaf: jax.device_put(leaf[:4], NamedSharding(model_parallel, PartitionSpec("data"))), x)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 3))
    run = jax.jit(wagma.for_workers(lambda x: averager.average(x, averager.init(x))[0], mesh=model_parallel))
    assert "reduce-scatter" not in run.lower(half).compile().as_text()
    assert found == ({("shard_map", name) for name in ("rounds", "group_mean", "gradient")} if allowed else set())
