"""Exchanges as jitted functions over ``mpi4jax``, compiled once for each group."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI

from wagma_jax.averaging import divided
from wagma_jax.exchange.barrier import barrier
from wagma_jax.exchange.storage import Buffers, ready, sum_dtype
from wagma_jax.exchange.wire.halving import sum_by_halving
from wagma_jax.exchange.wire.large import gather, sum_block
from wagma_jax.exchange.wire.members import Members, may_be_large
from wagma_jax.exchange.wire.small import sum_small
from wagma_jax.jax_internals import without_effects


class Wire:
    """Exchanges buffers between this process and groups of others.

    Args:
        comm: The communicator of all workers, used by nobody else.
        device: The CPU device of the buffers.
    """

    def __init__(self, comm: MPI.Intracomm, device: Any):
        self.comm = comm
        # explicit, since committed and uncommitted arrays would each get a compilation of their own
        self._here = jax.sharding.SingleDeviceSharding(device)
        self._exchanges: dict[tuple[int, ...], tuple[Any, Any]] = {}
        self._gathers: dict[tuple[int, ...], Any] = {}
        self._allocate: dict[Any, Any] = {}
        self._nothing = jax.device_put(np.zeros(0, np.float32), device)  # in the place of memory that is not needed
        self._shares: Buffers = ()  # memory for this member's blocks, kept from one exchange to the next
        self._in_flight: Any = None  # what others may still read; kept even if an exchange fails

    def memory(self, buffers: Buffers) -> Buffers:
        """Uninitialized memory for the result of an exchange of such buffers, for its ``memory`` argument.

        Small buffers need none.

        The thread that calls this allocates it. glibc reuses freed memory for large requests only in the arena of the
        main thread; elsewhere it gets every page from the system anew.
        """
        large = [may_be_large(own) for own in buffers]
        shapes = tuple((own.size, sum_dtype(own.dtype)) for own in itertools.compress(buffers, large))
        allocated = iter(self._uninitialized(shapes))
        return tuple(next(allocated) if is_large else self._nothing for is_large in large)

    def exchange(
        self, group: tuple[int, ...], divisor: int, header: tuple[int, int], buffers: Buffers, memory: Buffers
    ) -> tuple[tuple[int, ...], Buffers]:
        """Sums the buffers of a group; compiles at the first call for a group. Blocks until the sum is there.

        Args:
            group: Ascending ranks, this one among them. All call this for the same round, with the same shapes and
                dtypes.
            divisor: What this member's result is divided by: 1 for the sum, the group's size for the mean. Members
                may pass different ones.
            header: (round, version of this contribution).
            buffers: This worker's contribution: 1-D arrays on a CPU device, left as they are. Nobody may donate or
                delete them meanwhile: the other members read their memory, and JAX does not know.
            memory: Where the result goes, from ``memory``; donated where the buffer is large.

        Returns:
            The version of each member's contribution, and the results, in the accumulation dtypes.

        Raises:
            RuntimeError: The members are not at the same round (a bug of this library).
        """
        members = Members(self.comm, group)
        sum_up, all_gather = self._compiled(group)
        ready(buffers)  # from here on the others read their memory
        is_large = [members.is_large(own) for own in buffers]
        into = tuple(itertools.compress(memory, is_large))
        sent: list[MPI.Request] = []
        self._in_flight = buffers, sent
        for own in itertools.compress(buffers, is_large if members.is_direct else ()):
            sent += members.send_blocks(own)
        shares = self._memory_of_shares(members, buffers)
        arguments = np.asarray((*header, divisor), np.int32)
        headers, small, large = sum_up(arguments, buffers, shares or into)
        if shares:
            self._shares = ready(large)
            sent += [request for share in large for request in members.send_share(share)]
            large = all_gather(arguments, large, into)
        ready((headers, *small, *large))
        if sent:
            MPI.Request.Waitall(sent)
        self._in_flight = None
        rounds, versions = zip(*np.asarray(headers).tolist(), strict=True)
        if rounds.count(header[0]) < len(rounds):
            raise RuntimeError(f"round {header[0]} met the rounds {list(rounds)} of the ranks {list(group)}")
        totals = {True: iter(large), False: iter(small)}
        return versions, tuple(next(totals[large]) for large in is_large)

    def prepare(self, group: tuple[int, ...], buffers: Buffers) -> None:
        """Compiles the exchange of such buffers with a group."""
        members = Members(self.comm, group)
        sum_up, all_gather = self._compiled(group)
        into = self.memory(tuple(filter(members.is_large, buffers)))
        shares = self._memory_of_shares(members, buffers)
        arguments = np.zeros(3, np.int32)
        sum_up.lower(arguments, buffers, shares or into).compile()
        if shares:
            all_gather.lower(arguments, shares, into).compile()

    def gather(self, group: tuple[int, ...], number: int) -> tuple[int, ...]:
        """The integer of each member, below 2^31; compiles at the first call for a group. All members call it."""
        return tuple(np.asarray(self._gather(group)(np.asarray([number], np.int32))).tolist())

    def prepare_gather(self, group: tuple[int, ...]) -> None:
        """Compiles ``gather`` for a group."""
        self._gather(group).lower(np.zeros(1, np.int32)).compile()

    def barrier(self) -> None:
        """Waits until all workers have called it. No exchange may be in progress."""
        barrier(self.comm)

    def release(self) -> None:
        """Frees the memory that is kept for the next exchange."""
        self._shares = ()

    def _memory_of_shares(self, members: Members, buffers: Buffers) -> Buffers:
        """Memory for this member's blocks of large buffers, that of the last ones if it fits.

        None in groups of two, nor in those that sum in log2 steps.
        """
        large = tuple(filter(members.is_large, buffers)) if members.is_direct and members.size > 2 else ()
        shapes = tuple((members.blocks(own.size)[members.position][1], sum_dtype(own.dtype)) for own in large)
        if shapes != tuple((share.size, share.dtype) for share in self._shares):
            self._shares = ()  # released before more is allocated
            self._shares = self._uninitialized(shapes)
        return self._shares

    def _uninitialized(self, shapes: tuple[tuple[int, Any], ...]) -> Buffers:
        if not shapes:
            return ()
        if shapes not in self._allocate:
            members = Members(self.comm, (self.comm.rank,))
            function = lambda: tuple(members.uninitialized(size, dtype) for size, dtype in shapes)
            self._allocate[shapes] = jax.jit(without_effects(function), out_shardings=self._here)
        return self._allocate[shapes]()

    def _compiled(self, group: tuple[int, ...]) -> tuple[Any, Any]:
        """The functions of a group: one sums, the other gathers the blocks (in groups of 3 to 16)."""
        if group not in self._exchanges:
            jitted = functools.partial(self._jitted, group, donate_argnums=2)
            self._exchanges[group] = jitted(_sum_up), jitted(_all_gather)
        return self._exchanges[group]

    def _gather(self, group: tuple[int, ...]) -> Any:
        if group not in self._gathers:
            self._gathers[group] = self._jitted(group, _gather_numbers)
        return self._gathers[group]

    def _jitted(self, group: tuple[int, ...], function: Any, **options: Any) -> Any:
        members = Members(self.comm, group)  # the closure must not hold the object that holds it
        return jax.jit(
            without_effects(functools.partial(function, members)),
            keep_unused=True,
            in_shardings=self._here,
            out_shardings=self._here,
            **options,
        )


def _sum_up(members: Members, arguments: jax.Array, buffers: Buffers, into: Buffers):
    """All members' headers, [n, 2]; the small buffers' totals, divided; this member's blocks of the large ones' totals.

    Blocks are divided here if nothing is left to gather; in groups that sum in log2 steps they are the whole totals.
    If the first buffer is small and float32, headers travel with it.
    """
    slots = jnp.zeros((members.size, 2), arguments.dtype).at[members.position].set(arguments[:2])
    divisor = arguments[2]
    small = list(itertools.filterfalse(members.is_large, buffers))
    totals: list[jax.Array] = []
    if small and small[0] is buffers[0] and small[0].dtype == jnp.float32:
        halves = jnp.stack([slots >> 16, slots & 0xFFFF], -1).astype(jnp.float32)  # exact, and summed with zeros
        own = small.pop(0)
        sums = sum_small(members, jnp.concatenate([own, halves.ravel()]), own.dtype)
        high, low = jnp.moveaxis(sums[own.size :].reshape(halves.shape).astype(arguments.dtype), -1, 0)
        headers = (high << 16) + low
        totals.append(divided(sums[: own.size], divisor))
    else:
        headers = sum_small(members, slots.ravel(), arguments.dtype).reshape(slots.shape)
    totals += [divided(sum_small(members, own, sum_dtype(own.dtype)), divisor) for own in small]
    large = filter(members.is_large, buffers)
    if not members.is_direct:
        whole = (sum_by_halving(members, own, out, divisor) for own, out in zip(large, into, strict=True))
        return headers, tuple(totals), tuple(whole)
    finish = (lambda total: divided(total, divisor)) if members.size <= 2 else lambda total: total
    blocks = tuple(sum_block(members, own, out, finish) for own, out in zip(large, into, strict=True))
    return headers, tuple(totals), blocks


def _gather_numbers(members: Members, own: jax.Array) -> jax.Array:
    """All members' numbers, [n]."""
    slots = jnp.zeros(members.size, own.dtype).at[members.position].set(own[0])
    return sum_small(members, slots, own.dtype)


def _all_gather(members: Members, arguments: jax.Array, shares: Buffers, into: Buffers) -> Buffers:
    """The large buffers' totals, divided."""
    return tuple(gather(members, share, out, arguments[2]) for share, out in zip(shares, into, strict=True))
