"""Which GPU each rank gets: that of its local rank.

JAX takes most of the memory of every GPU that a process sees, so several ranks on a host must not see the same ones.
Decided from device files and the environment alone, inside of the relay, before anything loads CUDA.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"

_MEMORY = (FRACTION, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")
_PERCENT = 75  # of a GPU's memory, which XLA allocates at its start: its own default


def count(root: str = "/") -> int:
    """The number of NVIDIA GPUs that this process may use.

    Containers and batch systems take GPUs away by device files that are missing or cannot be opened. A driver that
    nobody has used since the machine was started has not made these files yet; then the driver's own list counts.

    Args:
        root: The folder that holds ``dev`` and ``proc``.
    """
    devices = [name for name in _entries(root, "dev") if re.fullmatch(r"nvidia[0-9]+", name)]
    if devices:
        return sum(os.access(os.path.join(root, "dev", name), os.R_OK | os.W_OK) for name in devices)
    return len(_entries(root, "proc/driver/nvidia/gpus"))


def _entries(root: str, folder: str) -> list[str]:
    try:
        return os.listdir(os.path.join(root, folder))
    except OSError:
        return []


def local_rank(environment: Mapping[str, str]) -> tuple[int, int]:
    """The index of this rank on its host and the number of ranks there, as Open MPI or hydra say; or (0, 1)."""
    for rank, size in (
        ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if rank in environment and size in environment:
            return int(environment[rank]), int(environment[size])
    return 0, 1


def assigned(environment: Mapping[str, str], num_gpus: int) -> dict[str, str]:
    """The variables to add for this rank, so that it sees one GPU; the user's own values win.

    With more ranks than GPUs on a host, ranks share GPUs in turn, and each gets an equal part of the memory.

    Args:
        environment: This rank's, from the launcher.
        num_gpus: GPUs of this host, see :func:`count`.

    Returns:
        Nothing if there is nothing to share out: no GPU, a rank that has its host to itself, or
        ``CUDA_VISIBLE_DEVICES`` set by the user.
    """
    rank, size = local_rank(environment)
    if num_gpus == 0 or size == 1 or VISIBLE in environment:
        return {}
    gpu = rank % num_gpus
    # jax.distributed picks the visible GPU whose index is the local rank; here the only one has index 0.
    added = {VISIBLE: str(gpu), "JAX_LOCAL_DEVICE_IDS": "0"}
    sharing = len(range(gpu, size, num_gpus))
    if sharing > 1 and not any(name in environment for name in _MEMORY):
        added[FRACTION] = f"0.{_PERCENT * 10 // sharing:03}"
    return {name: value for name, value in added.items() if name not in environment}


def facts(environment: Mapping[str, str], root: str = "/") -> dict[str, Any]:
    """What `wagma doctor` needs to know of a rank.

    Returns:
        The host's number of GPUs (``count``), the ``local_rank``, and the values of ``CUDA_VISIBLE_DEVICES``
        (``visible``) and of the share of the memory (``fraction``), None if they are not set.
    """
    return {
        "count": count(root),
        "local_rank": local_rank(environment)[0],
        "visible": environment.get(VISIBLE),
        "fraction": environment.get(FRACTION),
    }
