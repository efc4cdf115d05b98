"""The environment variables of the ranks: which are added, and which go to other hosts."""

from collections.abc import Mapping

from wagma_jax.commands.launch.job import Job
from wagma_jax.commands.launch.mpi import Mpi
from wagma_jax.commands.launch.variables import sets_btl


def settings(job: Job, mpi: Mpi, environment: Mapping[str, str], num_cores: int, is_root: bool) -> dict[str, str]:
    """The variables to add for all ranks; the user's own values win."""
    keep_memory = str(16 * 2**30)
    added = {
        # The page faults of a fresh large buffer cost more than a copy of it, so glibc is to keep freed memory.
        "MALLOC_MMAP_THRESHOLD_": keep_memory,
        "MALLOC_TRIM_THRESHOLD_": keep_memory,
        "MALLOC_TOP_PAD_": str(64 * 2**20),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # huge pages, where Linux gives them on request (madvise)
        # XLA's thread pools. With one thread, a long computation of the trainer would hold up averaging.
        "NPROC": str(max(2, num_cores // job.ranks_per_host)),
        "PYTHONUNBUFFERED": "1",
    }
    if mpi.is_open_mpi and not sets_btl(mpi, job.mpirun_args, environment):
        # The component ofi is for one-sided messages, which nobody sends, and sleeps for a second without a fabric.
        added["OMPI_MCA_btl"] = "^ofi"
    if mpi.is_open_mpi and is_root:
        added |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {name: value for name, value in added.items() if name not in environment}


# They say how JAX and MPI are to work, and where Python and libraries are found: the same on every host.
_EXPORTED = ("JAX_", "XLA_", "TF_", "CUDA_", "NCCL_", "MALLOC_", "OMP_", "PYTHON", "WAGMA_")
_EXPORTED_NAMES = ("NPROC", "GLIBC_TUNABLES", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV")


def exported(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that go to other hosts."""
    return sorted(name for name in environment if name in _EXPORTED_NAMES or name.startswith(_EXPORTED))
