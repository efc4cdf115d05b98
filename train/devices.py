"""Which devices the workers of one program run on, and how arrays get there."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train import settings
from train.pytrees import plain, restored

MAX_VIRTUAL_DEVICES = 8


def worker_mesh(num_workers: int, axis_name: str, num_processes: int = 1) -> Mesh | None:
    """A mesh for ``wagma_jax.for_workers``; None where workers are simulated by a vmap on one device.

    One device per worker if there are enough. The CPUs of a process are split into virtual devices for up to 8 workers
    (if JAX has not been used yet in this process). If there are several accelerators, but fewer than workers, they
    share the workers evenly. All processes have equally many workers, in the order of the processes.

    Raises:
        ValueError: The workers cannot be spread evenly over the processes, or JAX finds no device.
    """
    if num_workers % num_processes:
        raise ValueError(
            f"--workers {num_workers} cannot be spread evenly over {num_processes} processes: use a multiple of that"
        )
    here = num_workers // num_processes
    if here <= MAX_VIRTUAL_DEVICES:
        with contextlib.suppress(RuntimeError):  # JAX is running already, with the devices that it has
            if getattr(jax.config, "jax_num_cpu_devices", 0) < here:
                jax.config.update("jax_num_cpu_devices", here)
    settings.check_platforms(needs_cpu=False)
    by_process = [[d for d in jax.devices() if d.process_index == p] for p in range(num_processes)]
    fewest = min(map(len, by_process))
    if fewest >= here:
        count = here
    elif jax.devices()[0].platform != "cpu":
        count = max(n for n in range(1, fewest + 1) if here % n == 0)
    else:
        count = 1
    if count * num_processes == 1 and num_workers > 1:
        return None
    return mesh_of([device for devices in by_process for device in devices[:count]], axis_name)


def mesh_of(devices: Any, axis_name: str) -> Mesh:
    """A mesh of devices in the order given; ``jax.make_mesh`` would reorder those of a TPU."""
    array = np.empty(len(devices), object)
    array[:] = devices
    return Mesh(array, (axis_name,), axis_types=(AxisType.Auto,))


def local_rows(total: int, mesh: Mesh | None, axis_name: str) -> range:
    """Which of ``total`` rows, sharded over the mesh, are this process's."""
    sharding = sharded(mesh, axis_name)
    if sharding is None:
        return range(total)
    indices = [index for index in sharding.addressable_devices_indices_map((total,)).values() if index is not None]
    slices = [index[0].indices(total) for index in indices]
    rows = range(min(start for start, _, _ in slices), max(stop for _, stop, _ in slices))
    assert len(rows) == sum(stop - start for start, stop, _ in slices), "a process's rows are contiguous"
    return rows


def place(tree: Any, mesh: Mesh | None, axis_name: str) -> Any:
    """Puts this process's rows of arrays onto the devices: global arrays, sharded over their leading axis.

    Typed random keys stay typed.
    """
    sharding = sharded(mesh, axis_name)
    if sharding is None:
        return jax.tree.map(jax.device_put, tree)
    placed = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return restored(jax.tree.map(placed, plain(tree)), tree)


def local(tree: Any) -> Any:
    """This process's rows of arrays [num_workers, ...] on the devices: NumPy arrays, and typed random keys."""

    def rows(array):
        if array.is_fully_addressable:
            return np.asarray(array)
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return restored(jax.tree.map(rows, plain(tree)), tree)


def sharded(mesh: Mesh | None, axis_name: str) -> NamedSharding | None:
    """The sharding of arrays whose leading axis is the workers'; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(axis_name))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of arrays that every device holds in full; for ``jax.jit``'s ``out_shardings``."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())
