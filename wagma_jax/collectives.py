"""The group mean inside XLA: sums over groups of a mapped axis, in every lowering and under every mapping.

What the rounds mean (lateness, sync, policies) does not belong here.

Lowerings of a group's sum:

- ``psum``: one grouped all-reduce. Under ``pmap`` and ``shard_map(check_vma=False)``.
- ``reduce_scatter``: a grouped ``psum_scatter`` and ``all_gather``. Under ``pmap`` and ``shard_map`` with any
  ``check_vma``; groups of equal size. Not on CPUs of several processes before JAX 0.12, where it gives wrong sums.
- ``ppermute``: recursive doubling between partners. Anywhere; the first hop carries the leaf's own dtype.
- ``matrix``: the rows of each group in an ``all_gather``, summed. Anywhere, and best under ``vmap``, where the gather
  costs nothing; elsewhere every worker receives all models.

All add in float32 or wider and in an order that does not depend on the member, so members get the same bits.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType

from wagma_jax.averaging import accumulation_dtype, average_inexact, leaf_name, leaf_policies, merge
from wagma_jax.schedule import Groups

AxisName = str | tuple[str, ...]
Lowering = Literal["auto", "psum", "reduce_scatter", "ppermute", "matrix"]
LOWERINGS: tuple[Lowering, ...] = ("auto", "psum", "reduce_scatter", "ppermute", "matrix")

_FUSE_BELOW = 1 << 18
"""Leaves of fewer elements travel together, in one buffer per dtype; larger ones alone, since a copy would cost more
than a message."""


def group_mean(tree: Any, axis_name: AxisName, groups: Sequence[Sequence[int]], *, lowering: Lowering = "auto") -> Any:
    """The mean over each worker's group, of the floating and complex leaves.

    Call it per worker: inside ``shard_map``, ``pmap`` or ``vmap(axis_name=...)``.

    Args:
        tree: This worker's pytree; leaves of any shape. Integers, booleans and PRNG keys are returned as they are.
        axis_name: The mapped axis (or tuple of mesh axes, row-major) whose indices are the workers.
        groups: A static partition of the workers, for example ``schedule.groups(0)``.
        lowering: How the sum is exchanged (see the module); "auto" takes the fastest that works in the context.

    Returns:
        The tree, means in the leaves' own dtypes, summed in float32 or wider; all members of a group get the same bits.
        Differentiable in reverse mode.

    Raises:
        ValueError: ``axis_name`` is not bound, ``groups`` is no partition of its workers, or ``lowering`` is unknown
            or does not work in this context.
    """
    check_lowering(lowering)
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)
    partition = _check_partition(groups, num_workers)

    def body(vmapped, tables, leaves):
        buffers, unpack = pack(leaves)
        sums = unpack(group_sums(buffers, axis_name, partition, tables, lowering, vmapped))
        size = tables.size[lax.axis_index(axis_name)]
        return [merge(total, leaf, size) for total, leaf in zip(sums, leaves, strict=True)]

    return _on_inexact(_self_adjoint(lambda leaves: per_worker(body, axis_name, group_tables(partition), leaves)), tree)


def consensus(tree: Any, axis_name: AxisName = "data") -> Any:
    """The consensus model: the global mean over all workers, of the floating and complex leaves.

    Args:
        tree: This worker's pytree. Integers, booleans and PRNG keys are returned as they are.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.

    Returns:
        The tree, equal on all workers (under ``check_vma``, invariant over the axis), in the leaves' own dtypes; sums
        are taken in float32 or wider. Outside of the mapping, any worker's copy is the consensus model.

    Raises:
        ValueError: ``axis_name`` is not bound.
    """
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)
    if not _tracks_varying(axis_name):
        return mean_of_all(tree, axis_name)

    return _on_inexact(lambda leaves: _global_means(leaves, axis_name, num_workers, varying=False), tree)


def consensus_distance(tree: Any, axis_name: AxisName = "data") -> jax.Array:
    """How far the workers' models are apart: ``sqrt(1/P sum_i ||W_i - mean||^2)``.

    The root mean square, over workers, of the Euclidean distance between a worker's model and the consensus, over all
    floating and complex leaves together.

    Args:
        tree: This worker's pytree.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.

    Returns:
        A float scalar, equal on all workers; at least float32. 0 for a tree without such leaves. Other mesh axes are
        not summed over: where a model is sharded over one, this is the distance of a shard.

    Raises:
        ValueError: ``axis_name`` is not bound.
    """
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)
    leaves, _ = _split_inexact(tree)
    wide = [leaf.astype(accumulation_dtype(leaf.dtype)) for leaf in leaves]
    means = consensus(wide, axis_name)
    squares = [jnp.sum(jnp.square(jnp.abs(leaf - mean))) for leaf, mean in zip(wide, means, strict=True)]
    total = sum(squares, start=jnp.zeros((), jnp.float32))
    if num_workers > 1 and squares:
        total = lax.psum(total, axis_name)
    return jnp.sqrt(total / num_workers)


# What follows serves the modules beside this one.


def mean_of_all(tree: Any, axis_name: AxisName) -> Any:
    """As :func:`consensus`, but each worker's own copy under ``check_vma``, like what it was computed from."""
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)

    def body(vmapped, _, leaves):
        return _global_means(leaves, axis_name, num_workers, vmapped)

    return _on_inexact(_self_adjoint(lambda leaves: per_worker(body, axis_name, (), leaves)), tree)


