"""Sums of flat buffers over a group of MPI processes: one compiled function for each group, over `mpi4jax`.

Large buffers are exchanged chunk by chunk in a loop, so that what is received is summed while it is in the cache, and
no second model is ever received. Two members, the most common group, send several chunks in one message: for every
message both must run at the same time, and a core that is kept busy by something else lets them only every few
milliseconds. They copy and sum by chunks all the same, since XLA spreads larger operations over its threads.

A sum is taken in float32 or wider, in an order that is the same for all members and elements, and so has the same bits
everywhere. The first hop carries the buffer's own dtype.

Which exchange (all move ``n`` members' blocks of m elements; see Thakur, Rabenseifner, Gropp, IJHPCA 2005):

- *recursive doubling*: log2(n) messages of m; for two members, and for small blocks;
- *halving-doubling*: 2 log2(n) messages, 2 m (n - 1) / n elements in all; for large blocks;
- *pairwise*: as many elements in 2 (n - 1) messages; where n is no power of two.

All waiting for members happens before (see ``protocol``): a call here blocks only for as long as data moves.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpi4jax
import numpy as np
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from mpi4py import MPI

from wagma_jax.exchange.buffers import Buffers
from wagma_jax.exchange.carriers import sum_dtype, widened

CHUNK_BYTES = 1 << 18
CHUNK_BYTES_OF_TWO = 1 << 17
MESSAGE_BYTES = 1 << 20  # between two members
WHOLE_BYTES = 1 << 22  # up to which a buffer is one message between two members
SMALL_BLOCK_BYTES = 1 << 16
_TAG = 7


class Wire:
    """Compiled exchanges between this process and groups of others.

    Args:
        comm: Communicator of all workers, used by nobody else.
        device: The CPU device of the buffers.
    """

    def __init__(self, comm: MPI.Intracomm, device: Any):
        self.comm = comm
        # explicit: whether arrays are committed to their device would make another compilation each
        self._here = jax.sharding.SingleDeviceSharding(device)
        self._exchanges: dict[tuple[int, ...], Any] = {}
        self._memory: dict[Any, Any] = {}

    def memory(self, buffers: Buffers) -> Buffers:
        """Uninitialized memory for the result of an exchange of such buffers, for its ``memory`` argument.

        The thread that calls this allocates it. glibc serves large requests from memory that was freed before only in
        the arena of the main thread; elsewhere every page is fetched from the system anew.
        """
        key = tuple((own.size, sum_dtype(own.dtype)) for own in buffers)
        if key not in self._memory:
            members = _Members(self.comm, (self.comm.rank,))
            function = lambda: tuple(members.uninitialized(size, dtype) for size, dtype in key)
            self._memory[key] = jax.jit(_without_effects(function), out_shardings=self._here)
        return self._memory[key]()

    def exchange(
        self, group: tuple[int, ...], divisor: int, header: tuple[int, int], buffers: Buffers, memory: Buffers
    ) -> tuple[tuple[int, ...], Buffers]:
        """Sums the buffers of a group; compiled at the first call for a group. Blocks until it is done.

        Args:
            group: Ascending ranks, this one among them. All call this for the same round, with the same shapes and
                dtypes.
            divisor: What this member's result is divided by: 1 for the sum, the group's size for the mean.
            header: (round, version of this contribution).
            buffers: This worker's contribution: 1-D arrays on a CPU device, left as they are.
            memory: Where the result goes, from ``memory``; donated.

        Returns:
            The version of each member's contribution, and the results, in the accumulation dtypes.

        Raises:
            RuntimeError: The members are not at the same round (a bug of this library).
        """
        arguments = np.asarray((*header, divisor), np.int32)
        headers, totals = jax.block_until_ready(self._compiled(group)(arguments, buffers, memory))
        headers = np.asarray(headers)
        if not (headers[:, 0] == header[0]).all():
            raise RuntimeError(f"round {header[0]} met the rounds {headers[:, 0].tolist()} of the ranks {list(group)}")
        return tuple(headers[:, 1].tolist()), totals

    def prepare(self, group: tuple[int, ...], buffers: Buffers) -> None:
        """Compiles the exchange of such buffers with a group, without making it."""
        self._compiled(group).lower(np.zeros(3, np.int32), buffers, self.memory(buffers)).compile()

    def _compiled(self, group: tuple[int, ...]) -> Any:
        if group not in self._exchanges:
            members = _Members(self.comm, group)  # no closure over what holds it

            def exchange(header, buffers, memory):
                return _exchange(members, header, buffers, memory)

            here = self._here
            self._exchanges[group] = jax.jit(
                _without_effects(exchange), donate_argnums=2, keep_unused=True, in_shardings=here, out_shardings=here
            )
        return self._exchanges[group]


def sum_in_order(contributions: Sequence[jax.Array]) -> jax.Array:
    """The sum over a group's members, in the order of their ranks, with the bits that an exchange gives it.

    Halves that are halved again where there are 2^k, as both doublings take it; else one after the other.
    """
    n = len(contributions)
    if n & (n - 1):
        return functools.reduce(jnp.add, contributions)
    while n > 1:
        n //= 2
        contributions = [contributions[i] + contributions[i + n] for i in range(n)]
    return contributions[0]


def _without_effects(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function for ``jax.jit``, its calls of mpi4jax in order among themselves but with nothing outside.

    The token that orders them is made inside. Else JAX threads one token through all calls in the process, which it
    does in Python: half a millisecond a call.
    """

    def wrapped(*args):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        primitive = Primitive("exchange")
        primitive.multiple_results = True
        primitive.def_abstract_eval(lambda *_: jaxpr.out_avals)

        def lower(context, *operands):
            tokens = mlir.TokenSet.create(list(jaxpr.effects))
            inlined = mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)
            return inlined(context.replace(tokens_in=tokens), *operands)

        mlir.register_lowering(primitive, lower, platform="cpu")
        return jax.tree.unflatten(jax.tree.structure(shapes), primitive.bind(*jax.tree.leaves(args)))

    return wrapped


