"""How many threads XLA has on the CPU, and how many a rank needs."""

import os
import re
from typing import Any

import jax

from wagma_jax import cpus
from wagma_jax.jax_internals import backends_are_initialized

_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")  # set by those who start ranks


def xla_threads() -> int:
    """The threads of XLA for computations on the CPU: as NPROC says, else one for each core that this process may use.

    There are at least as many as CPU devices.
    """
    return max(cpus.threads(), _cpu_devices())


def reserve_one() -> None:
    """Sets NPROC so that a rank with several CPU devices has a thread more than devices, if it is not too late.

    A step on several devices that calls an exchange has a thread of each device wait for the result, and the exchange
    needs one to compute it.
    """
    if backends_are_initialized() or not any(name in os.environ for name in _RANK):
        return
    devices = _cpu_devices()
    if devices > 1:
        os.environ["NPROC"] = str(max(xla_threads(), devices + 1))


def _cpu_devices() -> int:
    if backends_are_initialized():
        return jax.local_device_count("cpu")
    config: Any = jax.config  # its attributes are made at run time
    asked = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(config.jax_num_cpu_devices, *map(int, asked[-1:]), 1)
