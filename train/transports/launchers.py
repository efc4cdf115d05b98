"""What Slurm, MPI and TPU pods tell a process about the others of its run."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from wagma_jax import lineage


class Launched(NamedTuple):
    """What a launcher says in the environment.

    Attributes:
        processes: How many there are.
        method: How JAX should find them (``cluster_detection_method``).
        alone_on_host: Whether this process has the accelerators of its host to itself.
    """

    processes: int
    method: str
    alone_on_host: bool


def launched(environment: Mapping[str, str]) -> Launched | None:
    """What Slurm or MPI say about the processes of the run; None if there is only one, or in a child of a rank."""
    if lineage.parent(environment) is not None:
        return None
    # Open MPI before Slurm, which may have started its daemons; PMI after Slurm, which speaks it too.
    for launcher in (_open_mpi, _slurm, _pmi):
        found = launcher(environment)
        if found is not None and found.processes > 1:
            return found
    return None


def mpi_processes(environment: Mapping[str, str]) -> int:
    """How many processes mpirun, ``wagma launch`` or another launcher that speaks PMI has started; 1 without any."""
    if lineage.parent(environment) is not None:
        return 1
    launchers = (_open_mpi(environment), _pmi(environment))
    return next((found.processes for found in launchers if found is not None), 1)


def on_tpu_pod(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a TPU pod."""
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def _open_mpi(environment: Mapping[str, str]) -> Launched | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return Launched(int(environment["OMPI_COMM_WORLD_SIZE"]), "mpi4py", alone)


def _slurm(environment: Mapping[str, str]) -> Launched | None:
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_PROCID" not in environment:
        return None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # as 1(x16)
    return Launched(int(environment.get("SLURM_NTASKS", 1)), "slurm", re.fullmatch(r"1(\(x\d+\))?", tasks) is not None)


def _pmi(environment: Mapping[str, str]) -> Launched | None:
    if "PMI_SIZE" not in environment:
        return None
    return Launched(int(environment["PMI_SIZE"]), "mpi4py", environment.get("MPI_LOCALNRANKS") == "1")
