"""One group of which this process is a member, and the messages between its members."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpi4jax
from jax import lax
from mpi4py import MPI

from wagma_jax.exchange import tags
from wagma_jax.exchange.wire.sums import largest_power

LARGE_BYTES = 1 << 21  # above which buffers are sent ahead
LARGE_BYTES_OF_TWO = 1 << 18  # the same in groups of two, which need only one phase
MOST_DIRECT = 16  # members who send to each other directly; more of them need log2 steps
MESSAGE_BYTES = 1 << 20  # of large buffers: received at a time from all members together ...
LEAST_MESSAGE_BYTES = 1 << 16  # ... but from each member at least this
CHUNK_BYTES = 1 << 17  # are summed at a time


def may_be_large(buffer: jax.Array) -> bool:
    """Whether a buffer is sent ahead in groups of some size."""
    return buffer.size * buffer.dtype.itemsize > LARGE_BYTES_OF_TWO


class Members(NamedTuple):
    """One group of which this process is a member. Members are named by their positions in it.

    Attributes:
        comm: The communicator of all workers.
        group: The ranks of the members, ascending.
    """

    comm: MPI.Intracomm
    group: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.group)

    @property
    def position(self) -> int:
        """The position of this process."""
        return self.group.index(self.comm.rank)

    @property
    def is_direct(self) -> bool:
        """Whether all members send to each other, rather than in log2 steps."""
        return self.size <= MOST_DIRECT

    @property
    def core(self) -> "Members":
        """The first members, as many as the largest power of two; the steps of both doublings are among them."""
        return Members(self.comm, self.group[: largest_power(self.size)])

    @property
    def is_in_core(self) -> bool:
        """Whether this process belongs to the core."""
        return self.position < self.core.size

    @property
    def beyond(self) -> int | None:
        """The member with whom this one folds: one has its sums made by the other. None: nobody."""
        core = self.core.size
        partner = self.position + core if self.is_in_core else self.position - core
        return partner if partner < self.size else None

    def others(self, direction: int) -> list[int]:
        """All other members, the next (1) or the previous one (-1) first: not all turn to the same one at a time."""
        return [(self.position + direction * step) % self.size for step in range(1, self.size)]

    def is_large(self, buffer: jax.Array) -> bool:
        """Whether a buffer is sent ahead."""
        return buffer.size * buffer.dtype.itemsize > (LARGE_BYTES_OF_TWO if self.size <= 2 else LARGE_BYTES)

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """The (start, size) that each member sums of a large buffer: all of it in a group of two, else an n-th."""
        n = self.size
        if n <= 2:
            return [(0, size)] * n
        return [(k * size // n, (k + 1) * size // n - k * size // n) for k in range(n)]

    @property
    def block_message_bytes(self) -> int:
        """The size of messages of blocks: one from every other member is held at a time."""
        return max(LEAST_MESSAGE_BYTES, MESSAGE_BYTES // max(1, self.size - 1))

    def send_blocks(self, own: jax.Array) -> list[MPI.Request]:
        """Posts the sends of a large buffer: to each other member the block that it sums."""
        blocks = self.blocks(own.size)
        return self._send_ahead(own, {dest: blocks[dest] for dest in self.others(1)}, self.block_message_bytes)

    def send_share(self, share: jax.Array) -> list[MPI.Request]:
        """Posts the sends to all others of the block that this member has summed."""
        return self._send_ahead(share, dict.fromkeys(self.others(1), (0, share.size)), MESSAGE_BYTES)

    def _send_ahead(
        self, array: jax.Array, blocks: dict[int, tuple[int, int]], message_bytes: int
    ) -> list[MPI.Request]:
        """Posts the sends of each member's block, (start, size), cut into the messages that ``in_pieces`` receives."""
        datatype, itemsize = _mpi_dtype(array.dtype).char, array.dtype.itemsize  # a predefined datatype: none to free
        address = array.unsafe_buffer_pointer()
        requests = []
        for dest, (start, size) in blocks.items():
            piece, count = _pieces(size, itemsize, message_bytes)
            for i in range(count):
                at = start + min(i * piece, size - piece)
                message = MPI.buffer.fromaddress(address + at * itemsize, piece * itemsize, readonly=True)
                requests.append(self.comm.Isend([message, datatype], self.group[dest], tags.AHEAD))
        return requests

    def receive_ahead(self, source: int, size: int, dtype: Any) -> jax.Array:
        """Receives the next message of what another member has sent ahead."""
        return self._receive(source, size, dtype, tags.AHEAD)

    def send(self, block: jax.Array, dest: int) -> None:
        """Sends ``block`` to a member that calls ``receive``."""
        sent = lax.bitcast_convert_type(block, _mpi_dtype(block.dtype))
        mpi4jax.send(sent, dest=self.group[dest], tag=tags.SWAP, comm=self.comm)

    def receive(self, source: int | None, size: int, dtype: Any) -> jax.Array:
        """Receives ``size`` elements of ``dtype`` from a member that calls ``send``."""
        assert source is not None
        return self._receive(source, size, dtype, tags.SWAP)

    def swap(self, block: jax.Array, dest: int, source: int, size: int, dtype: Any) -> jax.Array:
        """Sends ``block`` to one member and receives ``size`` elements of ``dtype`` from another."""
        return self._sendrecv(block, self.group[dest], self.group[source], size, dtype)

    def uninitialized(self, size: int, dtype: Any) -> jax.Array:
        """Memory that nobody has written to: a receive from MPI_PROC_NULL leaves its buffer as it is."""
        return self._sendrecv(jnp.zeros(1, jnp.uint8), MPI.PROC_NULL, MPI.PROC_NULL, size, dtype)

    def _receive(self, source: int, size: int, dtype: Any, tag: int) -> jax.Array:
        like = jnp.zeros(size, _mpi_dtype(dtype))  # only its shape is used
        received = mpi4jax.recv(like, source=self.group[source], tag=tag, comm=self.comm)
        return lax.bitcast_convert_type(received, dtype)

    def _sendrecv(self, block: jax.Array, dest: int, source: int, size: int, dtype: Any) -> jax.Array:
        like = jnp.zeros(size, _mpi_dtype(dtype))  # only its shape is used
        sent = lax.bitcast_convert_type(block, _mpi_dtype(block.dtype))
        received = mpi4jax.sendrecv(sent, like, source, dest, sendtag=tags.SWAP, recvtag=tags.SWAP, comm=self.comm)
        return lax.bitcast_convert_type(received, dtype)