def _global_means(
    leaves: list[jax.Array], axis_name: AxisName, num_workers: int, vmapped: bool = False, varying: bool = True
) -> list[jax.Array]:
    buffers, unpack = pack(leaves)
    sums = unpack(global_sums(buffers, axis_name, num_workers, vmapped, varying))
    return [merge(total, leaf, num_workers) for total, leaf in zip(sums, leaves, strict=True)]


def check_lowering(lowering: str) -> None:
    """ValueError for an unknown lowering."""
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {lowering!r}: 'auto' suits most")


def canonical_axis(axis_name: AxisName) -> AxisName:
    """A single name, or a tuple of at least two."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"axis_name must be a name or a tuple of names, got {axis_name!r}: pass for example 'data'")
    return names[0] if len(names) == 1 else tuple(names)


def axis_size(axis_name: AxisName) -> int:
    """The number of workers along a mapped axis; ValueError where it is not bound."""
    try:
        return lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis {axis_name!r} is not bound here: call this per worker, inside jax.shard_map over a mesh with that "
            f"axis, jax.pmap or jax.vmap with axis_name={axis_name!r}, or wagma_jax.for_workers"
        ) from None


def check_varying(tree: Any, axis_name: AxisName) -> None:
    """Refuses leaves that ``check_vma`` knows to be replicated over the axis.

    Gradients of replicated parameters are summed over the workers by JAX before an optimizer sees them; averaging such
    parameters silently is a summed allreduce.

    Raises:
        ValueError: A floating leaf is invariant over ``axis_name``.
    """
    if not _tracks_varying(axis_name):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if average_inexact(path, leaf) == "mean" and not _is_varying(leaf, axis_name):
            raise ValueError(
                f"leaf {leaf_name(path)} is replicated over the worker axis {axis_name!r}, but each worker "
                "must own its parameters: JAX sums the gradients of replicated parameters over the workers. Give "
                "parameters and optimizer state a leading worker axis (wagma_jax.replicate) and pass them through "
                f"shard_map with in_specs and out_specs PartitionSpec({axis_name!r}), not PartitionSpec()"
            )


def pack(leaves: list[jax.Array]) -> tuple[list[jax.Array], Callable[[list[jax.Array]], list[jax.Array]]]:
    """Joins small leaves to buffers, so that fewer messages are sent.

    Only leaves of equal dtype that vary over the same mesh axes are joined, and none where the compiler may have
    sharded them over further axes: flattening would gather them.

    Returns:
        The buffers (large leaves stay alone, in their shapes), and a function from what became of the buffers (equal
        shapes, any dtypes) to what became of the leaves.
    """
    mesh_axes = jax.sharding.get_abstract_mesh().axis_names
    joined: dict[Any, list[int]] = {}
    checked = _all_manual() and _tracks_varying(mesh_axes)
    for i, leaf in enumerate(leaves):
        alone = leaf.size >= _FUSE_BELOW or not _all_manual()
        varies = tuple(_is_varying(leaf, name) for name in mesh_axes) if checked else ()
        joined.setdefault(i if alone else (leaf.dtype, varies), []).append(i)
    buffers = [
        leaves[indices[0]] if len(indices) == 1 else jnp.concatenate([leaves[i].reshape(-1) for i in indices])
        for indices in joined.values()
    ]

    def unpack(buffers):
        results: list[Any] = [None] * len(leaves)
        for buffer, indices in zip(buffers, joined.values(), strict=True):
            if len(indices) == 1:
                results[indices[0]] = buffer
                continue
            ends = list(np.cumsum([leaves[i].size for i in indices]))
            for i, start, end in zip(indices, [0, *ends[:-1]], ends, strict=True):
                results[i] = buffer[start:end].reshape(leaves[i].shape)
        return results

    return buffers, unpack


def widen(leaves: list[jax.Array]) -> list[jax.Array]:
    """Each leaf in the accumulation dtype: a sum of one."""
    return [_widen(leaf) for leaf in leaves]


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


def per_worker(body: Callable[..., Any], axis_name: AxisName, lockstep: Any, operands: Any) -> Any:
    """Calls ``body(vmapped, lockstep, operands)`` so that ``lockstep`` stays unbatched under ``vmap`` over the axis.

    ``lockstep`` holds real arrays that are equal on all workers, like the round. A ``vmap`` over the worker axis would
    batch them, and turn every ``switch`` on them into selects that execute all branches. Here the batching rule takes
    one of the equal values instead; other mappings pay nothing. It also tells ``body`` whether the axis is mapped by
    ``vmap``, which no collective tells dependably while ``scan`` or ``jit`` inside the ``vmap`` is traced.

    ``body`` must not close over arrays, not even constants: a ``cond`` around the call may batch them, which the rule
    would not see. They go into ``lockstep``.
    """

    def run(vmapped, lockstep, operands):
        return body(vmapped, jax.tree.map(jnp.asarray, lockstep), operands)  # constants of a jit come as NumPy arrays

    @custom_vmap
    def call(index, lockstep, operands):
        del index
        return run(False, lockstep, operands)

    @call.def_vmap
    def rule(axis_size, in_batched, index, lockstep, operands):
        index_batched, lockstep_batched, operands_batched = in_batched
        if index_batched:  # a vmap over the workers
            if not isinstance(axis_name, str):
                raise ValueError(f"vmap over workers takes one axis name, got {axis_name!r}: use a single vmap")
            equal = jax.tree.map(lambda x, batched: x.max(0) if batched else x, lockstep, lockstep_batched)
            mapped = jax.vmap(
                lambda operands: run(True, equal, operands),
                in_axes=(_axes(operands_batched),),
                axis_name=axis_name,
                axis_size=axis_size,
            )
            result = mapped(operands)
        else:  # a vmap over something else, such as seeds; the workers may be a vmap around it

            def several(vmapped, lockstep, operands):
                axes = (_axes(lockstep_batched), _axes(operands_batched))
                return jax.vmap(functools.partial(run, vmapped), axes, axis_size=axis_size)(lockstep, operands)

            result = per_worker(several, axis_name, lockstep, operands)
        return result, jax.tree.map(lambda _: True, result)

    return call(lax.axis_index(axis_name), lockstep, operands)


def global_sums(
    leaves: list[jax.Array], axis_name: AxisName, num_workers: int, vmapped: bool = False, varying: bool = True
) -> list[jax.Array]:
    """The sum of each leaf over all workers, in the accumulation dtype; each worker's own where ``varying``."""
    if num_workers == 1:
        return widen(leaves)

    def total(x):
        if vmapped:  # the psum of a vmap adds column by column, at a fraction of the memory's speed
            return _sum_rows(_widen(lax.all_gather(x, axis_name)), 0)
        result = lax.psum(_widen(x), axis_name)
        return _varying(result, axis_name) if varying else result

    return [total(leaf) for leaf in leaves]


