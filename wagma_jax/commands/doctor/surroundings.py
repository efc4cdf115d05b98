"""Rows about what surrounds MPI on this machine: variables that are for another one, and shared memory."""

import os
from collections.abc import Mapping

from wagma_jax.commands.doctor.rows import Row
from wagma_jax.commands.launch.mpi import Mpi
from wagma_jax.commands.launch.variables import frameworks, misfits

SEGMENT_BYTES = 16 << 20  # which Open MPI takes for each rank
_FOLDER = "OMPI_MCA_btl_sm_backing_directory"


def judge_variables(mpi: Mpi, environment: Mapping[str, str], ranks_per_host: int, problem: str) -> Row:
    """The row about variables that are for another MPI.

    Args:
        mpi: What is installed.
        environment: Where the variables are.
        ranks_per_host: Ranks on the host that has most of them.
        problem: What MPI has said if it did not start.
    """
    found = misfits(mpi, environment, ranks_per_host)
    if problem:
        found |= {name: f"is {environment[name]}, and MPI does not start" for name in frameworks(environment)}
    if not found:
        return Row("variables", "pass", "none is for another MPI")
    return Row(
        "variables",
        "fail" if problem else "warn",
        "expected only variables for this MPI, but " + "; ".join(f"{name} {reason}" for name, reason in found.items()),
        f"run unset {' '.join(found)}",
    )


def judge_shared_memory(environment: Mapping[str, str], ranks_per_host: int, folder: str = "/dev/shm") -> Row:
    """The row about the space for messages between the ranks of a host.

    Args:
        environment: May name another folder for Open MPI.
        ranks_per_host: Ranks on the host that has most of them.
        folder: Where shared memory is.
    """
    name = "/dev/shm"
    folder = environment.get(_FOLDER, folder)
    try:
        status = os.statvfs(folder)
    except OSError:
        return Row(name, "pass", f"there is no {folder} here")
    free, needed = status.f_bavail * status.f_frsize, ranks_per_host * SEGMENT_BYTES
    if free >= needed:
        return Row(name, "pass", f"{_size(free)} free in {folder}")
    return Row(
        name,
        "warn",
        f"expected {_size(needed)} free in {folder} for {ranks_per_host} ranks on a host, got {_size(free)}: ranks are "
        "slow, or are killed by signal 7",
        f"remove old files there (ls -l {folder}), give the container more (docker run --shm-size=1g), or run export "
        f"{_FOLDER}=/tmp",
    )


def _size(number: int) -> str:
    return f"{number / (1 << 30):.3g} GiB" if number >= 1 << 30 else f"{number / (1 << 20):.3g} MiB"