def _mpi_dtype(dtype: Any) -> Any:
    """A dtype of the same width that MPI knows."""
    dtype = jnp.dtype(dtype)
    if dtype.name in ("float32", "float64", "complex64", "complex128", "int32"):
        return dtype
    return jnp.dtype(f"uint{8 * dtype.itemsize}")


def _pieces(size: int, itemsize: int, piece_bytes: int) -> tuple[int, int]:
    """The size and the number of the equal pieces, of at most about ``piece_bytes``; the last two may overlap."""
    piece = math.ceil(size / max(1, math.ceil(size * itemsize / piece_bytes)))
    return piece, math.ceil(size / piece)


def in_pieces(size: int, itemsize: int, piece_bytes: int, body: Callable[[Any, int, Any], Any], value: Any) -> Any:
    """``value = body(start, piece, value)`` for all ``_pieces``."""
    piece, count = _pieces(size, itemsize, piece_bytes)
    if count == 1:
        return body(0, piece, value)
    return lax.fori_loop(0, count, lambda i, value: body(jnp.minimum(i * piece, size - piece), piece, value), value)


def slice_block(buffer: jax.Array, start: Any, size: int) -> jax.Array:
    """``buffer[start : start + size]``."""
    return lax.dynamic_slice(buffer, (start,), (size,))


def put_block(buffer: jax.Array, block: jax.Array, start: Any) -> jax.Array:
    """``buffer`` with ``block`` from ``start`` on."""
    return lax.dynamic_update_slice(buffer, block, (start,))
