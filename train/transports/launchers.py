"""What Slurm, MPI and TPU pods tell a process about the others of its run."""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from wagma_jax import lineage


class Launched(NamedTuple):
    """What a launcher says in the environment.

    Attributes:
        processes: How many there are.
        method: Who tells processes of each other: "mpi4py" or "slurm".
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


class Step(NamedTuple):
    """A step of Slurm, as one of its processes sees it.

    Attributes:
        name: Of the step, among all that run at a time.
        rank: Of this process.
        local_rank: Of this process on its host.
        host: Where process 0 is.
    """

    name: str
    rank: int
    local_rank: int
    host: str


def slurm_step(environment: Mapping[str, str], run: str = "") -> Step:
    """The step of Slurm that this process belongs to.

    Args:
        environment: What Slurm says.
        run: What tells runs apart that one step starts side by side; the same on all processes of a run.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    nodes = environment["SLURM_STEP_NODELIST"]  # as n[001-004,7],m1
    first = re.match(r"([^,\[]*)(?:\[([^-,\]]*)[^\]]*\]([^,\[]*))?", nodes)
    assert first
    alone = environment.get("SLURM_STEP_NUM_NODES") == "1"
    digest = hashlib.sha256(run.encode(errors="replace")).hexdigest()[:16]
    return Step(
        ".".join([*(environment.get(name, "") for name in names), digest]),
        int(environment["SLURM_PROCID"]),
        int(environment.get("SLURM_LOCALID", 0)),
        "127.0.0.1" if alone else "".join(part or "" for part in first.groups()),
    )


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
    # An interactive shell is a step of one task in an allocation of many: the step counts.
    size = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    return Launched(size, "slurm", re.fullmatch(r"1(\(x\d+\))?", tasks) is not None)


def _pmi(environment: Mapping[str, str]) -> Launched | None:
    if "PMI_SIZE" not in environment:
        return None
    return Launched(int(environment["PMI_SIZE"]), "mpi4py", environment.get("MPI_LOCALNRANKS") == "1")
