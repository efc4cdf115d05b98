"""Typed random keys among arrays on their way between devices, hosts and processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import data_mesh

from train import devices
from train.pytrees import as_numpy, layout, mean_of_workers, on_host, plain, restored


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
    jax.tree.map(np.testing.assert_array_equal, plain(got), plain(expected))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_stay_typed(impl):
    rows = {"key": jax.random.split(jax.random.key(3, impl=impl), 4), "w": np.arange(8, dtype=np.float32).reshape(4, 2)}
    for mesh in (None, data_mesh(4), data_mesh(2)):
        placed = devices.place(rows, mesh, "data")
        assert_same(placed, rows)
        if mesh is not None:
            assert placed["key"].sharding.is_equivalent_to(devices.sharded(mesh, "data"), 1)
        here = devices.local(placed)
        assert_same(here, rows)
        assert isinstance(here["w"], np.ndarray)
    assert_same(on_host(rows), rows)
    numbers = as_numpy(jax.tree.map(lambda x: x[0], rows), 4)
    assert layout(numbers) == layout(plain(rows))
    mean = mean_of_workers(jax.tree.map(np.asarray, plain(rows)))
    np.testing.assert_array_equal(mean["w"], [3, 4])
    assert_same(restored(mean, rows)["key"], rows["key"][0])
    assert jnp.issubdtype(restored(plain(rows), jax.eval_shape(lambda: rows))["key"].dtype, jax.dtypes.prng_key)
