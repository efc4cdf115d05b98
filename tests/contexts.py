"""The mappings under which every per-worker function must give the same numbers."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import wagma_jax as wagma


def data_mesh(num_workers: int) -> Mesh:
    """One automatic axis, its devices in order."""
    return Mesh(np.asarray(jax.devices()[:num_workers]), ("data",), axis_types=(AxisType.Auto,))


def _on_mesh(step, mesh, **options):
    """Jitted. Arguments are placed on the mesh first, or the second call would be compiled again: its are there."""
    run = jax.jit(wagma.for_workers(step, mesh=mesh, **options))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def place(x):
        if isinstance(x, jax.core.Tracer) or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return x if getattr(x, "sharding", None) == sharding else jax.device_put(np.asarray(x), sharding)

    @functools.wraps(run)
    def placed(*args):
        return run(*jax.tree.map(place, args))

    placed.lower = run.lower
    placed._cache_size = run._cache_size
    return placed


def _shard_map(step, num_workers):
    return _on_mesh(step, data_mesh(num_workers))


def _shard_map_unchecked(step, num_workers):
    return _on_mesh(step, data_mesh(num_workers), check_vma=False)


def _pmap(step, num_workers):
    return jax.pmap(step, axis_name="data", devices=jax.devices()[:num_workers])


def _vmap(step, num_workers):
    del num_workers
    return jax.jit(wagma.for_workers(step))


def _vmap_of_jit(step, num_workers):
    del num_workers
    return jax.vmap(jax.jit(step), axis_name="data")


def _sharded_vmap(step, num_workers):
    """One vmap, its worker axis spread over fewer devices than workers."""
    devices = next(n for n in (4, 3, 2, 1) if num_workers % n == 0 and n < max(num_workers, 2))
    return _on_mesh(step, data_mesh(devices))


CONTEXTS = {
    "shard_map": _shard_map,
    "shard_map_unchecked": _shard_map_unchecked,
    "vmap": _vmap,
    "vmap_of_jit": _vmap_of_jit,
    "sharded_vmap": _sharded_vmap,
}

# For tests in which other things matter more: what jit and a partition add is tested in all contexts elsewhere.
FEW = [
    pytest.param(name, marks=pytest.mark.long) if name in ("vmap_of_jit", "sharded_vmap") else name for name in CONTEXTS
]

# JAX implements pmap by shard_map, so that one test of each layer takes it as well.
WITH_PMAP = CONTEXTS | {"pmap": _pmap}