class _Members(NamedTuple):
    comm: MPI.Intracomm
    group: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.group)

    @property
    def position(self) -> int:
        return self.group.index(self.comm.rank)

    def swap(self, block: jax.Array, dest: int, source: int, size: int, dtype: Any) -> jax.Array:
        """Sends ``block`` to one member and receives ``size`` elements of ``dtype`` from another; by position."""
        return self._sendrecv(block, self.group[dest], self.group[source], size, dtype)

    def uninitialized(self, size: int, dtype: Any) -> jax.Array:
        """Memory that nobody has written to: a receive from MPI_PROC_NULL leaves its buffer as it is."""
        return self._sendrecv(jnp.zeros(1, jnp.uint8), MPI.PROC_NULL, MPI.PROC_NULL, size, dtype)

    def _sendrecv(self, block: jax.Array, dest: int, source: int, size: int, dtype: Any) -> jax.Array:
        like = jnp.zeros(size, _carrier(dtype))  # only its shape is used
        sent = lax.bitcast_convert_type(block, _carrier(block.dtype))
        received = mpi4jax.sendrecv(sent, like, source, dest, sendtag=_TAG, recvtag=_TAG, comm=self.comm)
        return lax.bitcast_convert_type(received, dtype)


def _carrier(dtype: Any) -> Any:
    """A dtype of the same width that MPI knows."""
    dtype = jnp.dtype(dtype)
    if dtype.name in ("float32", "float64", "complex64", "complex128", "int32"):
        return dtype
    return jnp.dtype(f"uint{8 * dtype.itemsize}")


def _exchange(members: _Members, header: jax.Array, buffers: Buffers, memory: Buffers):
    """All members' headers, [n, 2], and the totals. Headers ride along with a small float32 buffer, if there is one."""
    slots = jnp.zeros((members.size, 2), header.dtype).at[members.position].set(header[:2])
    total = lambda own, out: _total(members, own, out, header[2])
    if not buffers or buffers[0].dtype != jnp.float32 or buffers[0].size * 4 > CHUNK_BYTES:
        headers = _block_sum(members, slots.ravel(), header.dtype)
        return headers.reshape(slots.shape), tuple(map(total, buffers, memory))
    halves = jnp.stack([slots >> 16, slots & 0xFFFF], -1).astype(jnp.float32)  # exact, and summed with zeros
    own = jnp.concatenate([buffers[0], halves.ravel()])
    sums = _block_sum(members, own, own.dtype)
    high, low = jnp.moveaxis(sums[buffers[0].size :].reshape(halves.shape).astype(header.dtype), -1, 0)
    first = sums[: buffers[0].size] / header[2].astype(jnp.float32)
    return (high << 16) + low, (first, *map(total, buffers[1:], memory[1:]))


