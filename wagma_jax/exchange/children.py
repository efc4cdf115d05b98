"""Children of a rank: they never speak MPI, however they were started.

A forked child has the rank's memory, so that MPI seems to work in it. At its end MPI_Finalize would wait for ever, and
JAX's devices would wait for threads that it does not have. One that was started anew has the rank's variables, and
joining MPI would take the rank's place.
"""

import atexit
import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from typing import Any

import mpi4py

from wagma_jax import lineage

_FINALIZE_COMPLETED = 5  # of Open MPI's ompi_mpi_state_t


_rank: list[int] = []  # the process id of the rank that has started this process, if one has
_late: list[bool] = []  # whether MPI was imported, by a rank of another run, under the variable for children
_state: list[ctypes.c_int32] = []  # Open MPI's own variable of whether it is finalized
_owners: list[Any] = []  # of threads: JAX's clients and compiler


def prepare() -> None:
    """To be called before ``mpi4py.MPI`` is imported: a child does not join MPI by it."""
    rank = lineage.parent()
    if rank is not None:
        _rank[:] = [rank]
        mpi4py.rc.initialize = False
    elif lineage.of_another_run():
        _late[:] = [os.environ.get(lineage.MPI4PY) == "false" and "mpi4py.MPI" in sys.modules]
        lineage.forget(os.environ)


def joined() -> None:
    """To be called once ``mpi4py.MPI`` is imported: makes sure that a rank has joined, and that its children do not."""
    from mpi4py import MPI

    if _rank:
        return
    if any(_late) and not MPI.Is_initialized():
        MPI.Init_thread()
        atexit.register(
            lambda: MPI.Is_finalized() or MPI.Finalize()
        )  # mpi4py does not finalize what it has not initialized
    if MPI.Is_initialized():
        lineage.mark()
        with contextlib.suppress(OSError, ValueError):  # another MPI than Open MPI: ending sees to forked children
            _state[:] = [ctypes.c_int32.in_dll(ctypes.CDLL(MPI.__file__), "ompi_mpi_state")]


def keep(clients: Iterable[Any]) -> None:
    """Forked children do not destroy these clients of JAX at their end, nor its compiler's threads."""
    compiler = sys.modules.get("jax._src.interpreters.mlir")
    threads = getattr(compiler, "global_thread_pool", None)  # at worst, a child ends by a crash of its own
    _owners[:] = {id(owner): owner for owner in (*_owners, *clients, threads) if owner is not None}.values()


def is_child() -> bool:
    """Whether a rank has started this process."""
    return bool(_rank)


def refuse(what: str) -> None:
    """Raises RuntimeError in a child of a rank, where ``what`` was called."""
    if _rank:
        raise RuntimeError(
            f"{what} was called in process {os.getpid()}, which a rank (process {_rank[0]}) has started, and which is "
            "no rank: exchange in the rank itself, and put what only ranks do under if __name__ == '__main__':"
        )


def _in_forked_child() -> None:
    if lineage.MARK in os.environ or _state:
        _rank[:] = [os.getppid()]
    for state in _state:  # Open MPI's calls go by it, and mpi4py's MPI_Finalize at the end of the process
        state.value = _FINALIZE_COMPLETED
    for owner in _owners:  # which wait for their threads when they are destroyed
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
