"""The mappings under which every per-worker function must give the same numbers."""

import jax
from jax.sharding import AxisType, Mesh

import wagma_jax as wagma


def data_mesh(num_workers: int) -> Mesh:
    return jax.make_mesh((num_workers,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_workers])


def _shard_map(step, num_workers):
    return jax.jit(wagma.for_workers(step, mesh=data_mesh(num_workers)))


def _shard_map_unchecked(step, num_workers):
    return jax.jit(wagma.for_workers(step, mesh=data_mesh(num_workers), check_vma=False))


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
    return jax.jit(wagma.for_workers(step, mesh=data_mesh(devices)))


CONTEXTS = {
    "shard_map": _shard_map,
    "shard_map_unchecked": _shard_map_unchecked,
    "pmap": _pmap,
    "vmap": _vmap,
    "vmap_of_jit": _vmap_of_jit,
    "sharded_vmap": _sharded_vmap,
}
