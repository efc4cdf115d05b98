"""Means over groups and over all workers, of whole trees; the functions that users call."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wagma_jax.averaging import PolicyFunction, accumulation_dtype, check_arrays, leaf_policies, merge
from wagma_jax.collectives.axes import AxisName, axis_size, canonical_axis, tracks_varying
from wagma_jax.collectives.lockstep import per_worker
from wagma_jax.collectives.lowerings import Lowering, check_lowering, group_tables
from wagma_jax.collectives.packing import pack
from wagma_jax.collectives.sums import global_sums, group_sums
from wagma_jax.schedule import Groups


def group_mean(
    tree: Any,
    axis_name: AxisName,
    groups: Sequence[Sequence[int]],
    *,
    lowering: Lowering = "auto",
    policy: PolicyFunction | None = None,
) -> Any:
    """The mean over each worker's group, of the floating and complex leaves.

    Call it per worker: inside ``shard_map``, ``pmap`` or ``vmap(axis_name=...)``.

    Args:
        tree: This worker's pytree; leaves of any shape. Integers, booleans and PRNG keys are returned as they are.
        axis_name: The mapped axis (or tuple of mesh axes, row-major) whose indices are the workers.
        groups: A static partition of the workers, for example ``schedule.groups(0)``.
        lowering: How the sum is exchanged, see ``wagma_jax.collectives``; "auto" takes the fastest that works here.
        policy: As of :class:`wagma_jax.GroupAverager`: leaves for which it returns "keep" are returned as they are.

    Returns:
        The tree, means in the leaves' own dtypes, summed in float32 or wider; all members of a group get the same bits.
        Differentiable in reverse mode.

    Raises:
        ValueError: ``axis_name`` is not bound, ``groups`` is no partition of its workers, or ``lowering`` is unknown
            or does not work in this context.
        TypeError: A leaf is no array.
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

    mean = _self_adjoint(lambda leaves: per_worker(body, axis_name, group_tables(partition), leaves))
    return _on_averaged(mean, tree, policy)


def consensus(tree: Any, axis_name: AxisName = "data", policy: PolicyFunction | None = None) -> Any:
    """The consensus model: the global mean over all workers, of the floating and complex leaves.

    Args:
        tree: This worker's pytree. Integers, booleans and PRNG keys are returned as they are.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        policy: As of :class:`wagma_jax.GroupAverager`: leaves for which it returns "keep" are returned as they are.

    Returns:
        The tree, equal on all workers (under ``check_vma``, invariant over the axis), in the leaves' own dtypes; sums
        are taken in float32 or wider. Outside of the mapping, any worker's copy is the consensus model.

    Raises:
        ValueError: ``axis_name`` is not bound.
        TypeError: A leaf is no array.
    """
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)
    if not tracks_varying(axis_name):
        return mean_of_all(tree, axis_name, policy)

    return _on_averaged(lambda leaves: _global_means(leaves, axis_name, num_workers, varying=False), tree, policy)


def consensus_distance(tree: Any, axis_name: AxisName = "data", policy: PolicyFunction | None = None) -> jax.Array:
    """How far the workers' models are apart: ``sqrt(1/P sum_i ||W_i - mean||^2)``.

    The root mean square, over workers, of the Euclidean distance between a worker's model and the consensus, over all
    floating and complex leaves together.

    Args:
        tree: This worker's pytree.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        policy: Leaves for which it returns "keep" do not count.

    Returns:
        A float scalar, equal on all workers; at least float32. 0 for a tree without such leaves. Other mesh axes are
        not summed over: where a model is sharded over one, this is the distance of a shard.

    Raises:
        ValueError: ``axis_name`` is not bound.
        TypeError: A leaf is no array.
    """
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)
    leaves, _ = _split_averaged(tree, policy)
    wide = [leaf.astype(accumulation_dtype(leaf.dtype)) for leaf in leaves]
    means = consensus(wide, axis_name)
    squares = [jnp.sum(jnp.square(jnp.abs(leaf - mean))) for leaf, mean in zip(wide, means, strict=True)]
    dtype = np.result_type(np.float32, *(square.dtype for square in squares))
    total = sum((square.astype(dtype) for square in squares), start=jnp.zeros((), dtype))
    if squares and (num_workers > 1 or tracks_varying(axis_name)):
        total = lax.psum(total, axis_name)
    return jnp.sqrt(total / num_workers)


def mean_of_all(tree: Any, axis_name: AxisName, policy: PolicyFunction | None = None) -> Any:
    """As :func:`consensus`, but each worker's own copy under ``check_vma``, like what it was computed from."""
    axis_name = canonical_axis(axis_name)
    num_workers = axis_size(axis_name)

    def body(vmapped, _, leaves):
        return _global_means(leaves, axis_name, num_workers, vmapped)

    return _on_averaged(_self_adjoint(lambda leaves: per_worker(body, axis_name, (), leaves)), tree, policy)


def _global_means(
    leaves: list[jax.Array], axis_name: AxisName, num_workers: int, vmapped: bool = False, varying: bool = True
) -> list[jax.Array]:
    buffers, unpack = pack(leaves)
    sums = unpack(global_sums(buffers, axis_name, num_workers, vmapped, varying))
    return [merge(total, leaf, num_workers) for total, leaf in zip(sums, leaves, strict=True)]


def _split_averaged(
    tree: Any, policy: PolicyFunction | None
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """The leaves that are averaged at some time as arrays, and a function that puts their successors back."""
    check_arrays(tree)
    leaves, treedef = jax.tree.flatten(tree)
    chosen = [i for i, kind in enumerate(leaf_policies(tree, policy)) if kind != "keep"]

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


def _on_averaged(
    function: Callable[[list[jax.Array]], list[jax.Array]], tree: Any, policy: PolicyFunction | None
) -> Any:
    leaves, rebuild = _split_averaged(tree, policy)
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
