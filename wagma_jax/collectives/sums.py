"""Sums over all workers and over groups, in the lowering that suits the context."""

import jax
from jax import lax
from jaxlib import version as jaxlib_version

from wagma_jax.collectives.axes import AxisName, all_manual, mark_varying
from wagma_jax.collectives.lowerings import (
    GROUP_SUMS,
    GroupTables,
    Lowering,
    equal_sizes,
    reduce_scatter_is_wrong,
    sum_rows,
    widen,
)
from wagma_jax.schedule import Groups


def global_sums(
    leaves: list[jax.Array], axis_name: AxisName, num_workers: int, vmapped: bool = False, varying: bool = True
) -> list[jax.Array]:
    """The sum of each leaf over all workers, in the accumulation dtype.

    Args:
        leaves: This worker's.
        axis_name: The mapped axis of the workers.
        num_workers: P.
        vmapped: Whether the axis is mapped by ``vmap``.
        varying: Whether ``check_vma`` is to take the sums for each worker's own. Else they are known to be equal.
    """
    if num_workers == 1 and varying:
        return [widen(leaf) for leaf in leaves]

    def total(x):
        if vmapped:  # the psum of a vmap adds column by column, at a fraction of the memory's speed
            return sum_rows(widen(lax.all_gather(x, axis_name)), 0)
        result = lax.psum(widen(x), axis_name)
        return mark_varying(result, axis_name) if varying else result

    return [total(leaf) for leaf in leaves]


def group_sums(
    leaves: list[jax.Array],
    axis_name: AxisName,
    groups: Groups,
    tables: GroupTables,
    lowering: Lowering,
    vmapped: bool,
) -> list[jax.Array]:
    """The sum of each leaf over this worker's group, in the accumulation dtype.

    Args:
        leaves: This worker's.
        axis_name: The mapped axis of the workers.
        groups: A partition of the workers.
        tables: Its tables, as arrays; under ``vmap`` they must not be batched (see ``per_worker``).
        lowering: How sums are exchanged.
        vmapped: Whether the axis is mapped by ``vmap``.

    Raises:
        ValueError: The lowering does not work in this context.
    """
    num_workers = sum(map(len, groups))
    if len(groups) == num_workers:
        return [widen(leaf) for leaf in leaves]
    if len(groups) == 1 and lowering == "auto":
        return global_sums(leaves, axis_name, num_workers, vmapped)
    _check_context(lowering, groups, vmapped)

    def total(x):
        if lowering != "auto":
            return GROUP_SUMS[lowering](x, axis_name, groups, tables, vmapped)
        if vmapped:
            return GROUP_SUMS["matrix"](x, axis_name, groups, tables, vmapped)
        try:
            if equal_sizes(groups) or jax.default_backend() != "tpu":  # TPUs have no unequal groups
                return GROUP_SUMS["psum"](x, axis_name, groups, tables, vmapped)
        except NotImplementedError:  # check_vma=True
            pass
        scatters = equal_sizes(groups) and all_manual() and not reduce_scatter_is_wrong()
        return GROUP_SUMS["reduce_scatter" if scatters else "ppermute"](x, axis_name, groups, tables, vmapped)

    try:
        return [total(leaf) for leaf in leaves]
    except NotImplementedError:
        raise ValueError(
            f"lowering={lowering!r} does not work in this context (grouped psum needs pmap or "
            "shard_map(check_vma=False)): pass 'auto'"
        ) from None


def _check_context(lowering: Lowering, groups: Groups, vmapped: bool) -> None:
    if vmapped and lowering in ("psum", "reduce_scatter"):
        raise ValueError(
            f"lowering={lowering!r} needs grouped collectives, which JAX does not have under vmap: "
            "pass 'auto' or 'matrix'"
        )
    if lowering != "reduce_scatter":
        return
    if not equal_sizes(groups):
        raise ValueError(
            f"lowering='reduce_scatter' needs groups of equal size, got sizes {sorted({len(g) for g in groups})}: "
            "pass 'auto' or 'ppermute', or a group_size that divides num_workers"
        )
    if reduce_scatter_is_wrong():
        raise ValueError(
            "lowering='reduce_scatter' gives wrong sums on CPUs of several processes before JAX 0.12, got jaxlib "
            f"{jaxlib_version.__version__}: pass 'auto' or 'ppermute', or install JAX 0.12 or later"
        )
