"""Pipes between the launcher and the relays on its machine: one for each rank's stdout and one for its stderr."""

import contextlib
import fcntl
import os
from collections.abc import Sequence

MOST_RANKS = 256
"""Ranks that get pipes of their own: each takes four open files here, of which many systems allow 1024."""


class Pipes:
    """The launcher's ends.

    A relay opens its ends through ``/proc/PID/fd``: mpirun closes whatever it inherits, and named pipes would stay on
    disk if the launcher were killed.

    Attributes:
        reading: [rank] -> the descriptors of stdout and stderr.
        description: What :func:`connect` needs: ``HOST PID`` and, for each rank, ``FD INODE FD INODE``. The inodes
            make sure that a process of the same number on another machine is not mistaken for the launcher.
    """

    def __init__(self, size: int):
        self.reading: list[tuple[int, int]] = []
        self._writing: list[int] = []
        words = [os.uname().nodename, str(os.getpid())]
        for _ in range(size):
            ends = []
            for _ in range(2):
                reading, writing = os.pipe()
                os.set_blocking(reading, False)
                self._writing.append(writing)
                ends.append(reading)
                words += [str(reading), str(os.fstat(reading).st_ino)]
            self.reading.append((ends[0], ends[1]))
        self.description = " ".join(words)

    def close_writing(self) -> None:
        """Lets reading end once the last rank has closed its ends."""
        while self._writing:
            os.close(self._writing.pop())

    def close(self) -> None:
        """Closes everything."""
        self.close_writing()
        for ends in self.reading:
            for end in ends:
                os.close(end)


def connect(description: str, rank: int) -> None:
    """In a relay: makes the launcher's pipes this process's stdout and stderr, if this is the launcher's machine."""
    host, pid, *numbers = description.split()
    if host != os.uname().nodename:
        return
    ends = _open(pid, numbers[4 * rank :][:4])
    for stream, end in enumerate(ends, 1):
        os.dup2(end, stream)
        os.close(end)


def _open(pid: str, numbers: Sequence[str]) -> list[int]:
    """Both ends of one rank, or none."""
    ends = []
    with contextlib.suppress(OSError):
        for number, inode in zip(numbers[::2], numbers[1::2], strict=True):
            ends.append(os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK))
            if os.fstat(ends[-1]).st_ino != int(inode):
                break
            fcntl.fcntl(ends[-1], fcntl.F_SETFL, fcntl.fcntl(ends[-1], fcntl.F_GETFL) & ~os.O_NONBLOCK)
        else:
            return ends
    for end in ends:
        os.close(end)
    return []