def group_sums(
    leaves: list[jax.Array],
    axis_name: AxisName,
    groups: Groups,
    tables: GroupTables,
    lowering: Lowering,
    vmapped: bool,
) -> list[jax.Array]:
    """The sum of each leaf over this worker's group, in the accumulation dtype; see :func:`per_worker`."""
    num_workers = sum(map(len, groups))
    if len(groups) == num_workers:
        return widen(leaves)
    if len(groups) == 1 and lowering == "auto":
        return global_sums(leaves, axis_name, num_workers, vmapped)
    if vmapped and lowering in ("psum", "reduce_scatter"):
        raise ValueError(
            f"lowering={lowering!r} needs grouped collectives, which JAX does not have under vmap: "
            "pass 'auto' or 'matrix'"
        )
    if lowering == "reduce_scatter" and not _equal(groups):
        raise ValueError(
            f"lowering='reduce_scatter' needs groups of equal size, got sizes {sorted({len(g) for g in groups})}: "
            "pass 'auto' or 'ppermute', or a group_size that divides num_workers"
        )
    if lowering == "reduce_scatter" and _reduce_scatter_is_wrong():
        raise ValueError(
            "lowering='reduce_scatter' gives wrong sums on CPUs of several processes before JAX 0.12, got JAX "
            f"{jaxlib.__version__}: pass 'auto' or 'ppermute', or install JAX 0.12 or later"
        )

    def total(x, name):
        if name == "ppermute":
            return _ppermute(x, axis_name, groups, tables, vmapped)
        if name == "matrix":
            return _matrix(x, axis_name, groups, tables)
        return (_psum if name == "psum" else _reduce_scatter)(x, axis_name, groups)

    def choose(x):
        if lowering != "auto":
            return total(x, lowering)
        if vmapped:
            return total(x, "matrix")
        try:
            if _equal(groups) or jax.default_backend() != "tpu":  # TPUs have no unequal groups
                return total(x, "psum")
        except NotImplementedError:  # check_vma=True
            pass
        scatters = _equal(groups) and _all_manual() and not _reduce_scatter_is_wrong()
        return total(x, "reduce_scatter" if scatters else "ppermute")

    try:
        return [choose(leaf) for leaf in leaves]
    except NotImplementedError:
        raise ValueError(
            f"lowering={lowering!r} does not work in this context (grouped psum needs pmap or "
            "shard_map(check_vma=False)): pass 'auto'"
        ) from None


