"""Which devices the workers run on."""

import contextlib

import jax
from jax.sharding import AxisType, Mesh

MAX_VIRTUAL_DEVICES = 8


def worker_mesh(num_workers: int, axis_name: str) -> Mesh | None:
    """A mesh for ``wagma_jax.for_workers``; None where workers are simulated by a vmap on one device.

    One device per worker if there are enough. CPUs are split into virtual devices for up to 8 workers (provided that
    JAX has not been used yet in this process); several accelerators, but too few, share the workers where they divide
    evenly.
    """
    if num_workers <= MAX_VIRTUAL_DEVICES:
        with contextlib.suppress(RuntimeError):  # JAX is running already, with the devices that it has
            if getattr(jax.config, "jax_num_cpu_devices", 0) < num_workers:
                jax.config.update("jax_num_cpu_devices", num_workers)
    devices = jax.devices()
    if len(devices) >= num_workers:
        count = num_workers
    elif devices[0].platform != "cpu":
        count = max(n for n in range(1, len(devices) + 1) if num_workers % n == 0)
    else:
        count = 1
    if count == 1 and num_workers > 1:
        return None
    return jax.make_mesh((count,), (axis_name,), axis_types=(AxisType.Auto,), devices=devices[:count])
