"""Turns what ranks write, in pieces of any size, into whole lines that say whose they are."""

import os
import re
import select
import time
from collections.abc import Callable

_BAR_SECONDS = 1.0  # between two lines that show the same progress bar


class Lines:
    r"""Cuts what one rank writes to one stream into whole lines, each behind a prefix.

    Of text that is overwritten by carriage returns (a progress bar) only the newest state is kept. While the bar goes
    on, it is shown as a line once a second.
    """

    def __init__(self, prefix: bytes, clock: Callable[[], float] = time.monotonic):
        self._prefix = prefix
        self._clock = clock
        self._pending: list[bytes] = []  # since the last newline
        self._shown = clock()

    def feed(self, data: bytes) -> bytes:
        """The lines that ``data`` completes."""
        *lines, rest = data.split(b"\n")
        result = b""
        if lines:
            lines[0] = b"".join([*self._pending, lines[0]])
            self._pending = []
            result = b"".join(self._line(line) for line in lines)
            self._shown = self._clock()
        if rest:
            self._pending.append(rest)
        if b"\r" in rest and self._clock() - self._shown >= _BAR_SECONDS:
            # The last state may be incomplete: show the one before.
            states, _, newest = b"".join(self._pending).rpartition(b"\r")
            if states.strip(b"\r"):
                result += self._line(states)
                self._shown = self._clock()
            self._pending = [b"\r", newest]
        return result

    def close(self) -> bytes:
        """What is left: a last line without a newline."""
        rest, self._pending = b"".join(self._pending), []
        return self._line(rest) if rest.strip(b"\r") else b""

    def _line(self, line: bytes) -> bytes:
        if b"\r" in line:
            states = [state for state in line.split(b"\r") if state.strip()]
            line = states[-1] if states else b""
        return self._prefix + line + b"\n"


class Tagged:
    """Takes mpirun's tags off its output.

    mpirun tags whole lines, but glues a tag to a last line without a newline. Lines without a tag are mpirun's own.
    """

    def __init__(self, pid: int):
        """``pid``: mpirun's process id, which is part of its tags."""
        self._tag = re.compile(rb"\[prterun-[^\]\s@]+-%d@\d+,(\d+)\]<(stdout|stderr)>: ?" % pid)
        self._pending: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int | None, bytes]]:
        """The lines that ``data`` completes, each with its rank (None: mpirun's own), in order."""
        *lines, rest = data.split(b"\n")
        result = []
        if lines:
            lines[0] = b"".join([*self._pending, lines[0]])
            self._pending = []
            result = [piece for line in lines for piece in self._split(line)]
        if rest:
            self._pending.append(rest)
        return result

    def close(self) -> list[tuple[int | None, bytes]]:
        """What is left: a last line without a newline."""
        rest, self._pending = b"".join(self._pending), []
        return self._split(rest) if rest else []

    def _split(self, line: bytes) -> list[tuple[int | None, bytes]]:
        own, *rest = self._tag.split(line)
        pieces: list[tuple[int | None, bytes]] = [(None, own + b"\n")] if own or not rest else []
        return pieces + [(int(rank), text + b"\n") for rank, text in zip(rest[::3], rest[2::3], strict=True)]


def write(descriptor: int, data: bytes) -> OSError | None:
    """Writes all of ``data``; what could not be written is lost, and the reason is returned.

    A terminal that has been closed, or a disk that is full, is no reason to end a run.

    Raises:
        BrokenPipeError: Nobody will ever read it.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever started us has made it non-blocking
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise
        except OSError as problem:
            return problem
    return None