def _psum(x, axis_name, groups):
    return lax.psum(_widen(x), axis_name, axis_index_groups=[list(group) for group in groups])


def _reduce_scatter(x, axis_name, groups):
    lists = [list(group) for group in groups]
    padded = jnp.pad(_widen(x).reshape(-1), (0, -x.size % len(groups[0])))
    shard = lax.psum_scatter(padded, axis_name, axis_index_groups=lists, tiled=True)
    return lax.all_gather(shard, axis_name, axis_index_groups=lists, tiled=True)[: x.size].reshape(x.shape)


def _reduce_scatter_is_wrong() -> bool:
    """Whether this JAX reduces and scatters through its broken Gloo: wrong sums of large arrays, without an error."""
    release = tuple(map(int, jaxlib.__version__.split(".")[:2]))
    return release < (0, 12) and jax.default_backend() == "cpu" and jax.process_count() > 1


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

    total = _widen(x)
    hop = x  # the first hop carries the leaf's own dtype
    extras = [
        (group[j], group[j - _core(len(group))]) for group in groups for j in range(_core(len(group)), len(group))
    ]
    if extras:
        hop = total = total + _widen(send(hop, extras, rank < size - core))
    for i in range(max(_core(len(group)) for group in groups).bit_length() - 1):
        bit = 1 << i
        pairs = [
            (group[j], group[j ^ bit]) for group in groups if _core(len(group)) > bit for j in range(_core(len(group)))
        ]
        hop = total = total + _widen(send(hop, pairs, (rank < core) & (core > bit)))
    if extras:
        final = send(total, [(b, a) for a, b in extras], rank >= core)
        total = jnp.where(rank >= core, final, total)
    return total


