"""Sums of large buffers: what the others have sent ahead is received and summed message by message."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from wagma_jax.averaging import divided
from wagma_jax.exchange.storage import widened
from wagma_jax.exchange.wire.members import MESSAGE_BYTES, Members, in_pieces
from wagma_jax.exchange.wire.sums import sum_in_order

CHUNK_BYTES = 1 << 17  # are summed at a time


def sum_block(members: Members, own: jax.Array, out: jax.Array, finish: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """This member's block of the sum over all members of a large buffer, after ``finish``; written to ``out``."""
    start, size = members.blocks(own.size)[members.position]
    itemsize = own.dtype.itemsize

    def sum_message(at, piece, out):
        received = {k: members.receive_ahead(k, piece, own.dtype) for k in members.others(-1)}

        def sum_chunk(offset, chunk, out):
            mine = _slice(own, start + at + offset, chunk)
            contributions = [
                widened(_slice(received[k], offset, chunk) if k in received else mine, out.dtype)
                for k in range(members.size)
            ]
            return _put(out, finish(sum_in_order(contributions)), at + offset)

        return in_pieces(piece, itemsize, CHUNK_BYTES, sum_chunk, out)

    return in_pieces(size, itemsize, members.block_message_bytes, sum_message, out)


def gather(members: Members, share: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    """The whole sum in ``out``, divided: this member's ``share``, and the blocks that the others have sent ahead.

    Each member divides for itself, since one that is late wants the sum.
    """
    blocks, itemsize = members.blocks(out.size), out.dtype.itemsize

    def place(message, begin, out):
        chunk = lambda at, piece, out: _put(out, divided(_slice(message, at, piece), divisor), begin + at)
        return in_pieces(message.size, itemsize, CHUNK_BYTES, chunk, out)

    out = place(share, blocks[members.position][0], out)
    for source in members.others(-1):
        start, size = blocks[source]
        receive = lambda at, piece, out, source=source, start=start: place(
            members.receive_ahead(source, piece, out.dtype), start + at, out
        )
        out = in_pieces(size, itemsize, MESSAGE_BYTES, receive, out)
    return out


def _slice(buffer: jax.Array, start: Any, size: int) -> jax.Array:
    return lax.dynamic_slice(buffer, (start,), (size,))


def _put(buffer: jax.Array, block: jax.Array, start: Any) -> jax.Array:
    return lax.dynamic_update_slice(buffer, block, (start,))
