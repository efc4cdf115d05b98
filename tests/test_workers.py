import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import data_mesh
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import wagma_jax as wagma


def test_replicate():
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "n": 3, "key": jax.random.key(7), "none": None}
    got = wagma.replicate(tree, 4)
    assert got["w"].shape == (4, 2, 3)
    assert got["n"].shape == (4,)
    assert got["key"].shape == (4,)
    np.testing.assert_array_equal(got["w"][3], tree["w"])
    assert not jax.typeof(got["n"]).weak_type
    assert wagma.replicate({}, 3) == {}
    weak = jnp.asarray(1.0) * 2
    assert jax.typeof(weak).weak_type
    assert not jax.typeof(wagma.replicate(weak, 2)).weak_type


def test_replicate_takes_what_is_bound_to_other_devices():
    tree = {"one": jax.device_put(jnp.arange(3.0), jax.devices()[1])}
    tree["all"] = jax.device_put(jnp.arange(3.0), NamedSharding(data_mesh(8), PartitionSpec()))
    mesh = data_mesh(4)
    for got in wagma.replicate(tree, 4, mesh=mesh).values():
        assert got.sharding == NamedSharding(mesh, PartitionSpec("data"))
        np.testing.assert_array_equal(got[3], np.arange(3.0))
    traced = jax.jit(lambda x: wagma.replicate(x, 4, mesh=mesh))(jnp.arange(3.0))
    np.testing.assert_array_equal(traced[3], np.arange(3.0))


@pytest.mark.parametrize("num_workers", [8, 16])
def test_replicate_on_a_mesh_makes_each_copy_where_it_lives(num_workers):
    mesh = data_mesh(8)
    got = wagma.replicate({"w": jnp.arange(3.0)}, num_workers, mesh=mesh)["w"]
    assert got.sharding == NamedSharding(mesh, PartitionSpec("data"))
    assert {shard.data.shape for shard in got.addressable_shards} == {(num_workers // 8, 3)}
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(3.0), (num_workers, 3)))


@pytest.mark.parametrize("bad", [0, -1, 2.0, None])
def test_replicate_checks_the_number_of_workers(bad):
    with pytest.raises(ValueError, match="num_workers"):
        wagma.replicate(jnp.ones(3), bad)


def test_replicate_checks_the_mesh():
    with pytest.raises(ValueError, match="6 workers cannot be spread evenly over the 4 devices"):
        wagma.replicate(jnp.ones(3), 6, mesh=data_mesh(4))
    with pytest.raises(ValueError, match="none of them 'workers'"):
        wagma.replicate(jnp.ones(3), 4, mesh=data_mesh(4), axis_name="workers")


def step(tree, *, scale):
    total = lax.psum(tree["x"], "data")
    return {"x": tree["x"] * scale, "index": lax.axis_index("data")}, total


@pytest.mark.parametrize("devices", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("jit", [True, False])
def test_for_workers_gives_the_same_on_any_number_of_devices(devices, jit):
    mesh = None if devices is None else data_mesh(devices)
    run = wagma.for_workers(step, mesh=mesh)
    assert run.__name__ == "step"
    run = jax.jit(run) if jit else run
    x = jnp.arange(16.0).reshape(8, 2)
    result, total = run({"x": x}, scale=jnp.arange(8.0))
    np.testing.assert_array_equal(result["x"], x * jnp.arange(8.0)[:, None])
    np.testing.assert_array_equal(result["index"], np.arange(8))
    np.testing.assert_array_equal(total, np.broadcast_to(x.sum(0), (8, 2)))


@pytest.mark.parametrize("set_mesh", [True, False])
def test_for_workers_on_a_mesh_with_explicit_axes(set_mesh):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(mesh, PartitionSpec("data")))
    run = jax.jit(wagma.for_workers(step, mesh=mesh))
    with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
        _, total = run({"x": x}, scale=jnp.ones(4))  # one argument sharded, one not
        _, again = run(wagma.replicate({"x": jnp.ones(2)}, 4, mesh=mesh), scale=jnp.ones(4))
    np.testing.assert_array_equal(total, np.broadcast_to(x.sum(0), (4, 2)))
    np.testing.assert_array_equal(again, np.full((4, 2), 4.0))
    with pytest.raises(ValueError, match=r"AxisType.Auto"):
        run({"x": jnp.ones((8, 2))}, scale=jnp.ones(8))


