"""How a rank leaves that fails: those who count on it must learn of it, also if it has no exchange yet.

MPI's end is one of all ranks: a rank that has failed would wait in MPI_Finalize for those who wait for it elsewhere.
Nothing here imports MPI.
"""

import atexit
import os
import sys
import time
from typing import Any, NoReturn

from wagma_jax import lineage

GOODBYE_SECONDS = 3.0  # after a failure: how long a process waits for the others to end, before it ends them
TAG = 32_502  # on the user's communicator: unlikely to be used by others, and every MPI allows tags up to 32767

_rank: list[int] = []  # the id of this process, if it is a rank
_code: list[Any] = []  # of the SystemExit that ends this process


class _Exit(SystemExit):
    """A SystemExit that knows whether it ends the process: nothing else tells those who are called at the end."""

    @property
    def code(self) -> Any:
        """As that of any SystemExit."""
        value = self.args[0] if len(self.args) == 1 else self.args or None
        try:
            sys._getframe(1)
        except ValueError:  # no code of Python's asks: the interpreter does, and ends
            _code[:] = [value]
        return value

    @code.setter
    def code(self, value: Any) -> None:
        self.args = (value,)


_Exit.__name__ = _Exit.__qualname__ = "SystemExit"  # for those who print it


def watch() -> None:
    """Called when the package is imported; does nothing where no launcher has started this process as a rank."""
    if _rank or not lineage.is_launched() or lineage.parent() is not None:
        return
    _rank[:] = [os.getpid()]
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized():  # before an exchange sees to it: its children are no ranks
        lineage.mark()

    def leave(status: Any = None, /) -> NoReturn:
        raise _Exit(status)

    leave.__doc__ = sys.exit.__doc__
    sys.exit = leave
    atexit.register(_at_exit)


def status(code: Any) -> int:
    """The exit status of a process that ends with a SystemExit of this code."""
    return 0 if code is None else code & 255 if isinstance(code, int) else 1


def exit_status() -> int:
    """That of this process at its end, as far as it is known: of an exception that nobody has caught, or sys.exit."""
    return int(hasattr(sys, "last_value")) or (status(_code[0]) if _code else 0)


def goodbye(code: int, seconds: float, *, had_exchange: bool) -> None:
    """Tells the other ranks that this one ends; ends them, if it has failed and they do not end within ``seconds``.

    Args:
        code: The exit status; 0 waits for nobody.
        seconds: How long a rank that fails waits.
        had_exchange: Whether the others have learnt from an exchange why this rank ends.
    """
    mpi: Any = sys.modules["mpi4py.MPI"]
    world = mpi.COMM_WORLD
    end = time.perf_counter() + seconds
    others = set(range(world.size)) - {world.rank}
    requests = [world.isend(code, rank, TAG) for rank in others]
    if not code:
        return
    codes = {code}
    received = mpi.Status()
    while others and time.perf_counter() < end:
        message = world.improbe(mpi.ANY_SOURCE, TAG, received)
        if message is None:
            time.sleep(0.01)
            continue
        codes.add(message.recv())
        others.discard(received.Get_source())
    del requests
    # mpirun takes the code of the first process to end: this one's, if those who wait in MPI_Finalize have lower ones
    if others or (code > 1 and min(codes) < max(codes) == code):
        if others and not had_exchange:
            text = f"wagma_jax: rank {world.rank} has ended with exit code {code} before it had an exchange: all end"
            print(text, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        world.Abort(max(codes))


def _at_exit() -> None:
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if _rank != [os.getpid()] or mpi is None or "wagma_jax.exchange.ending" in sys.modules:  # which does the same
        return
    code = exit_status()
    if code and mpi.Is_initialized() and not mpi.Is_finalized():
        goodbye(code, GOODBYE_SECONDS, had_exchange=False)
