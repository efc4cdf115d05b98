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

from wagma_jax.exchange import children, tags

SWITCH_INTERVAL = 2e-4  # seconds for which a thread may hold Python's GIL while an exchange is open
GOODBYE_SECONDS = 3.0  # after a failure: how long a process waits for the others to end, before it ends them
THREADS_SECONDS = 0.5  # how long the end of a process waits for the threads of exchanges that have failed

_open: dict[Hashable, Callable[[], None]] = {}  # what to call for those that are open at the end; keeps them alive
_switch_interval: list[float] = []
_failed = False
_exit_code = 0  # of a SystemExit that has left an exchange
_final_code = 0  # of the process, as far as is known at its end
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def opened(exchange: Hashable, abort: Callable[[], None]) -> None:
    """An exchange is open; ``abort`` is called if it still is at the end of the process."""
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
    _exit_code = 0 if code is None else code & 255 if isinstance(code, int) else 1


def thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread, not yet started, that may call JAX: the interpreter is not finalized under it."""
    made = threading.Thread(target=target, name=name, daemon=True)
    _threads.add(made)
    return made


def _leave_threads() -> None:
    """The last step: threads that are stuck inside of MPI, or compute on, end with the process."""
    end = time.perf_counter() + THREADS_SECONDS
    threads = [] if children.is_child() else list(_threads)
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
    uncaught = hasattr(sys, "last_value")  # an exception, perhaps before any exchange, for which others wait
    code = _final_code = _exit_code or int(bool(_open) or uncaught)
    for abort in list(_open.values()):
        abort()
    if not (_failed or uncaught) or MPI.Is_finalized():
        return
    world = MPI.COMM_WORLD
    end = time.perf_counter() + GOODBYE_SECONDS
    others = set(range(world.size)) - {world.rank}
    requests = [world.isend(code, rank, tags.GOODBYE) for rank in others]
    if not code:
        return
    codes = {code}
    status = MPI.Status()
    while others and time.perf_counter() < end:
        message = world.improbe(MPI.ANY_SOURCE, tags.GOODBYE, status)
        if message is None:
            time.sleep(0.01)
            continue
        codes.add(message.recv())
        others.discard(status.Get_source())
    del requests
    # mpirun takes the code of the first process to end: this one's, if those who wait in MPI_Finalize have lower ones
    if others or (code > 1 and min(codes) < max(codes) == code):
        sys.stdout.flush()
        sys.stderr.flush()
        world.Abort(max(codes))


atexit.register(_leave_threads)
atexit.register(_at_exit)  # called before the other one
