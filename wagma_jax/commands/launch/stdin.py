"""The launcher's standard input, of which only what rank 0 reads is gone.

mpirun reads its standard input to the end whether or not a rank wants it, which would take a shell's loop its input. So
the launcher hands its own to the relay of rank 0, through a socket. Ranks elsewhere get it through mpirun.
"""

import contextlib
import os
import sys
from typing import NamedTuple


class Kind(NamedTuple):
    """What standard input is.

    Attributes:
        controls: Whether it is this process's controlling terminal, whose Ctrl-C is the launcher's.
        foreground: Whether it is, and this process may read it.
    """

    controls: bool
    foreground: bool

    @property
    def background(self) -> bool:
        """Whether it is, and reading it would stop this job. False if the terminal is gone: a read returns its end."""
        return self.controls and not self.foreground


def kind() -> Kind:
    """What standard input is."""
    try:
        group = os.tcgetpgrp(0)
    except OSError:  # no terminal, or not the controlling one: anybody may read it
        return Kind(False, False)
    return Kind(True, group == os.getpgrp())


class Offer:
    """Standard input, for whoever takes it first.

    Attributes:
        name: What :func:`take` needs.
    """

    def __init__(self):
        import secrets
        import socket  # takes a while, so that relays of other ranks do without

        self.name = f"wagma-{os.getpid()}-{secrets.token_hex(8)}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"\0{self.name}")  # without a file
        self._server.listen()
        self._server.setblocking(False)

    @staticmethod
    def possible() -> bool:
        """Whether this system has sockets without files."""
        return sys.platform == "linux"

    def fileno(self) -> int:
        """The descriptor that becomes readable when somebody wants it."""
        return self._server.fileno()

    def hand_over(self) -> None:
        """Gives it to whoever has asked, if that is a process of this user."""
        import socket
        import struct

        with contextlib.suppress(OSError):
            other, _ = self._server.accept()
            with other:
                of_other = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                if struct.unpack("3i", of_other)[1] == os.geteuid():
                    socket.send_fds(other, [b"0"], [0])

    def close(self) -> None:
        """Nobody can take it any more."""
        self._server.close()


def take(name: str) -> bool:
    """Makes the launcher's standard input this process's; False if this is not the launcher's machine."""
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{name}")
        _, ends, _, _ = socket.recv_fds(server, 1, 1)
        if ends:
            os.dup2(ends[0], 0)
            os.close(ends[0])
            return True
    return False
