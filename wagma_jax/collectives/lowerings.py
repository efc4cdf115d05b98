"""How a group's sum is exchanged: one function for each lowering; see ``collectives``."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxlib import version as jaxlib_version

from wagma_jax.averaging import accumulation_dtype
from wagma_jax.schedule import Groups

Lowering = Literal["auto", "psum", "reduce_scatter", "ppermute", "matrix"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)


def check_lowering(lowering: str) -> None:
    """ValueError for an unknown lowering."""
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {lowering!r}: 'auto' suits most")


class GroupTables(NamedTuple):
    """A partition as arrays, to be indexed by the worker.

    Attributes:
        which: [num_workers], the index of a worker's group.
        rank: [num_workers], a worker's place in its group.
        size: [num_workers], the number of workers in its group.
        core: [num_workers], the largest power of two that is at most ``size``.
        members: [num_groups, largest size], the workers of each group, filled up with the first.
    """

    which: Any
    rank: Any
    size: Any
    core: Any
    members: Any


def group_tables(groups: Groups) -> GroupTables:
    """Tables of a partition, as NumPy arrays."""
    num_workers, largest = sum(map(len, groups)), max(map(len, groups))
    which, rank, size, core = np.zeros((4, num_workers), np.int32)
    for i, group in enumerate(groups):
        which[list(group)] = i
        rank[list(group)] = range(len(group))
        size[list(group)] = len(group)
        core[list(group)] = _core(len(group))
    members = np.array([[*group, *([group[0]] * (largest - len(group)))] for group in groups], np.int32)
    return GroupTables(which, rank, size, core, members)


def _psum(x, axis_name, groups, tables, vmapped):
    del tables, vmapped
    return lax.psum(widen(x), axis_name, axis_index_groups=[list(group) for group in groups])


def _reduce_scatter(x, axis_name, groups, tables, vmapped):
    del tables, vmapped
    lists = [list(group) for group in groups]
    padded = jnp.pad(widen(x).reshape(-1), (0, -x.size % len(groups[0])))
    shard = lax.psum_scatter(padded, axis_name, axis_index_groups=lists, tiled=True)
    return lax.all_gather(shard, axis_name, axis_index_groups=lists, tiled=True)[: x.size].reshape(x.shape)


def _ppermute(x, axis_name, groups, tables, vmapped):
    """Recursive doubling; members beyond a power of two add to a partner first and get its result last.

    Both partners add the same two numbers at each step, so all members get the same bits.
    """
    num_workers = sum(map(len, groups))
    index = lax.axis_index(axis_name)
    rank, size, core = (table[index] for table in (tables.rank, tables.size, tables.core))

    def send(x, pairs, receives):
        """``lax.ppermute``, in which workers that no pair names as destination receive zeros."""
        if not vmapped or len(pairs) == num_workers:
            return lax.ppermute(x, axis_name, pairs)
        sources, destinations = map(set, zip(*pairs, strict=True))
        everyone = set(range(num_workers))
        idle = zip(sorted(everyone - sources), sorted(everyone - destinations), strict=True)
        received = lax.ppermute(x, axis_name, [*pairs, *idle])  # under vmap only whole permutations exist
        return jnp.where(receives, received, 0)

    total = widen(x)
    hop = x  # the first hop carries the leaf's own dtype
    extras = [
        (group[j], group[j - _core(len(group))]) for group in groups for j in range(_core(len(group)), len(group))
    ]
    if extras:
        hop = total = total + widen(send(hop, extras, rank < size - core))
    for i in range(max(_core(len(group)) for group in groups).bit_length() - 1):
        bit = 1 << i
        pairs = [
            (group[j], group[j ^ bit]) for group in groups if _core(len(group)) > bit for j in range(_core(len(group)))
        ]
        hop = total = total + widen(send(hop, pairs, (rank < core) & (core > bit)))
    if extras:
        final = send(total, [(b, a) for a, b in extras], rank >= core)
        total = jnp.where(rank >= core, final, total)
    return total


def _matrix(x, axis_name, groups, tables, vmapped):
    """Sums of all groups from one gather; under ``vmap`` neither the gather nor the sums are batched."""
    del vmapped
    everyone = widen(lax.all_gather(x, axis_name))  # [num_workers, ...]
    members = tables.members  # [num_groups, largest size]
    size = members.shape[1]
    sizes = tables.size[members[:, 0]]  # [num_groups]
    if size < 8:
        total = everyone[members[:, 0]]  # [num_groups, ...]
        for j in range(1, size):
            row = everyone[members[:, j]]
            total = total + (row if equal_sizes(groups) else jnp.where((sizes > j).reshape(-1, *[1] * x.ndim), row, 0))
    else:
        rows = everyone[members]  # [num_groups, size, ...]
        if not equal_sizes(groups):
            valid = jnp.arange(size) < sizes[:, None]
            rows = jnp.where(valid.reshape(*valid.shape, *[1] * x.ndim), rows, 0)
        total = sum_rows(rows, 1)
    return total[tables.which[lax.axis_index(axis_name)]]


GROUP_SUMS: dict[Lowering, Callable[..., jax.Array]] = {
    "psum": _psum,
    "reduce_scatter": _reduce_scatter,
    "ppermute": _ppermute,
    "matrix": _matrix,
}
"""Functions of (leaf, axis name, groups, tables, whether under vmap) that return the sum of the worker's group."""


def reduce_scatter_is_wrong() -> bool:
    """Whether this JAX reduces and scatters through its broken Gloo: wrong sums of large arrays, without an error."""
    release = tuple(map(int, jaxlib_version.__version__.split(".")[:2]))
    return release < (0, 12) and jax.default_backend() == "cpu" and jax.process_count() > 1


def sum_rows(x, axis):
    """The sum over a short axis as a product with ones; on CPUs several times faster than a reduction."""
    return jnp.tensordot(jnp.ones(x.shape[axis], x.dtype), x, (0, axis), precision=lax.Precision.HIGHEST)


def widen(x: jax.Array) -> jax.Array:
    """In the accumulation dtype: a sum of one."""
    return x.astype(accumulation_dtype(x.dtype))


def equal_sizes(groups: Groups) -> bool:
    """Whether all groups have as many members."""
    return len({len(group) for group in groups}) == 1


def _core(size: int) -> int:
    return 1 << (size.bit_length() - 1)
