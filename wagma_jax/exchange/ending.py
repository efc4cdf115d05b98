"""What open exchanges ask of their process: that threads take turns more often, and a good end.

A process that fails must not wait in MPI_Finalize for others that compute on. One that has handled
its failure has time. The threads of a failed exchange may still be inside of JAX: Python ends a thread
that returns to it while the interpreter is finalized, and the C++ of JAX does not survive that.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from mpi4py import MPI

from wagma_jax import leaving
from wagma_jax.exchange import children
from wagma_jax.leaving import GOODBYE_SECONDS

SWITCH_INTERVAL = 2e-4  # seconds for which a thread may hold Python's GIL while an exchange is open
THREADS_SECONDS = 0.5  # how long the end of a process waits for the threads of exchanges that have failed

_open: dict[Hashable, Callable[[], None]] = {}  # what to call for those that are open at the end; keeps them alive
_switch_interval: list[float] = []
_failed = _had = False  # whether an exchange of this process has; whether there was one
_exit_code = 0  # of a SystemExit that has left an exchange
_final_code = 0  # of the process, as far as is known at its end
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def opened(exchange: Hashable, abort: Callable[[], None]) -> None:
    """An exchange is open; ``abort`` is called if it still is at the end of the process."""
    global _had
    _had = True
    if not _open:
        _switch_interval[:] = [sys.getswitchinterval()]
        sys.setswitchinterval(min(_switch_interval[0], SWITCH_INTERVAL))
    _open[exchange] = abort
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def closed(exchange: Hashable, failed: bool) -> None:
    """An exchange is no longer open."""
    global _failed
    _failed = _failed or failed
    _open.pop(exchange, None)
    if not _open:
        sys.setswitchinterval(_switch_interval[0])


def exits(code: Any) -> None:
    """A SystemExit with this code has left an exchange."""
    global _exit_code
    _exit_code = leaving.status(code)


def thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread, not yet started, that may call JAX: the interpreter is not finalized under it."""
    made = threading.Thread(target=target, name=name, daemon=True)
    _threads.add(made)
    return made


def _leave_threads() -> None:
    """The last step: threads that are stuck inside of MPI, or compute on, end with the process."""
    if children.is_child():
        # forked, and it cannot be hidden from mpi4py, which would call MPI_Finalize in this rank's place
        if MPI.Is_initialized() and not MPI.Is_finalized():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leaving.exit_status())
        return
    end = time.perf_counter() + THREADS_SECONDS
    threads = [one for one in _threads if one.ident is not None]  # those that were started
    for one in threads:
        one.join(max(0.0, end - time.perf_counter()))
    if _final_code and any(one.is_alive() for one in threads):
        if not MPI.Is_finalized():
            MPI.Finalize()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_final_code)


def _at_exit() -> None:
    global _final_code
    if children.is_child():
        return
    left = leaving.exit_status()
    code = _final_code = _exit_code or left or int(bool(_open))
    for abort in list(_open.values()):
        abort()
    # of an exception, perhaps before any exchange, for which others wait
    failed = _failed or hasattr(sys, "last_value") or (left and not _had)
    if failed and MPI.Is_initialized() and not MPI.Is_finalized():
        leaving.goodbye(code, GOODBYE_SECONDS, had_exchange=_had)


atexit.register(_leave_threads)
atexit.register(_at_exit)  # called before the other one