def _matrix(x, axis_name, groups, tables):
    """Sums of all groups from one gather; under ``vmap`` neither the gather nor the sums are batched."""
    everyone = _widen(lax.all_gather(x, axis_name))  # [num_workers, ...]
    members = tables.members  # [num_groups, largest size]
    size = members.shape[1]
    sizes = tables.size[members[:, 0]]  # [num_groups]
    if size < 8:
        total = everyone[members[:, 0]]  # [num_groups, ...]
        for j in range(1, size):
            row = everyone[members[:, j]]
            total = total + (row if _equal(groups) else jnp.where((sizes > j).reshape(-1, *[1] * x.ndim), row, 0))
    else:
        rows = everyone[members]  # [num_groups, size, ...]
        if not _equal(groups):
            valid = jnp.arange(size) < sizes[:, None]
            rows = jnp.where(valid.reshape(*valid.shape, *[1] * x.ndim), rows, 0)
        total = _sum_rows(rows, 1)
    return total[tables.which[lax.axis_index(axis_name)]]


def _sum_rows(x, axis):
    """The sum over a short axis as a product with ones; on CPUs several times faster than a reduction."""
    return jnp.tensordot(jnp.ones(x.shape[axis], x.dtype), x, (0, axis), precision=lax.Precision.HIGHEST)


def _core(size: int) -> int:
    return 1 << (size.bit_length() - 1)


def _equal(groups: Groups) -> bool:
    return len({len(group) for group in groups}) == 1


def _all_manual() -> bool:
    """Whether the mesh has no axes but those of ``shard_map``; False under ``vmap``, where joining gains nothing."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return bool(kinds) and all(kind == AxisType.Manual for kind in kinds)


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(accumulation_dtype(x.dtype))


def _axes(batched: Any) -> Any:
    return jax.tree.map(lambda b: 0 if b else None, batched)


def _names(axis_name: AxisName) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else axis_name


def _varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Marks a result that is equal on all workers as each worker's own, where ``check_vma`` tells them apart."""
    if _tracks_varying(axis_name):
        for name in _names(axis_name):
            if not _is_varying(x, name):
                x = lax.pcast(x, name, to="varying")
    return x


def _tracks_varying(axis_name: AxisName) -> bool:
    """Whether ``check_vma`` is on: a worker's index, which always varies, cannot be cast to varying again."""
    name = _names(axis_name)[0]
    try:
        lax.pcast(lax.axis_index(name), name, to="varying")
    except ValueError:
        return True
    except AssertionError:  # vmap, whose axes have no such types
        return False
    return False


def _is_varying(x: Any, axis_name: AxisName) -> bool:
    """Whether x varies over (every one of) the axes, by asking for the cast that only invariant values allow."""
    for name in _names(axis_name):
        try:
            lax.pcast(x, name, to="varying")
        except ValueError:
            continue
        return False
    return True


def _split_inexact(tree: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """The floating and complex leaves as arrays, and a function that puts their successors back."""
    leaves, treedef = jax.tree.flatten(tree)
    chosen = [i for i, policy in enumerate(leaf_policies(tree)) if policy == "mean"]

    def rebuild(new):
        result = list(leaves)
        for i, leaf in zip(chosen, new, strict=True):
            result[i] = leaf
        return jax.tree.unflatten(treedef, result)

    return [jnp.asarray(leaves[i]) for i in chosen], rebuild


def _self_adjoint(mean: Callable[[list[jax.Array]], list[jax.Array]]) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """Reverse-mode derivative of a mean over groups: its mixing matrix is symmetric, so it is its own transpose."""
    differentiable = jax.custom_vjp(mean)
    differentiable.defvjp(
        lambda leaves: (differentiable(leaves), None), lambda _, cotangents: (differentiable(cotangents),)
    )
    return differentiable


def _on_inexact(function: Callable[[list[jax.Array]], list[jax.Array]], tree: Any) -> Any:
    leaves, rebuild = _split_inexact(tree)
    return rebuild(function(leaves)) if leaves else tree


def _check_partition(groups: Sequence[Sequence[int]], num_workers: int) -> Groups:
    try:
        partition = tuple(tuple(operator.index(worker) for worker in group) for group in groups)
    except TypeError:
        raise ValueError(
            f"groups must be a static sequence of sequences of worker indices, got {groups!r}: "
            "pass for example schedule.groups(0)"
        ) from None
    if sorted(worker for group in partition for worker in group) != list(range(num_workers)):
        raise ValueError(
            f"groups must be a partition of the axis's {num_workers} workers, got {partition}: name every worker from "
            f"0 to {num_workers - 1} exactly once, for example with GroupSchedule(num_workers={num_workers}, ...)"
        )
    return tuple(group for group in partition if group)
