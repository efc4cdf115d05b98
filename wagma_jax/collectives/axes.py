"""The mapped axis of the workers: its names, its size, and what ``check_vma`` knows to vary over it."""

from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType

from wagma_jax.averaging import PolicyFunction, leaf_name, leaf_policies

AxisName = str | tuple[str, ...]


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


def check_varying(tree: Any, axis_name: AxisName, policy: PolicyFunction | None = None) -> None:
    """Refuses averaged leaves that ``check_vma`` knows to be replicated over the axis.

    JAX sums the gradients of replicated parameters over the workers before an optimizer sees them. To average such
    parameters would be an allreduce with a sum in place of the mean.

    Raises:
        ValueError: A leaf that is averaged at some time is invariant over ``axis_name``.
        ValueError, TypeError: The policy is refused, see ``leaf_policies``.
    """
    if not tracks_varying(axis_name):
        return
    kinds = leaf_policies(tree, policy)
    for (path, leaf), kind in zip(jax.tree_util.tree_leaves_with_path(tree), kinds, strict=True):
        if kind != "keep" and not is_varying(leaf, axis_name):
            raise ValueError(
                f"leaf {leaf_name(path)} is replicated over the worker axis {axis_name!r}, but each worker "
                "must own its parameters: JAX sums the gradients of replicated parameters over the workers. Give "
                "parameters and optimizer state a leading worker axis (wagma_jax.replicate) and pass them through "
                f"shard_map with in_specs and out_specs PartitionSpec({axis_name!r}), not PartitionSpec(); in "
                "for_workers their in_axes is 0, not None"
            )


def all_manual() -> bool:
    """Whether the mesh has no axes but those of ``shard_map``; False under ``vmap``, where joining gains nothing."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return bool(kinds) and all(kind == AxisType.Manual for kind in kinds)


def mark_varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Marks a result that is equal on all workers as each worker's own, where ``check_vma`` tells them apart."""
    if tracks_varying(axis_name):
        for name in _names(axis_name):
            if not is_varying(x, name):
                x = lax.pcast(x, name, to="varying")
    return x


def tracks_varying(axis_name: AxisName) -> bool:
    """Whether ``check_vma`` is on: a worker's index, which always varies, cannot be cast to varying again."""
    name = _names(axis_name)[0]
    try:
        lax.pcast(lax.axis_index(name), name, to="varying")
    except ValueError:
        return True
    except AssertionError:  # vmap, whose axes have no such types
        return False
    return False


def is_varying(x: Any, axis_name: AxisName) -> bool:
    """Whether x varies over every one of the axes: only values that do not can be cast to varying."""
    for name in _names(axis_name):
        try:
            lax.pcast(x, name, to="varying")
        except ValueError:
            continue
        return False
    return True


def _names(axis_name: AxisName) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else axis_name