def test_for_workers_leaves_further_axes_to_the_compiler():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 3))
    x = jnp.arange(24.0).reshape(4, 6)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "model")))
    state = jax.vmap(averager.init)(x)
    got, _, _ = jax.jit(wagma.for_workers(averager.average, mesh=mesh))(sharded, state)
    expected, _, _ = jax.jit(jax.vmap(averager.average, axis_name="data"))(x, state)
    np.testing.assert_allclose(got, expected)


def test_for_workers_keeps_how_other_axes_are_sharded():
    spec = PartitionSpec("data", None, "model")
    for kinds, num_workers in (((AxisType.Auto,) * 2, 4), ((AxisType.Auto,) * 2, 8), ((AxisType.Explicit,) * 2, 4)):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
        x = jax.device_put(jnp.ones((num_workers, 6, 4)), NamedSharding(mesh, spec))
        got = jax.jit(wagma.for_workers(lambda x: 2 * x, mesh=mesh))(x)
        assert got.sharding.is_equivalent_to(x.sharding, 3), (kinds, num_workers, got.sharding)


@pytest.mark.parametrize("kinds", [(AxisType.Explicit,) * 2, (AxisType.Auto, AxisType.Explicit)], ids=str)
def test_rounds_on_a_mesh_with_an_explicit_model_axis(kinds):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 3))
    x = jnp.arange(24.0).reshape(4, 6)
    state = jax.vmap(averager.init)(x)
    got, _, _ = jax.jit(wagma.for_workers(averager.average, mesh=mesh))(x, state)
    expected, _, _ = jax.jit(jax.vmap(averager.average, axis_name="data"))(x, state)
    np.testing.assert_allclose(got, expected)


def test_for_workers_checks_its_arguments():
    with pytest.raises(ValueError, match="pass the mesh as mesh="):
        wagma.for_workers(step, data_mesh(4))  # type: ignore
    with pytest.raises(ValueError, match="none of them 'workers'"):
        wagma.for_workers(step, axis_name="workers", mesh=data_mesh(4))
    run = wagma.for_workers(lambda a, b: a, mesh=data_mesh(4))
    with pytest.raises(
        ValueError, match=r"same leading worker axis, got argument 0: \[4, 2\], argument 1: \[3.*in_axes"
    ):
        run(jnp.ones((4, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="same leading worker axis"):
        run(jnp.ones((4, 2)), 1.0)
    with pytest.raises(ValueError, match="6 workers cannot be spread evenly over the 4 devices"):
        run(jnp.ones((6, 2)), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="no array argument has a worker axis"):
        run({}, None)


# --- Arguments that are the same for all workers ---

# mesh axes and their types, number of workers
MAPPINGS = {
    "vmap": (None, 4),
    "shard_map": ((4, AxisType.Auto), 4),
    "explicit": ((4, AxisType.Explicit), 4),
    "sharded_vmap": ((2, AxisType.Auto), 4),
}


def mesh_of(mapping):
    if MAPPINGS[mapping][0] is None:
        return None
    size, kind = MAPPINGS[mapping][0]
    return Mesh(np.asarray(jax.devices()[:size]), ("data",), axis_types=(kind,))


def shared_step(x, tree, t, *, scale):
    """Takes a branch by ``t``; what is shared has no worker axis here either."""
    assert jnp.shape(t) == ()
    assert jnp.shape(tree["shared"]["bias"]) == (3,)
    result = lax.cond(t % 2 == 0, lambda: x * tree["own"], lambda: x + tree["shared"]["bias"].sum())
    return {"x": result * scale + tree["shared"]["keys"], "t": t}


@pytest.mark.parametrize(("mapping", "jit"), [*((mapping, True) for mapping in MAPPINGS), ("vmap", False)])
def test_what_is_shared_is_not_batched(mapping, jit):
    run = wagma.for_workers(shared_step, mesh=mesh_of(mapping), in_axes=(0, {"own": 0, "shared": None}, None))
    run = jax.jit(run) if jit else run
    x, own, scale = np.arange(8.0).reshape(4, 2), np.arange(4.0), np.array([1.0, 2.0, 3.0, 4.0])
    tree = {"own": jnp.asarray(own), "shared": {"bias": jnp.arange(3.0), "keys": 7, "none": None}}
    for t, expected in ((2, x * own[:, None]), (np.int32(3), x + 3), (jnp.int32(3), x + 3)):
        got = run(jnp.asarray(x), tree, t, scale=jnp.asarray(scale))
        np.testing.assert_array_equal(got["x"], expected * scale[:, None] + 7)
        np.testing.assert_array_equal(got["t"], [t] * 4)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_branch_on_what_is_shared_stays_a_branch(mapping):
    def branch(x, t):
        return lax.switch(t, [jnp.sin, jnp.cos, jnp.tan], x)

    run = wagma.for_workers(branch, mesh=mesh_of(mapping))
    shared = wagma.for_workers(branch, mesh=mesh_of(mapping), in_axes=(0, None))
    x = jnp.arange(8.0).reshape(4, 2)
    own = 0 if mapping in ("vmap", "sharded_vmap") else 1  # selects, or a conditional on each device
    for function, t, branches in ((run, jnp.ones(4, jnp.int32), own), (shared, jnp.int32(1), 1)):
        assert jax.jit(function).lower(x, t).compile().as_text().count(" conditional(") == branches


def test_check_vma_knows_what_is_shared():
    def step(x, w):
        return jax.grad(lambda w: w * x)(w)

    x = jnp.arange(4.0)
    own = wagma.for_workers(step, mesh=data_mesh(4))(x, jnp.ones(4))
    shared = wagma.for_workers(step, mesh=data_mesh(4), in_axes=(0, None))(x, 1.0)
    np.testing.assert_array_equal(own, [0, 1, 2, 3])
    np.testing.assert_array_equal(shared, [6, 6, 6, 6])  # JAX sums gradients with respect to what is replicated
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2))

    def average(x, w):
        return averager.average(w, averager.init(w))[0] - x

    with pytest.raises(ValueError, match=r"replicated over the worker axis 'data'.*in_axes is 0, not None"):
        wagma.for_workers(average, mesh=data_mesh(4), in_axes=(0, None))(x, jnp.ones(()))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_rounds_with_a_shared_state(mapping):
    """A user may hold the round once, for all workers."""
    averager = wagma.GroupAverager(wagma.GroupSchedule(4, 2, 3))
    x = jnp.arange(8.0).reshape(4, 2)
    states = jax.vmap(averager.init)(x)
    state = averager.init(x[0])
    shared = jax.jit(wagma.for_workers(averager.average, mesh=mesh_of(mapping), in_axes=(0, None)))
    alone = jax.jit(jax.vmap(averager.average, axis_name="data"))
    for t in range(4):
        got, after, _ = shared(x, state._replace(round=t))
        expected, _, _ = alone(x, states._replace(round=jnp.full(4, t)))
        np.testing.assert_allclose(got, expected)
        np.testing.assert_array_equal(after.round, [t + 1] * 4)


