"""Processes that leave none behind. What only Linux can do is left out elsewhere."""

import contextlib
import ctypes
import functools
import os
import signal
import time


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        _libc().prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind, so that :func:`kill_children` finds it.

    Also loads what :func:`die_with_parent` needs: between a fork and an exec no library may be loaded.
    """
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def die_with_parent(number: signal.Signals) -> None:
    """Has the system send this process a signal when its parent ends."""
    _prctl(1, number)  # PR_SET_PDEATHSIG


def kill_children() -> None:
    """Kills this process's children, and their children as they become ours."""
    for _ in range(100):
        children = _children()
        if not children:
            return
        for child, state in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if state != "Z":
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)


def has_argument(process: int, word: bytes) -> bool:
    """Whether a process runs that has this word among its arguments. False without ``/proc``."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return word in file.read().split(b"\0")
    except OSError:
        return False


def _children() -> list[tuple[int, str]]:
    """Process id and state of each child; empty without ``/proc``."""
    children = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:  # it may have ended meanwhile
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                    if int(parent) == os.getpid():
                        children.append((int(name), state))
    return children
