"""Joins the processes of one program by ``jax.distributed``, as Slurm, MPI, a TPU pod or the options describe them."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax

from train.options import RunOptions
from train.transports import launchers
from train.transports.group import Group, JaxGroup

INITIALIZATION_TIMEOUT = 300
"""Seconds within which all processes must have joined."""
HEARTBEAT_TIMEOUT = 30
"""Seconds after which the others notice that a process has died."""


def join(options: RunOptions) -> Group:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Raises:
        ValueError: The options are incomplete or out of range, or something that is needed is not installed.
    """
    size = initialize(options.coordinator, options.processes, options.process_id)
    return JaxGroup(size) if size > 1 else Group()


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Args:
        coordinator: "host:port" of process 0; None: found from the environment.
        num_processes: How many processes; with ``coordinator``.
        process_id: Which of them this is, from 0; with ``coordinator``.
        environment: Where Slurm and MPI describe the processes.

    Returns:
        The number of processes: 1 if nothing in the arguments or the environment says otherwise.

    Raises:
        ValueError: The arguments are incomplete or out of range, or something that is needed is not installed.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator is None or num_processes is None or process_id is None:
            raise ValueError(
                "--coordinator, --processes and --process-id belong together, got "
                f"{coordinator}, {num_processes} and {process_id}: give all three, or none under Slurm or MPI"
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}")
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process-id must be in [0, {num_processes}), got {process_id}")
        _initialize(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
        return num_processes
    found = launchers.launched(environment)
    if found is not None:
        if found.method == "mpi4py" and importlib.util.find_spec("mpi4py") is None:
            raise ValueError(
                f"started by MPI as one of {found.processes} processes, but mpi4py, by which they find each other, is "
                "not installed: run make setup or pip install 'wagma_jax[mpi]', or give --coordinator, --processes "
                "and --process-id"
            )
        _initialize(cluster_detection_method=found.method)
        if found.alone_on_host:  # otherwise JAX gives each process one accelerator of its host
            for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
                jax.config.update(name, "all")
        return found.processes
    if launchers.on_tpu_pod(environment):
        _initialize()
        return jax.process_count()
    return 1


def _initialize(**arguments: Any) -> None:
    jax.distributed.initialize(
        initialization_timeout=INITIALIZATION_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **arguments
    )