def test_what_is_shared_may_be_sharded_explicitly():
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    shared = jnp.arange(16.0).reshape(8, 2)
    run = jax.jit(wagma.for_workers(lambda x, shared: x + shared.sum(), mesh=mesh, in_axes=(0, None)))
    x = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, PartitionSpec("data")))
    for spec in (("data",), (None, "model"), (("data", "model"),), ("model",)):
        placed = jax.device_put(shared, NamedSharding(mesh, PartitionSpec(*spec)))
        np.testing.assert_array_equal(run(x, placed), np.arange(4) + 120)


@pytest.mark.parametrize("bad", [1, -1, True, 0.0, "data", (0, 1), ({"a": 2},), {"a": 0}])
def test_in_axes_are_checked(bad):
    with pytest.raises(ValueError, match=r"in_axes must be 0 .* or None .*, got .*: move the worker axis to the front"):
        wagma.for_workers(step, in_axes=bad)


def test_in_axes_must_fit_the_arguments():
    x = jnp.ones((4, 2))
    run = wagma.for_workers(lambda *args, **kwargs: 0, in_axes=(0, None))
    with pytest.raises(ValueError, match="in_axes has 2 entries, but 1 positional arguments came"):
        run(x, extra=x)
    with pytest.raises(
        ValueError, match=r"in_axes\[1\] is {'b': None}, which does not fit the structure of argument 1"
    ):
        wagma.for_workers(lambda a, b: 0, in_axes=[0, {"b": None}])(x, {"a": 1})
    with pytest.raises(ValueError, match="no array argument has a worker axis"):
        wagma.for_workers(lambda a: 0, in_axes=None)(x)
    with pytest.raises(ValueError, match=r"got argument 0\['a'\]: \[4, 2\], scale: \[3\]"):
        wagma.for_workers(lambda a, t, *, scale: 0, in_axes=(0, None))({"a": x}, 3, scale=jnp.ones(3))
