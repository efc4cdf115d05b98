"""Runs one rank's command: connects its output to the launcher, passes signals on, and assigns a GPU.

mpirun starts this file on every rank, as ``python -I -S relay.py MARKER PIPES STDIN ROOT COMMAND [ARGUMENT ...]``:
without the user's Python settings, which are meant for the command, and without what makes Python's start slow. So it
must do with a small part of the standard library.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

if __name__ == "__main__":  # -I and -S keep Python from finding this package
    sys.path.append(os.path.abspath(f"{__file__}/../../../.."))

from wagma_jax.commands.launch import gpus, pipes, processes, stdin
from wagma_jax.commands.launch.signals import HINTS, MEANINGS, PASSED_ON

_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def relay(marker: str, description: str, offer: str, root: str, command: Sequence[str]) -> int:
    """Runs the command as this rank.

    Args:
        marker: The line to write to stdout once no signal can get lost; ``-`` for none.
        description: That of the launcher's :class:`pipes.Pipes`; ``-`` if there are none.
        offer: The name of the launcher's :class:`stdin.Offer`; ``-`` if there is none.
        root: Where GPUs are looked for, see :func:`gpus.count`.
        command: The program and its arguments.

    Returns:
        Its exit code; 128 + signal if one killed it, since launchers differ in what they make of signals.
    """
    processes.die_with_parent(signal.SIGKILL)
    rank = next((int(os.environ[name]) for name in _RANK if name in os.environ), None)
    if description != "-" and rank is not None:
        pipes.connect(description, rank)
    taken = rank == 0 and offer != "-" and stdin.take(offer)
    os.environ.update(gpus.assigned(os.environ, gpus.count(root)))
    handled = {*MEANINGS, *MEANINGS.values(), *PASSED_ON, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    if marker != "-":  # before the command writes: from here on, signals wait until it can be reached
        os.write(1, f"{marker} {os.getpid()} {int(taken)}\n".encode())
    child = os.fork()
    if child == 0:
        _become(command, mask)
    with contextlib.suppress(OSError):  # the child has done so itself
        os.setpgid(child, child)
    if taken:  # only the command is to hold it open
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    asked_to_end = False
    while True:
        number = signal.sigwait(handled)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
        else:
            number = MEANINGS.get(signal.Signals(number), number)
            asked_to_end = asked_to_end or number not in PASSED_ON
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the command has started and left behind
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not asked_to_end:
        hint = HINTS.get(-code, "")
        os.write(2, f"wagma launch: killed by signal {-code} ({signal.strsignal(-code)}){hint}\n".encode())
    return 128 - code if code < 0 else code


def _become(command: Sequence[str], mask) -> NoReturn:
    """In the relay's child: executes the command."""
    status = 126
    try:
        processes.die_with_parent(signal.SIGKILL)
        os.setpgid(0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would inherit that
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], list(command))
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        host = os.uname().nodename
        os.write(2, f"wagma launch: cannot run {command[0]!r} on {host}: {error.strerror}\n".encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(relay(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]))
