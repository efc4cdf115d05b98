"""Sums of large buffers: what the others have sent ahead is received and summed message by message."""

from collections.abc import Callable

import jax

from wagma_jax.averaging import divided
from wagma_jax.exchange.storage import widened
from wagma_jax.exchange.wire.members import CHUNK_BYTES, MESSAGE_BYTES, Members, in_pieces, put_block, slice_block
from wagma_jax.exchange.wire.sums import sum_in_order


def sum_block(members: Members, own: jax.Array, out: jax.Array, finish: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """This member's block of the sum over all members of a large buffer, after ``finish``; written to ``out``."""
    start, size = members.blocks(own.size)[members.position]
    itemsize = own.dtype.itemsize

    def sum_message(at, piece, out):
        received = {k: members.receive_ahead(k, piece, own.dtype) for k in members.others(-1)}

        def sum_chunk(offset, chunk, out):
            mine = slice_block(own, start + at + offset, chunk)
            contributions = [
                widened(slice_block(received[k], offset, chunk) if k in received else mine, out.dtype)
                for k in range(members.size)
            ]
            return put_block(out, finish(sum_in_order(contributions)), at + offset)

        return in_pieces(piece, itemsize, CHUNK_BYTES, sum_chunk, out)

    return in_pieces(size, itemsize, members.block_message_bytes, sum_message, out)


def gather(members: Members, share: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    """The whole sum in ``out``, divided: this member's ``share``, and the blocks that the others have sent ahead.

    Each member divides for itself, since one that is late wants the sum.
    """
    blocks, itemsize = members.blocks(out.size), out.dtype.itemsize

    def place(message, begin, out):
        chunk = lambda at, piece, out: put_block(out, divided(slice_block(message, at, piece), divisor), begin + at)
        return in_pieces(message.size, itemsize, CHUNK_BYTES, chunk, out)

    out = place(share, blocks[members.position][0], out)
    for source in members.others(-1):
        start, size = blocks[source]
        receive = lambda at, piece, out, source=source, start=start: place(
            members.receive_ahead(source, piece, out.dtype), start + at, out
        )
        out = in_pieces(size, itemsize, MESSAGE_BYTES, receive, out)
    return out
