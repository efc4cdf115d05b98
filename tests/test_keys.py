"""Random keys of each worker's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import CONTEXTS, FEW, data_mesh
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import wagma_jax as wagma


def numbers(keys):
    return np.asarray(jax.random.key_data(keys))


def test_fold_in_is_that_of_jax_for_every_typed_key():
    key, rbg = jax.random.key(7), jax.random.split(jax.random.key(1, impl="rbg"), (2, 3))
    tree = {"key": key, "rbg": rbg, "raw": jax.random.PRNGKey(3), "w": jnp.ones(2), "n": 3, "none": None}
    for worker in (2, np.int32(2), jnp.uint32(2)):
        got = wagma.fold_in(tree, worker)
        np.testing.assert_array_equal(numbers(got["key"]), numbers(jax.random.fold_in(key, 2)))
        assert got["rbg"].dtype == rbg.dtype
        for index in np.ndindex(2, 3):
            np.testing.assert_array_equal(numbers(got["rbg"][index]), numbers(jax.random.fold_in(rbg[index], 2)))
        for name in ("raw", "w", "n", "none"):
            assert got[name] is tree[name]


def test_raw_keys_are_folded_where_they_are_named():
    raw = jnp.stack([jax.random.PRNGKey(3), jax.random.PRNGKey(4)])
    tree = {"key": jax.random.key(0), "raw": raw, "numpy": np.asarray(raw[0]), "ids": raw}
    got = wagma.fold_in(tree, 5, which=lambda path, leaf: path[-1].key in ("raw", "numpy"))
    for i in range(2):
        np.testing.assert_array_equal(got["raw"][i], jax.random.fold_in(raw[i], 5))
    np.testing.assert_array_equal(got["numpy"], jax.random.fold_in(raw[0], 5))
    assert got["ids"] is raw
    assert got["key"] is tree["key"]


@pytest.mark.parametrize("on_mesh", [True, False])
def test_replicate_folds_the_workers_in_if_it_is_asked_to(on_mesh):
    mesh = data_mesh(4) if on_mesh else None
    tree = {"key": jax.random.key(0), "raw": jax.random.PRNGKey(1), "w": jnp.ones(2), "n": 3}
    equal = wagma.replicate(tree, 4, mesh=mesh)
    assert len(np.unique(numbers(equal["key"]), axis=0)) == 1
    for fold_in, folded in ((True, {"key"}), (lambda path, leaf: path[-1].key in ("key", "raw"), {"key", "raw"})):
        got = wagma.replicate(tree, 4, mesh=mesh, fold_in=fold_in)
        for name in tree:
            rows = numbers(got[name]) if name == "key" else np.asarray(got[name])
            assert len(rows) == 4
            for worker, row in enumerate(rows):
                own = jax.random.fold_in(tree[name], worker) if name in folded else tree[name]
                np.testing.assert_array_equal(row, numbers(own) if name == "key" else own)
        assert not jax.typeof(got["n"]).weak_type
        if on_mesh:
            assert got["w"].sharding == NamedSharding(mesh, PartitionSpec("data"))
            assert got["key"].sharding.is_equivalent_to(got["w"].sharding, 1)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.drop, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        return self.drop(x)


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
@pytest.mark.parametrize("fold_in", [True, False])
def test_workers_that_start_from_one_model_draw_masks_of_their_own(fold_in, context):
    graph, state = nnx.split(Net(nnx.Rngs(0)))
    stacked = wagma.replicate(state, 4, fold_in=fold_in)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 2), simulate_lateness=True)

    def step(state, rounds):
        model = nnx.merge(graph, state)
        mask = model(jnp.ones(64))
        state, rounds, _ = averager.average(nnx.state(model), rounds)
        return state, rounds, mask

    run = CONTEXTS[context](step, 4)
    rounds = jax.vmap(averager.init)(stacked)
    before = numbers(stacked["drop"]["rngs"]["key"].get_value())
    masks = []
    for _ in range(3):
        stacked, rounds, mask = run(stacked, rounds)
        masks += [row.tobytes() for row in np.asarray(mask)]
    assert len(set(masks)) == (12 if fold_in else 3)
    np.testing.assert_array_equal(numbers(stacked["drop"]["rngs"]["key"].get_value()), before)


@pytest.mark.parametrize("context", FEW)
def test_inside_of_a_step_the_worker_is_its_index(context):
    """For what begins inside, such as the noise of an optimizer; and no average or mean touches a key."""
    noise = optax.add_noise(0.1, 0.5, key=3)

    def step(w):
        state = wagma.fold_in(noise.init(w), lax.axis_index("data"))
        updates, state = noise.update(jnp.zeros_like(w), state, w)
        state, _, _ = averager.average(state, averager.init(state))
        return updates, wagma.consensus(state), wagma.consensus_distance(state)

    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 4, None))
    updates, state, distance = CONTEXTS[context](step, 4)(jnp.zeros((4, 8)))
    assert len(np.unique(np.asarray(updates), axis=0)) == 4
    assert len(np.unique(numbers(state.rng_key), axis=0)) == 4
    np.testing.assert_array_equal(distance, 0)


def test_what_is_no_key_is_refused():
    tree = {"w": jnp.ones((3, 2)), "ids": jnp.arange(3, dtype=jnp.uint32), "n": 3}
    for name, came in (("w", r"float32\[3, 2\]"), ("ids", r"uint32\[3\]"), ("n", "int")):
        with pytest.raises(TypeError, match=rf"which\(\) chose \['{name}'\], which is {came} and no random key"):
            wagma.fold_in(tree, 0, which=lambda path, leaf, name=name: path[-1].key == name)
    with pytest.raises(TypeError, match=r"which\(\) chose \['w'\]"):
        wagma.replicate(tree, 2, fold_in=lambda path, leaf: path[-1].key == "w")
    for worker in (1.5, "0", jnp.arange(2), None):
        with pytest.raises(ValueError, match="worker must be an integer scalar, got"):
            wagma.fold_in(tree, worker)
