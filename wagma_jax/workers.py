"""Workers as a leading array axis: replicating a tree over it, and mapping a per-worker step over it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wagma_jax import keys
from wagma_jax.averaging import check_arrays
from wagma_jax.schedule import integer


def replicate(
    tree: Any,
    num_workers: int,
    *,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    fold_in: bool | keys.KeyFunction = False,
) -> Any:
    """Adds a leading worker axis of equal values: every worker gets its own copy of the tree.

    Random keys are copied like all else, so that all workers draw the same dropout masks unless ``fold_in`` is given.

    Args:
        tree: Any pytree of arrays, scalars and PRNG keys; leaves of shape ``[...]``.
        num_workers: P.
        mesh: Where given, the result is made on the mesh's devices, sharded over ``axis_name``: no device holds more
            than its workers' copies.
        axis_name: The mesh axis of the workers.
        fold_in: Whether every worker's index is folded into its random keys (:func:`wagma_jax.fold_in`): True for
            typed keys, or a function from a leaf's key path and value to whether it is a key, as for raw keys.

    Returns:
        The tree with leaves of shape ``[num_workers, ...]``.

    Raises:
        ValueError: ``num_workers`` is no integer of at least 1, or does not fit the mesh.
        TypeError: A leaf is no array, or ``fold_in`` chose a leaf that is no random key.
    """
    check_arrays(tree)
    num_workers = integer("num_workers", num_workers, "pass the number of workers")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}: pass the number of workers")

    strong = jax.tree.map(_strong, tree)

    def copies(tree):
        if fold_in:
            which = fold_in if callable(fold_in) else None
            return jax.vmap(lambda worker: keys.fold_in(tree, worker, which))(jnp.arange(num_workers))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_workers, *jnp.shape(x))), tree)

    if mesh is None:
        return copies(strong)
    _check_divides(num_workers, mesh, axis_name)
    strong = jax.tree.map(lambda x: _on(mesh, x), strong)
    return jax.jit(copies, out_shardings=NamedSharding(mesh, PartitionSpec(axis_name)))(strong)


def _strong(leaf: Any) -> Any:
    """Without weak type: a step returns strong ones, and would be traced again for them."""
    if not hasattr(leaf, "dtype"):
        return jnp.asarray(leaf, jnp.result_type(leaf))
    return lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


def _on(mesh: Mesh, leaf: Any) -> Any:
    """An array that is bound to other devices than those of the mesh, on these."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or not leaf.committed:
        return leaf
    if leaf.sharding.device_set == set(mesh.devices.flat):
        return leaf
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))


def for_workers(
    step: Callable[..., Any],
    axis_name: str = "data",
    mesh: Mesh | None = None,
    *,
    in_axes: Any = 0,
    check_vma: bool = True,
) -> Callable[..., Any]:
    """Maps a per-worker step over the leading (worker) axis of its arguments and results.

    Without a mesh, workers are simulated by ``jax.vmap``. On a mesh whose axis has as many devices as there are
    workers, ``jax.shard_map`` runs one worker on each device. If there are several workers for each device, one
    ``vmap`` has its worker axis sharded over the devices; a round then holds all workers' models on every device, some
    of them several times. Further mesh axes stay with the compiler (model parallelism by sharding annotations).

    The result is not jitted: wrap it in ``jax.jit``, with ``donate_argnums`` as you like.

    Args:
        step: A function of one worker's arguments; it may use collectives over ``axis_name``.
        axis_name: Name of the worker axis.
        mesh: A mesh with that axis, or None.
        in_axes: Which arguments have a worker axis, as for ``jax.vmap``: 0 or None for all positional arguments, or a
            tuple with an entry for each, which may be a tree of 0 and None for the parts of that argument. 0: leaves
            have a leading worker axis, and every worker gets its own row. None: all workers get the same value, such
            as a round or a learning rate; branches on it stay branches under ``vmap``, and ``check_vma`` knows that it
            is equal on all workers. So parameters take 0, even if they are equal. Keyword arguments always take 0.
        check_vma: Passed to ``jax.shard_map``. False allows the faster grouped all-reduce, but JAX then no longer
            checks what is replicated, and differentiating through a ``psum`` gives other gradients.

    Returns:
        A function of the same arguments. All its results have a leading worker axis, ``[num_workers, ...]``.

    Raises:
        ValueError: ``in_axes`` has other entries than 0 and None, or the mesh has no such axis. When called: leaves
            disagree on the number of workers, or none has a worker axis; the number does not fit the mesh; or
            ``in_axes`` does not fit the arguments.
        TypeError: When called: a leaf of the arguments is no array.
    """
    if not isinstance(axis_name, str):
        raise ValueError(
            f"axis_name must be one name, got {axis_name!r}: pass the mesh as mesh=...; for several mesh axes use "
            "jax.shard_map"
        )
    if mesh is not None and axis_name not in mesh.axis_names:
        raise ValueError(
            f"the mesh has axes {mesh.axis_names}, none of them {axis_name!r}: pass axis_name, or make the mesh with "
            f"jax.make_mesh((num_workers,), ({axis_name!r},), axis_types=(jax.sharding.AxisType.Auto,))"
        )
    in_axes = _check_in_axes(in_axes)
    simulated = jax.vmap(step, in_axes=in_axes, axis_name=axis_name)
    explicit = mesh is not None and mesh.axis_types[mesh.axis_names.index(axis_name)] == AxisType.Explicit

    @functools.wraps(step)
    def mapped(*args, **kwargs):
        axes = _axis_of_leaves(in_axes, args) + [0] * len(jax.tree.leaves(kwargs))
        num_workers = _count_workers(args, kwargs, axes)
        if mesh is None:
            return simulated(*args, **kwargs)
        _check_divides(num_workers, mesh, axis_name)
        leaves, structure = jax.tree.flatten((args, kwargs))
        if num_workers != mesh.shape[axis_name]:
            if explicit:
                raise ValueError(
                    f"{num_workers} workers on {mesh.shape[axis_name]} devices run as a sharded vmap, which needs a "
                    "mesh with automatic axes: make it with axis_types=(jax.sharding.AxisType.Auto,)"
                )
            spread = functools.partial(_spread, mesh=mesh, axis_name=axis_name)
            pairs = zip(leaves, axes, strict=True)
            args, kwargs = structure.unflatten([x if axis is None else spread(x) for x, axis in pairs])
            return jax.tree.map(spread, simulated(*args, **kwargs))
        if explicit:  # shard_map takes explicitly sharded arguments as they are declared, and nothing else
            leaves = [_declare(leaf, axis, mesh, axis_name) for leaf, axis in zip(leaves, axes, strict=True)]

        def shard(leaves):
            own = [leaf if axis is None else leaf[0] for leaf, axis in zip(leaves, axes, strict=True)]
            args, kwargs = structure.unflatten(own)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], step(*args, **kwargs))

        specs = [PartitionSpec() if axis is None else PartitionSpec(axis_name) for axis in axes]
        return jax.shard_map(
            shard,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=PartitionSpec(axis_name),
            axis_names={axis_name},
            check_vma=check_vma,
        )(leaves)

    return mapped


