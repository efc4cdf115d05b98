"""Sums of small buffers, whose members exchange one message after the other."""

from typing import Any

import jax
import jax.numpy as jnp

from wagma_jax.exchange.storage import widened
from wagma_jax.exchange.wire.members import Members
from wagma_jax.exchange.wire.sums import sum_in_order

SMALL_BYTES = 1 << 16  # up to which recursive doubling is used


def sum_small(members: Members, own: jax.Array, wide: Any) -> jax.Array:
    """The sum of a small buffer over the members, in dtype ``wide``."""
    if members.core.size == members.size:
        return _doubling(members, own, wide)
    return _pairwise(members, own, wide) if members.is_direct else _folded(members, own, wide)


def _doubling(members: Members, own: jax.Array, wide: Any) -> jax.Array:
    n = members.size
    if n <= 2 or own.size * own.dtype.itemsize <= SMALL_BYTES:
        return _recursive_doubling(members, own, wide)
    return _halving_doubling(members, own, wide)


def _recursive_doubling(members: Members, block: jax.Array, wide: Any) -> jax.Array:
    mask = members.size // 2
    block = block if mask else widened(block, wide)
    while mask:
        partner = members.position ^ mask
        received = members.swap(block, partner, partner, block.size, block.dtype)
        block = widened(block, wide) + widened(received, wide)
        mask //= 2
    return block


def _halving_doubling(members: Members, block: jax.Array, wide: Any) -> jax.Array:
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


def _pairwise(members: Members, own: jax.Array, wide: Any) -> jax.Array:
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


def _folded(members: Members, own: jax.Array, wide: Any) -> jax.Array:
    """Members beyond the core have one of the others sum for them."""
    partner = members.beyond
    if not members.is_in_core:
        assert partner is not None
        members.send(own, partner)
        return members.receive(partner, own.size, wide)
    block = widened(own, wide)
    if partner is not None:
        block = block + widened(members.receive(partner, own.size, own.dtype), wide)
    total = _doubling(members.core, block, wide)
    if partner is not None:
        members.send(total, partner)
    return total
