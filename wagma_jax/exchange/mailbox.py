"""Messages between ranks: small Python objects over MPI. Nothing here waits."""

import time
from collections.abc import Iterable
from typing import Any

from mpi4py import MPI

from wagma_jax.exchange import tags

LOOKS = 4
_SHORTEST_SLEEP = 20e-6  # seconds


class Mailbox:
    """The messages of one tag: those of an engine, or of a start; used by one thread alone.

    Args:
        comm: The communicator.
        tag: From ``tags``; used by nobody else on this communicator.

    Attributes:
        sent: How many messages were sent.
        received: How many were received.
    """

    def __init__(self, comm: MPI.Intracomm, tag: int = tags.MAIL):
        self._comm = comm
        self._tag = tag
        self._status = MPI.Status()
        self._requests: list[MPI.Request] = []
        self.sent = self.received = 0

    def receive(self) -> tuple[int, Any] | None:
        """The source and the content of the next message, None if there is none. Also moves sends forward."""
        # Open MPI looks first and makes progress then: what comes in by that is only seen by a later look
        for _ in range(LOOKS):
            message = self._comm.improbe(MPI.ANY_SOURCE, self._tag, self._status)
            if message is not None:
                self.received += 1
                return self._status.Get_source(), message.recv()
        self._test()
        return None

    def send(self, dest: int, content: Any) -> None:
        """Sends a message."""
        request = self._comm.isend(content, dest, self._tag)
        if not request.Test():  # which also makes the progress that puts the message on its way
            self._requests.append(request)
        self.sent += 1

    def send_to(self, dests: Iterable[int], content: Any) -> None:
        """Sends a message to several ranks."""
        for dest in dests:
            self.send(dest, content)

    def flush(self, seconds: float) -> None:
        """Waits until what was sent is on its way, but no longer than ``seconds``."""
        end = time.perf_counter() + seconds
        while self._requests and time.perf_counter() < end:
            self._test()
            time.sleep(_SHORTEST_SLEEP)

    def _test(self) -> None:
        self._requests = [request for request in self._requests if not request.Test()]
