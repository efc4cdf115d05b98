"""Sums of flat buffers over a group of MPI processes: compiled functions for each group, over `mpi4jax`.

How a buffer of m elements goes to the n members of a group (see Thakur, Rabenseifner, Gropp, IJHPCA 2005):

- *recursive doubling*: log2(n) messages of m; for small buffers;
- *halving-doubling*: 2 log2(n) messages, 2 m (n - 1) / n elements in all; for middling ones;
- *pairwise*: as many elements in 2 (n - 1) messages; where n is no power of two;
- *sent ahead*: for large buffers. Everything that a member has for the others is posted before its compiled function
  runs, from the buffer itself, and nobody waits for anybody in between: MPI lets the receiver fetch a large message
  (from the sender's memory, on one machine) while the sender computes or does not run at all. With a message at a time
  both would have to run at the same time for each of them, and where ranks share cores it is chance whether they do.
  (What is posted needs Python's lock once a message, which a trainer that loops in Python gives away after a while.)
  Two members send each other the whole buffer. More reduce and scatter it, an n-th for each, and gather the n-ths:
  2 m (n - 1) / n elements in all, for any n.

What is received is summed message by message, while it is in the cache, so that no second model is ever received; by
chunks, since XLA spreads larger operations over its threads. A sum is taken in float32 or wider, in an order that is
the same for all members and elements, and so has the same bits everywhere. The first hop carries the buffer's dtype.

All waiting for members happens before (see ``protocol``): a call here blocks only for as long as data moves.
"""

import functools
import itertools
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

from wagma_jax.averaging import divided
from wagma_jax.exchange.buffers import Buffers
from wagma_jax.exchange.carriers import sum_dtype, widened
from wagma_jax.exchange.meeting import meet

