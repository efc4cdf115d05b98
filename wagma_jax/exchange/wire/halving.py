"""Sums of large buffers over many members in log2 steps: halving-doubling in place, piece by piece.

Each step exchanges messages with one other member, so connections, messages of a small model and the time to compile
grow like log2 n. Members beyond the largest power of two hand their buffers to one of the others, and get the sum back.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wagma_jax.averaging import divided
from wagma_jax.exchange.storage import widened
from wagma_jax.exchange.wire.members import CHUNK_BYTES, MESSAGE_BYTES, Members, in_pieces, put_block, slice_block
from wagma_jax.exchange.wire.small import sum_small


def sum_by_halving(members: Members, own: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    """The sum over all members of a large buffer, divided; written to ``out``."""
    count, piece = equal_pieces(own.size, own.dtype.itemsize, members.core.size)
    work = _Pieces(members, piece)
    if members.is_in_core:
        out = work.sum_in_core(own, out, count)
    else:
        partner = members.beyond
        work.each(count, lambda i, none: _sent(members, work.read(own, i), partner, none), jnp.int32(0))
        out = work.each(count, lambda i, out: work.write(out, members.receive(partner, piece, out.dtype), i), out)
    out = work.each(count, lambda i, out: work.write(out, work.read(out, i), i, lambda x: divided(x, divisor)), out)
    if count * piece == own.size:
        return out
    rest = sum_small(members, own[count * piece :], out.dtype)
    return put_block(out, divided(rest, divisor), count * piece)


def equal_pieces(size: int, itemsize: int, num_members: int) -> tuple[int, int]:
    """The number of equal pieces of a buffer, a power of two and one a member at least, and the size of each.

    Fewer elements than pieces are left over.
    """
    count = num_members
    while size // count * itemsize > MESSAGE_BYTES:
        count *= 2
    return count, size // count


class _Pieces:
    """The steps of a sum over buffers that are cut into pieces of the same size."""

    def __init__(self, members: Members, piece: int):
        self._members = members
        self._piece = piece

    def sum_in_core(self, own: jax.Array, out: jax.Array, count: int) -> jax.Array:
        """The sum of a member of the core, whose number is a power of two."""
        members, core, beyond = self._members, self._members.core, self._members.beyond
        wide = out.dtype
        hop = own.dtype if core.size == members.size else wide  # some have summed before the first step
        source = own
        if beyond is not None:
            receive = lambda i: members.receive(beyond, self._piece, own.dtype)
            out = self.each(count, lambda i, out: self._add(out, self.read(own, i), receive(i), i), out)
            source = None
        low, high, mask = 0, count, core.size // 2
        while mask:
            middle = (low + high) // 2
            kept, given = (middle, low) if core.position & mask else (low, middle)
            step = functools.partial(self._halve, core, core.position ^ mask, source, hop, kept, given)
            out = self.each(middle - low, step, out)
            low, high, mask, source, hop = kept, kept + middle - low, mask // 2, None, wide
        mask = 1
        while mask < core.size:
            width = high - low
            at = low - width if core.position & mask else high  # where the partner's begin
            out = self.each(width, functools.partial(self._double, core, core.position ^ mask, low, at), out)
            low, mask = min(low, at), 2 * mask
            high = low + 2 * width
        if beyond is not None:
            self.each(count, lambda i, none: _sent(members, self.read(out, i), beyond, none), jnp.int32(0))
        return out

    def each(self, count: int, body: Callable[[Any, Any], Any], value: Any) -> Any:
        """``value = body(i, value)`` for so many pieces."""
        return body(0, value) if count == 1 else lax.fori_loop(0, count, body, value)

    def read(self, buffer: jax.Array, i: Any) -> jax.Array:
        """Piece i of a buffer."""
        return slice_block(buffer, i * self._piece, self._piece)

    def write(
        self, out: jax.Array, message: jax.Array, i: Any, finish: Callable[[jax.Array], jax.Array] = lambda x: x
    ) -> jax.Array:
        """``out`` with a piece replaced, chunk by chunk: XLA spreads larger operations over its threads."""
        chunk = lambda at, size, out: put_block(out, finish(slice_block(message, at, size)), i * self._piece + at)
        return in_pieces(self._piece, out.dtype.itemsize, CHUNK_BYTES, chunk, out)

    def _add(self, out: jax.Array, mine: jax.Array, theirs: jax.Array, i: Any) -> jax.Array:
        def chunk(at, size, out):
            own, other = (widened(slice_block(message, at, size), out.dtype) for message in (mine, theirs))
            return put_block(out, own + other, i * self._piece + at)

        return in_pieces(self._piece, out.dtype.itemsize, CHUNK_BYTES, chunk, out)

    def _halve(self, core, partner, source, hop, kept, given, i, out):
        """Sends a piece of the half that the partner sums, and sums a piece of the own one."""
        source = out if source is None else source
        sent = self.read(source, given + i)
        sent = sent if sent.dtype == hop else widened(sent, hop)
        received = core.swap(sent, partner, partner, self._piece, hop)
        return self._add(out, self.read(source, kept + i), received, kept + i)

    def _double(self, core, partner, own, theirs, i, out):
        """Swaps a piece of what is summed for one of the partner's."""
        received = core.swap(self.read(out, own + i), partner, partner, self._piece, out.dtype)
        return self.write(out, received, theirs + i)


def _sent(members: Members, message: jax.Array, dest: int | None, value: Any) -> Any:
    assert dest is not None
    members.send(message, dest)
    return value