def _check_in_axes(in_axes: Any) -> int | tuple | None:
    """``in_axes`` with a tuple for a list; ValueError unless its entries are 0 and None."""
    several = isinstance(in_axes, tuple | list)
    for axis in jax.tree.leaves(in_axes, is_leaf=_is_none) if several else [in_axes]:
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int) or axis != 0):
            raise ValueError(
                f"in_axes must be 0 (a leading worker axis) or None (the same for all workers), or a tuple of them "
                f"with an entry for each positional argument, got {axis!r}: move the worker axis to the front"
            )
    return tuple(in_axes) if several else in_axes


def _axis_of_leaves(in_axes: int | tuple | None, args: tuple) -> list[int | None]:
    """0 or None for each leaf of the positional arguments."""
    if not isinstance(in_axes, tuple):
        return [in_axes] * len(jax.tree.leaves(args))
    if len(in_axes) != len(args):
        raise ValueError(
            f"in_axes has {len(in_axes)} entries, but {len(args)} positional arguments came: pass an entry for each; "
            "keyword arguments have none, since they always take 0"
        )
    axes: list[int | None] = []

    def collect(axis, part):
        axes.extend([axis] * len(jax.tree.leaves(part)))

    for i, (entry, argument) in enumerate(zip(in_axes, args, strict=True)):
        try:
            jax.tree.map(collect, entry, argument, is_leaf=_is_none)
        except ValueError as error:
            raise ValueError(
                f"in_axes[{i}] is {entry}, which does not fit the structure of argument {i}: pass 0 or None for the "
                "whole argument, or a tree of them with the same upper levels"
            ) from error
    return axes


def _is_none(x: Any) -> bool:
    return x is None


def _spread(x: Any, mesh: Mesh, axis_name: str) -> jax.Array:
    """Shards the leading axis; how the others are sharded is up to the compiler."""
    spec = PartitionSpec(axis_name, *[PartitionSpec.UNCONSTRAINED] * (jnp.ndim(x) - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _declare(x: Any, axis: int | None, mesh: Mesh, axis_name: str) -> jax.Array:
    """Shards the leading axis explicitly over the workers (with ``axis`` None no axis); others stay as they are."""
    x = jnp.asarray(x)
    spec = jax.typeof(x).sharding.spec
    wanted = [_without(axis_name, entry) for entry in spec] if axis is None else [axis_name, *spec[1:]]
    return x if list(spec) == wanted else jax.reshard(x, NamedSharding(mesh, PartitionSpec(*wanted)))


def _without(axis_name: str, entry: Any) -> Any:
    """An entry of a PartitionSpec, without one of its mesh axes."""
    if isinstance(entry, tuple):
        return tuple(name for name in entry if name != axis_name) or None
    return None if entry == axis_name else entry


def _count_workers(args: tuple, kwargs: dict[str, Any], axes: list[int | None]) -> int:
    named = [(f"argument {i}", argument) for i, argument in enumerate(args)] + list(kwargs.items())
    for name, argument in named:
        check_arrays(argument, name)
    leaves = [
        (name + jax.tree_util.keystr(path), jnp.shape(leaf))
        for name, argument in named
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument)
    ]
    shapes = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
    sizes = {shape[:1] for _, shape in shapes}
    if len(sizes) == 1 and () not in sizes:
        return sizes.pop()[0]
    if not shapes:
        raise ValueError(
            "no array argument has a worker axis, so the number of workers is unknown: pass at least one whose in_axes "
            "is 0"
        )
    listed = ", ".join(f"{name}: {list(shape)}" for name, shape in shapes[:6])
    raise ValueError(
        f"every argument needs the same leading worker axis, got {listed}{', ...' if len(shapes) > 6 else ''}: "
        "add it with wagma_jax.replicate(tree, num_workers), initialize an optimizer by jax.vmap(optimizer.init)"
        "(params), and pass in_axes with None for what is the same for all workers"
    )


def _check_divides(num_workers: int, mesh: Mesh, axis_name: str):
    if axis_name not in mesh.axis_names:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, none of them {axis_name!r}: pass axis_name")
    devices = mesh.shape[axis_name]
    if num_workers % devices:
        raise ValueError(
            f"{num_workers} workers cannot be spread evenly over the {devices} devices of mesh axis {axis_name!r}: use "
            f"a mesh whose axis has {num_workers} devices or a divisor of it"
        )
