"""Ranks and their children. A process that a rank has started is no rank, although it inherits the rank's variables."""

import os
from collections.abc import Mapping, MutableMapping

MARK = "WAGMA_RANK"
"""The variable by which a rank tells what it starts: its process id, and which rank it is."""
MPI4PY = "MPI4PY_RC_INITIALIZE"
"""mpi4py's variable; ``false``: importing MPI does not join the others."""

# What launchers set for a rank. A rank of another run, started from inside of this one, has other values.
_IDENTITY = (
    "PMIX_NAMESPACE",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_JOBID",
    "PMI_FD",
    "PMI_RANK",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
)


def mark(environment: MutableMapping[str, str] = os.environ) -> None:
    """This process has joined others as a rank: whatever it starts from now on is none.

    Does nothing where no launcher has started this process.

    Args:
        environment: What children will inherit.
    """
    identity = _identity(environment)
    if identity:
        environment[MARK] = f"{os.getpid()} {identity}"
        environment.setdefault(MPI4PY, "false")


def parent(environment: Mapping[str, str] = os.environ) -> int | None:
    """The process id of the rank that has started this process, by any number of steps; None if none has."""
    process, _, identity = environment.get(MARK, "").partition(" ")
    if not process.isdigit() or int(process) == os.getpid() or identity != _identity(environment):
        return None
    return int(process)


def of_another_run(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process from inside of a rank, as a rank of another run."""
    process, _, identity = environment.get(MARK, "").partition(" ")
    return process.isdigit() and int(process) != os.getpid() and identity != _identity(environment)


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process, or what has started it, as a rank."""
    return bool(_identity(environment))


def ranks(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher says that there are; None if it says nothing."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def forget(environment: MutableMapping[str, str]) -> None:
    """Removes what :func:`mark` has added, for the ranks of another run that a rank's child starts."""
    if environment.pop(MARK, None) is not None and environment.get(MPI4PY) == "false":
        del environment[MPI4PY]


def _identity(environment: Mapping[str, str]) -> str:
    return ",".join(f"{name}={environment[name]}" for name in _IDENTITY if name in environment)
