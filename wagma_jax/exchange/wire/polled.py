"""Messages of buffers that are posted, and tested for in an engine's loop: nobody waits inside of one.

So what was posted can be abandoned: a partner that has failed keeps nobody. MPI reads what is sent straight from the
buffers, which nobody changes, and writes what comes into memory to which nobody else refers.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from mpi4py import MPI

from wagma_jax.exchange.storage import Buffers

_HEADER = 2  # integers

_posted: set["Posted"] = set()  # that are not over: MPI may still use their memory, whatever becomes of their owners


class Posted:
    """Messages to and from one other process that were posted together.

    Attributes:
        memory: What has come, once ``test`` says so; () where nothing is to come.
    """

    def __init__(self, requests: Iterable[MPI.Request], sent: Any, header: np.ndarray | None, memory: Buffers):
        self.memory = memory
        self._requests = list(requests)
        self._sent = sent
        self._header = header
        self._receives = 0 if header is None else 1 + len(memory)  # that many requests are receives, the first
        _posted.add(self)

    @property
    def header(self) -> tuple[int, int]:
        """What has come with the buffers."""
        assert self._header is not None, "nothing was to come"
        first, second = self._header.tolist()
        return first, second

    def test(self) -> bool:
        """Whether everything was sent and has come. Also moves it forward."""
        if not MPI.Request.Testall(self._requests):
            return False
        self._sent = None
        _posted.discard(self)
        return True

    def abandon(self) -> None:
        """Nobody waits for it any more. Its memory stays, unless all is over: MPI may still use it."""
        for request in self._requests[: self._receives]:
            request.Cancel()
        self.test()


class Polled:
    """Posts buffers.

    Args:
        comm: The communicator of all workers.
        tag: Of the messages; between two processes those of one tag stay in order.
    """

    def __init__(self, comm: MPI.Intracomm, tag: int):
        self._comm = comm
        self._tag = tag

    def post(
        self, peer: int, sends: Buffers | None = None, header: tuple[int, int] = (0, 0), memory: Buffers | None = None
    ) -> Posted:
        """Posts messages to and from another process.

        Args:
            peer: Its rank.
            sends: What is sent; None: nothing. Left as it is, but nobody may donate or delete it before it has arrived:
                MPI reads its memory, and JAX does not know.
            header: Two integers, sent before the buffers.
            memory: Where what comes is written: buffers of the same shapes and dtypes to which nobody else refers;
                None: nothing comes.
        """
        requests, came, sent = [], None, None
        if memory is not None:
            came = np.zeros(_HEADER, np.int64)
            jax.block_until_ready(memory)
            requests += [self._comm.Irecv(part, peer, self._tag) for part in (came, *map(_message, memory))]
        if sends is not None:
            sent = np.array(header, np.int64), jax.block_until_ready(sends)
            requests += [self._comm.Isend(part, peer, self._tag) for part in (sent[0], *map(_message, sends))]
        return Posted(requests, sent, came, memory or ())

    def is_coming(self, peer: int) -> bool:
        """Whether a message is on its way from another process for which no receive is posted."""
        return self._comm.iprobe(peer, self._tag)


def _message(buffer: jax.Array) -> Any:
    """A buffer as MPI takes it: elements of a predefined datatype of its width, so that counts stay small."""
    width = min(buffer.dtype.itemsize, 8)
    memory = MPI.buffer.fromaddress(buffer.unsafe_buffer_pointer(), buffer.size * buffer.dtype.itemsize)
    return [memory, np.dtype(f"u{width}").char]