SMALL_BYTES = 1 << 16  # up to which recursive doubling is used
LARGE_BYTES = 1 << 21  # above which buffers are sent ahead
LARGE_BYTES_OF_TWO = 1 << 18  # the same for two members, who need only one phase
MESSAGE_BYTES = 1 << 20  # of buffers sent ahead: as much is received at a time, from all members together ...
LEAST_MESSAGE_BYTES = 1 << 16  # ... but from each of them at least this
CHUNK_BYTES = 1 << 17  # as much is summed at a time
_TAG = 7
_AHEAD = 8  # tag of what is sent ahead


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
        self._exchanges: dict[tuple[int, ...], tuple[Any, Any]] = {}
        self._allocate: dict[Any, Any] = {}
        self._shares: Buffers = ()  # of the last exchange with more than one other: memory for those of the next
        self._in_flight: Any = None  # what others may still read, kept even if an exchange fails

    def memory(self, buffers: Buffers) -> Buffers:
        """Uninitialized memory for the result of an exchange of such buffers, for its ``memory`` argument.

        The thread that calls this allocates it. glibc serves large requests from memory that was freed before only in
        the arena of the main thread; elsewhere every page is fetched from the system anew.
        """
        return self._uninitialized(tuple((own.size, sum_dtype(own.dtype)) for own in buffers))

    def exchange(
        self, group: tuple[int, ...], divisor: int, header: tuple[int, int], buffers: Buffers, memory: Buffers
    ) -> tuple[tuple[int, ...], Buffers]:
        """Sums the buffers of a group; compiled at the first call for a group. Blocks until it is done.

        Args:
            group: Ascending ranks, this one among them. All call this for the same round, with the same shapes and
                dtypes.
            divisor: What this member's result is divided by: 1 for the sum, the group's size for the mean. Members
                may differ in it.
            header: (round, version of this contribution).
            buffers: This worker's contribution: 1-D arrays on a CPU device, left as they are. Nobody may donate or
                delete them meanwhile: the others read their memory, of which JAX knows nothing.
            memory: Where the result goes, from ``memory``; donated (where the buffer is large).

        Returns:
            The version of each member's contribution, and the results, in the accumulation dtypes.

        Raises:
            RuntimeError: The members are not at the same round (a bug of this library).
        """
        members = _Members(self.comm, group)
        sum_up, all_gather = self._compiled(group)
        jax.block_until_ready(buffers)  # from here on the others read their memory
        is_large = [members.is_large(own) for own in buffers]
        into = tuple(itertools.compress(memory, is_large))
        sent: list[MPI.Request] = []
        self._in_flight = buffers, sent
        for own in itertools.compress(buffers, is_large):
            sent += members.send_blocks(own)
        shares = self._memory_of_shares(members, buffers)
        arguments = np.asarray((*header, divisor), np.int32)
        headers, small, large = sum_up(arguments, buffers, shares or into)
        if shares:
            self._shares = jax.block_until_ready(large)
            sent += [request for share in large for request in members.send_share(share)]
            large = all_gather(arguments, large, into)
        jax.block_until_ready((headers, small, large))
        MPI.Request.Waitall(sent)
        self._in_flight = None
        headers = np.asarray(headers)
        if not (headers[:, 0] == header[0]).all():
            raise RuntimeError(f"round {header[0]} met the rounds {headers[:, 0].tolist()} of the ranks {list(group)}")
        totals = {True: iter(large), False: iter(small)}
        return tuple(headers[:, 1].tolist()), tuple(next(totals[large]) for large in is_large)

    def prepare(self, group: tuple[int, ...], buffers: Buffers) -> None:
        """Compiles the exchange of such buffers with a group, without making it."""
        members = _Members(self.comm, group)
        sum_up, all_gather = self._compiled(group)
        into = self.memory(tuple(filter(members.is_large, buffers)))
        shares = self._memory_of_shares(members, buffers)
        arguments = np.zeros(3, np.int32)
        sum_up.lower(arguments, buffers, shares or into).compile()
        if shares:
            all_gather.lower(arguments, shares, into).compile()

    def barrier(self) -> None:
        """Waits until all workers have called it. No exchange may be in progress."""
        meet(self.comm)

    def release(self) -> None:
        """Gives the memory back that is kept for the next exchange."""
        self._shares = ()

    def _memory_of_shares(self, members: "_Members", buffers: Buffers) -> Buffers:
        """Memory for this member's shares of large buffers, that of the last ones if it fits; none for two members."""
        large = tuple(filter(members.is_large, buffers)) if members.size > 2 else ()
        shapes = tuple((members.blocks(own.size)[members.position][1], sum_dtype(own.dtype)) for own in large)
        if shapes != tuple((share.size, share.dtype) for share in self._shares):
            self._shares = ()  # released before more is allocated
            self._shares = self._uninitialized(shapes)
        return self._shares

    def _uninitialized(self, shapes: tuple[tuple[int, Any], ...]) -> Buffers:
        if not shapes:
            return ()
        if shapes not in self._allocate:
            members = _Members(self.comm, (self.comm.rank,))
            function = lambda: tuple(members.uninitialized(size, dtype) for size, dtype in shapes)
            self._allocate[shapes] = jax.jit(_without_effects(function), out_shardings=self._here)
        return self._allocate[shapes]()

    def _compiled(self, group: tuple[int, ...]) -> tuple[Any, Any]:
        """The functions of a group: one that sums, and one that gathers the shares of more than two members."""
        if group not in self._exchanges:
            members = _Members(self.comm, group)  # no closure over what holds it
            here = self._here
            jitted = lambda function: jax.jit(
                _without_effects(functools.partial(function, members)),
                donate_argnums=2,
                keep_unused=True,
                in_shardings=here,
                out_shardings=here,
            )
            self._exchanges[group] = jitted(_sum_up), jitted(_all_gather)
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
    """A group of which this process is a member. Members are named by their positions in it."""

    comm: MPI.Intracomm
    group: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.group)

    @property
    def position(self) -> int:
        return self.group.index(self.comm.rank)

    def others(self, direction: int) -> list[int]:
        """All others, the next (1) or the previous one (-1) first, so that not all turn to the same one."""
        return [(self.position + direction * step) % self.size for step in range(1, self.size)]

    def is_large(self, buffer: jax.Array) -> bool:
        """Whether a buffer is sent ahead."""
        return buffer.size * buffer.dtype.itemsize > (LARGE_BYTES_OF_TWO if self.size <= 2 else LARGE_BYTES)

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """What each member sums of a large buffer: (start, size). Two sum everything, more an n-th each."""
        n = self.size
        if n <= 2:
            return [(0, size)] * n
        return [(k * size // n, (k + 1) * size // n - k * size // n) for k in range(n)]

    @property
    def block_message_bytes(self) -> int:
        """Of the messages of blocks, since one from every other member is held at a time."""
        return max(LEAST_MESSAGE_BYTES, MESSAGE_BYTES // max(1, self.size - 1))

    def send_blocks(self, own: jax.Array) -> list[MPI.Request]:
        """Begins to send each other member the block of a large buffer that it sums."""
        blocks = self.blocks(own.size)
        return self._send_ahead(own, {dest: blocks[dest] for dest in self.others(1)}, self.block_message_bytes)

    def send_share(self, share: jax.Array) -> list[MPI.Request]:
        """Begins to send all others the block that this member has summed."""
        return self._send_ahead(share, dict.fromkeys(self.others(1), (0, share.size)), MESSAGE_BYTES)

    def _send_ahead(
        self, array: jax.Array, blocks: dict[int, tuple[int, int]], message_bytes: int
    ) -> list[MPI.Request]:
        """Begins to send each member its block, (start, size), in the messages that ``_in_pieces`` receives."""
        datatype, itemsize = _carrier(array.dtype).char, array.dtype.itemsize  # a predefined datatype: none to free
        address = array.unsafe_buffer_pointer()
        requests = []
        for dest, (start, size) in blocks.items():
            piece, count = _pieces(size, itemsize, message_bytes)
            for i in range(count):
                at = start + min(i * piece, size - piece)
                message = MPI.buffer.fromaddress(address + at * itemsize, piece * itemsize, readonly=True)
                requests.append(self.comm.Isend([message, datatype], self.group[dest], _AHEAD))
        return requests

    def receive_ahead(self, source: int, size: int, dtype: Any) -> jax.Array:
        """Receives the next message of what another member has sent ahead."""
        like = jnp.zeros(size, _carrier(dtype))  # only its shape is used
        received = mpi4jax.recv(like, source=self.group[source], tag=_AHEAD, comm=self.comm)
        return lax.bitcast_convert_type(received, dtype)

    def swap(self, block: jax.Array, dest: int, source: int, size: int, dtype: Any) -> jax.Array:
        """Sends ``block`` to one member and receives ``size`` elements of ``dtype`` from another."""
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


def _sum_up(members: _Members, arguments: jax.Array, buffers: Buffers, into: Buffers):
    """All members' headers, [n, 2]; the small buffers' totals, divided; and this member's blocks of the large ones'.

    Blocks are divided here if there is nothing left to gather. Headers ride along with a small float32 buffer, if there
    is one.
    """
    slots = jnp.zeros((members.size, 2), arguments.dtype).at[members.position].set(arguments[:2])
    divisor = arguments[2]
    small = list(itertools.filterfalse(members.is_large, buffers))
    totals: list[jax.Array] = []
    if small and small[0] is buffers[0] and small[0].dtype == jnp.float32:
        halves = jnp.stack([slots >> 16, slots & 0xFFFF], -1).astype(jnp.float32)  # exact, and summed with zeros
        own = small.pop(0)
        sums = _sum(members, jnp.concatenate([own, halves.ravel()]), own.dtype)
        high, low = jnp.moveaxis(sums[own.size :].reshape(halves.shape).astype(arguments.dtype), -1, 0)
        headers = (high << 16) + low
        totals.append(divided(sums[: own.size], divisor))
    else:
        headers = _sum(members, slots.ravel(), arguments.dtype).reshape(slots.shape)
    totals += [divided(_sum(members, own, sum_dtype(own.dtype)), divisor) for own in small]
    large = filter(members.is_large, buffers)
    finish = (lambda total: divided(total, divisor)) if members.size <= 2 else lambda total: total
    blocks = tuple(_sum_block(members, own, out, finish) for own, out in zip(large, into, strict=True))
    return headers, tuple(totals), blocks


def _sum_block(
    members: _Members, own: jax.Array, out: jax.Array, finish: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The sum of what the others have sent ahead of a large buffer and of this member's own; ``finish`` of it."""
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

        return _in_pieces(piece, itemsize, CHUNK_BYTES, sum_chunk, out)

    return _in_pieces(size, itemsize, members.block_message_bytes, sum_message, out)


def _all_gather(members: _Members, arguments: jax.Array, shares: Buffers, into: Buffers) -> Buffers:
    """All members' blocks of the totals, of which the others have sent theirs ahead, divided.

    By each member for itself: one that is late wants the sum.
    """
    return tuple(_gather(members, share, out, arguments[2]) for share, out in zip(shares, into, strict=True))


def _gather(members: _Members, share: jax.Array, out: jax.Array, divisor: jax.Array) -> jax.Array:
    blocks, itemsize = members.blocks(out.size), out.dtype.itemsize

    def place(message, begin, out):
        chunk = lambda at, piece, out: _put(out, divided(_slice(message, at, piece), divisor), begin + at)
        return _in_pieces(message.size, itemsize, CHUNK_BYTES, chunk, out)

    out = place(share, blocks[members.position][0], out)
    for source in members.others(-1):
        start, size = blocks[source]
        receive = lambda at, piece, out, source=source, start=start: place(
            members.receive_ahead(source, piece, out.dtype), start + at, out
        )
        out = _in_pieces(size, itemsize, MESSAGE_BYTES, receive, out)
    return out


def _pieces(size: int, itemsize: int, piece_bytes: int) -> tuple[int, int]:
    """The size and the number of the equal pieces, of at most about ``piece_bytes``; the last two may overlap."""
    piece = math.ceil(size / max(1, math.ceil(size * itemsize / piece_bytes)))
    return piece, math.ceil(size / piece)


def _in_pieces(size: int, itemsize: int, piece_bytes: int, body: Callable[[Any, int, Any], Any], value: Any) -> Any:
    """``value = body(start, piece, value)`` for all ``_pieces``."""
    piece, count = _pieces(size, itemsize, piece_bytes)
    if count == 1:
        return body(0, piece, value)
    return lax.fori_loop(0, count, lambda i, value: body(jnp.minimum(i * piece, size - piece), piece, value), value)


def _slice(buffer: jax.Array, start: Any, size: int) -> jax.Array:
    return lax.dynamic_slice(buffer, (start,), (size,))


def _put(buffer: jax.Array, block: jax.Array, start: Any) -> jax.Array:
    return lax.dynamic_update_slice(buffer, block, (start,))


def _sum(members: _Members, own: jax.Array, wide: Any) -> jax.Array:
    """The sum of a small buffer over the members, in dtype ``wide``."""
    n = members.size
    if n & (n - 1):
        return _pairwise(members, own, wide)
    if n <= 2 or own.size * own.dtype.itemsize <= SMALL_BYTES:
        return _recursive_doubling(members, own, wide)
    return _halving_doubling(members, own, wide)


def _recursive_doubling(members: _Members, block: jax.Array, wide: Any) -> jax.Array:
    mask = members.size // 2
    block = block if mask else widened(block, wide)
    while mask:
        partner = members.position ^ mask
        received = members.swap(block, partner, partner, block.size, block.dtype)
        block = widened(block, wide) + widened(received, wide)
        mask //= 2
    return block


def _halving_doubling(members: _Members, block: jax.Array, wide: Any) -> jax.Array:
    n, position = members.size, members.position
    bounds = [k * block.size // n for k in range(n + 1)]
    low, high = 0, n  # of the n-ths that ``block`` holds
    mask = n // 2
    while mask:
        middle, partner = (low + high) // 2, position ^ mask
        lower, upper = jnp.split(block, [bounds[middle] - bounds[low]])
        kept, sent = (upper, lower) if position & mask else (lower, upper)
        received = members.swap(sent, partner, partner, kept.size, kept.dtype)
        block = widened(kept, wide) + widened(received, wide)
        low, high = (middle, high) if position & mask else (low, middle)
        mask //= 2
    mask = 1
    while mask < n:
        partner, width = position ^ mask, high - low
        at = low - width if position & mask else high  # where the partner's begin
        received = members.swap(block, partner, partner, bounds[at + width] - bounds[at], wide)
        block = jnp.concatenate([received, block] if at < low else [block, received])
        low = min(low, at)
        high = low + 2 * width
        mask *= 2
    return block


def _pairwise(members: _Members, own: jax.Array, wide: Any) -> jax.Array:
    n, position = members.size, members.position
    nths = jnp.split(own, [k * own.size // n for k in range(1, n)])
    mine = nths[position]
    summands = [mine] * n
    for dest, source in zip(members.others(1), members.others(-1), strict=True):
        summands[source] = members.swap(nths[dest], dest, source, mine.size, mine.dtype)
    total = sum_in_order([widened(summand, wide) for summand in summands])
    totals = [total] * n
    for dest, source in zip(members.others(1), members.others(-1), strict=True):
        totals[source] = members.swap(total, dest, source, nths[source].size, wide)
    return jnp.concatenate(totals)