def _total(members: _Members, own: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    """The sum of a buffer, divided, chunk by chunk."""
    divisor = divisor.astype(jnp.finfo(out.dtype).dtype)
    if own.size * own.dtype.itemsize <= CHUNK_BYTES:
        return _block_sum(members, own, out.dtype) / divisor
    if members.size == 2:
        return _total_of_two(members, own, out, divisor)

    def sum_chunk(start, size, out):
        for part in _parts(members, own, start, size, out.dtype):
            out = _put(out, part.sum / divisor, start + part.offset)
        return out

    return _in_pieces(own.size, _count(own, CHUNK_BYTES), sum_chunk, out)


def _total_of_two(members: _Members, own: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    partner = 1 - members.position
    num_messages = 1 if _count(own, WHOLE_BYTES) == 1 else _count(own, MESSAGE_BYTES)

    def exchange(start, size, out):
        num_chunks = math.ceil(_count(own, CHUNK_BYTES_OF_TWO) / num_messages)
        sent = own
        if num_messages > 1:
            copy = lambda at, chunk, sent: _put(sent, _slice(own, start + at, chunk), at)
            sent = _in_pieces(size, num_chunks, copy, members.uninitialized(size, own.dtype))
        received = members.swap(sent, partner, partner, size, own.dtype)

        def add(at, chunk, out):
            mine, theirs = _slice(own, start + at, chunk), _slice(received, at, chunk)
            total = widened(mine, out.dtype) + widened(theirs, out.dtype)
            return _put(out, total / divisor, start + at)

        return _in_pieces(size, num_chunks, add, out)

    return _in_pieces(own.size, num_messages, exchange, out)


def _count(buffer: jax.Array, piece_bytes: int) -> int:
    return math.ceil(buffer.size * buffer.dtype.itemsize / piece_bytes)


def _in_pieces(size: int, count: int, body: Callable[[Any, int, Any], Any], value: Any) -> Any:
    """``value = body(start, piece, value)`` for ``count`` pieces of equal size; the last two may overlap."""
    piece = math.ceil(size / count)
    if count == 1:
        return body(0, piece, value)
    return lax.fori_loop(
        0, math.ceil(size / piece), lambda i, value: body(jnp.minimum(i * piece, size - piece), piece, value), value
    )


def _slice(buffer: jax.Array, start: Any, size: int) -> jax.Array:
    return lax.dynamic_slice(buffer, (start,), (size,))


def _put(buffer: jax.Array, block: jax.Array, start: Any) -> jax.Array:
    return lax.dynamic_update_slice(buffer, block, (start,))


class _Part(NamedTuple):
    """The sum of a part of a block; ``offset`` within the block, in elements."""

    offset: int
    sum: jax.Array


def _block_sum(members: _Members, block: jax.Array, wide: Any) -> jax.Array:
    """The sum of a 1-D block over the members, in dtype ``wide``."""
    return _joined(_parts(members, block, 0, block.size, wide))


def _joined(parts: Sequence[_Part]) -> jax.Array:
    if len(parts) == 1:
        return parts[0].sum
    return jnp.concatenate([part.sum for part in sorted(parts, key=lambda part: part.offset)])


def _parts(members: _Members, own: jax.Array, start: Any, size: int, wide: Any) -> list[_Part]:
    """The sum over the members of the block of ``size`` elements at ``start``, in ``wide``: parts in any order.

    What is passed on is cut out of ``own``, and what has come is handed out, without another copy of the whole block.
    """
    n = members.size
    if n & (n - 1):
        return _pairwise(members, own, start, size, wide)
    if n <= 2 or size * own.dtype.itemsize <= SMALL_BLOCK_BYTES:
        return [_Part(0, _recursive_doubling(members, _slice(own, start, size), wide))]
    return _halving_doubling(members, own, start, size, wide)


def _recursive_doubling(members: _Members, block: jax.Array, wide: Any) -> jax.Array:
    mask = members.size // 2
    block = block if mask else widened(block, wide)
    while mask:
        partner = members.position ^ mask
        received = members.swap(block, partner, partner, block.size, block.dtype)
        block = widened(block, wide) + widened(received, wide)
        mask //= 2
    return block


def _halving_doubling(members: _Members, own: jax.Array, start: Any, size: int, wide: Any) -> list[_Part]:
    n, position = members.size, members.position
    bounds = [k * size // n for k in range(n + 1)]
    low, high = 0, n  # of the n-ths that ``block`` holds, from ``origin`` on
    block, origin = own, start
    mask = n // 2
    while mask:
        middle, partner = (low + high) // 2, position ^ mask
        lower, upper = (low, middle), (middle, high)
        kept, sent = (upper, lower) if position & mask else (lower, upper)
        cut = lambda ends, block=block, origin=origin: _slice(
            block, origin + bounds[ends[0]], bounds[ends[1]] - bounds[ends[0]]
        )
        mine = cut(kept)
        received = members.swap(cut(sent), partner, partner, mine.size, mine.dtype)
        block = widened(mine, wide) + widened(received, wide)
        low, high = kept
        origin = -bounds[low]
        mask //= 2
    parts = [_Part(bounds[low], block)]
    mask = 1
    while mask < n:
        partner, width = position ^ mask, high - low
        at = low - width if position & mask else high  # where the partner's begin
        received = members.swap(_joined(parts), partner, partner, bounds[at + width] - bounds[at], wide)
        parts.append(_Part(bounds[at], received))
        low = min(low, at)
        high = low + 2 * width
        mask *= 2
    return parts


def _pairwise(members: _Members, own: jax.Array, start: Any, size: int, wide: Any) -> list[_Part]:
    n, position = members.size, members.position
    bounds = [k * size // n for k in range(n + 1)]
    nth = lambda k: _slice(own, start + bounds[k], bounds[k + 1] - bounds[k])
    mine = nth(position)
    summands = [mine] * n
    for step in range(1, n):
        dest, source = (position + step) % n, (position - step) % n
        summands[source] = members.swap(nth(dest), dest, source, mine.size, mine.dtype)
    total = functools.reduce(jnp.add, (widened(summand, wide) for summand in summands))
    parts = [_Part(bounds[position], total)]
    for step in range(1, n):
        dest, source = (position + step) % n, (position - step) % n
        received = members.swap(total, dest, source, bounds[source + 1] - bounds[source], wide)
        parts.append(_Part(bounds[source], received))
    return parts
