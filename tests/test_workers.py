import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import data_mesh
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    expected, _, _ = jax.vmap(averager.average, axis_name="data")(x, state)
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
    expected, _, _ = jax.vmap(averager.average, axis_name="data")(x, state)
    np.testing.assert_allclose(got, expected)


def test_for_workers_checks_its_arguments():
    with pytest.raises(ValueError, match="pass the mesh as mesh="):
        wagma.for_workers(step, data_mesh(4))  # type: ignore
    with pytest.raises(ValueError, match="none of them 'workers'"):
        wagma.for_workers(step, axis_name="workers", mesh=data_mesh(4))
    run = wagma.for_workers(lambda a, b: a, mesh=data_mesh(4))
    with pytest.raises(ValueError, match=r"same leading worker axis.*\[0\]\[0\]: \[4, 2\].*replicate"):
        run(jnp.ones((4, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="same leading worker axis"):
        run(jnp.ones((4, 2)), 1.0)
    with pytest.raises(ValueError, match="6 workers cannot be spread evenly over the 4 devices"):
        run(jnp.ones((6, 2)), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="no array arguments"):
        run({}, None)
