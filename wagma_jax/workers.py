"""Workers as a leading array axis: replicating a tree over it, and mapping a per-worker step over it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wagma_jax.schedule import integer


def replicate(tree: Any, num_workers: int, *, mesh: Mesh | None = None, axis_name: str = "data") -> Any:
    """Adds a leading worker axis of equal values: every worker gets its own copy of the tree.

    Args:
        tree: Any pytree of arrays, scalars and PRNG keys; leaves of shape ``[...]``.
        num_workers: P.
        mesh: Where given, the result is made on the mesh's devices, sharded over ``axis_name``: no device holds more
            than its workers' copies.
        axis_name: The mesh axis of the workers.

    Returns:
        The tree with leaves of shape ``[num_workers, ...]``.

    Raises:
        ValueError: ``num_workers`` is no integer of at least 1, or does not fit the mesh.
    """
    num_workers = integer("num_workers", num_workers, "pass the number of workers")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}: pass the number of workers")

    def copies(tree):
        # with their dtypes for good: Python scalars would be traced again as what a step makes of them
        strong = jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x, jnp.result_type(x)), tree)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_workers, *jnp.shape(x))), strong)

    if mesh is None:
        return copies(tree)
    _check_divides(num_workers, mesh, axis_name)
    return jax.jit(copies, out_shardings=NamedSharding(mesh, PartitionSpec(axis_name)))(tree)


def for_workers(
    step: Callable[..., Any], axis_name: str = "data", mesh: Mesh | None = None, *, check_vma: bool = True
) -> Callable[..., Any]:
    """Maps a per-worker step over the leading (worker) axis of all its arguments and results.

    Without a mesh, workers are simulated by ``jax.vmap``. On a mesh whose axis has as many devices as there are
    workers, ``jax.shard_map`` runs one worker a device; if there are a multiple of it, one ``vmap`` has its worker axis
    sharded over the devices (a round then holds all workers' models on every device, some times over). Further mesh
    axes stay with the compiler (model parallelism by sharding annotations).

    The result is not jitted: wrap it in ``jax.jit``, with ``donate_argnums`` as you like.

    Args:
        step: A function of one worker's arguments; it may use collectives over ``axis_name``.
        axis_name: Name of the worker axis.
        mesh: A mesh with that axis, or None.
        check_vma: Passed to ``jax.shard_map``. False allows the faster grouped all-reduce, but JAX then no longer
            checks what is replicated, and differentiating through a ``psum`` gives other gradients.

    Returns:
        A function of the same arguments, each leaf with a leading axis of the workers, [num_workers, ...].

    Raises:
        ValueError: The mesh has no such axis; or, when called, leaves disagree on the number of workers or it does not
            fit the mesh.
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
    simulated = jax.vmap(step, axis_name=axis_name)
    spec = PartitionSpec(axis_name)
    explicit = mesh is not None and mesh.axis_types[mesh.axis_names.index(axis_name)] == AxisType.Explicit

    @functools.wraps(step)
    def mapped(*args, **kwargs):
        num_workers = _count_workers((args, kwargs))
        if mesh is None:
            return simulated(*args, **kwargs)
        _check_divides(num_workers, mesh, axis_name)
        if num_workers != mesh.shape[axis_name]:
            if explicit:
                raise ValueError(
                    f"{num_workers} workers on {mesh.shape[axis_name]} devices run as a sharded vmap, which needs a "
                    "mesh with automatic axes: make it with axis_types=(jax.sharding.AxisType.Auto,)"
                )
            args, kwargs = _spread((args, kwargs), mesh, axis_name)
            return _spread(simulated(*args, **kwargs), mesh, axis_name)
        if explicit:  # shard_map takes explicitly sharded arguments as they are declared, and nothing else
            args, kwargs = _declare((args, kwargs), mesh, axis_name)

        def shard(args, kwargs):
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], step(*args, **kwargs))

        return jax.shard_map(
            shard, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={axis_name}, check_vma=check_vma
        )(args, kwargs)

    return mapped


def _spread(tree: Any, mesh: Mesh, axis_name: str) -> Any:
    """Shards the leading axis; how the others are sharded is up to the compiler."""

    def constrain(x):
        spec = PartitionSpec(axis_name, *[PartitionSpec.UNCONSTRAINED] * (jnp.ndim(x) - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(constrain, tree)


def _declare(tree: Any, mesh: Mesh, axis_name: str) -> Any:
    """Shards the leading axis explicitly; the others stay as they are."""

    def declare(x):
        x = jnp.asarray(x)
        spec = jax.typeof(x).sharding.spec
        if len(spec) and spec[0] == axis_name:
            return x
        return jax.reshard(x, NamedSharding(mesh, PartitionSpec(axis_name, *spec[1:])))

    return jax.tree.map(declare, tree)


def _count_workers(arguments: Any) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    sizes = {jnp.shape(leaf)[:1] for _, leaf in leaves}
    if len(sizes) == 1 and () not in sizes:
        return sizes.pop()[0]
    if not leaves:
        raise ValueError("the step has no array arguments, so the number of workers is unknown: pass at least one")
    listed = ", ".join(f"{jax.tree_util.keystr(path)}: {list(jnp.shape(leaf))}" for path, leaf in leaves[:6])
    raise ValueError(
        f"every argument needs the same leading worker axis, got {listed}{', ...' if len(leaves) > 6 else ''}: "
        "add it with wagma_jax.replicate(tree, num_workers), initialize an optimizer by jax.vmap(optimizer.init)"
        "(params), and bind what is the same for all workers with functools.partial"
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
