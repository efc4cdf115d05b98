"""Per-worker functions of values that are equal on all workers, such as the round."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from wagma_jax.collectives.axes import AxisName


def per_worker(body: Callable[..., Any], axis_name: AxisName, lockstep: Any, operands: Any) -> Any:
    """Calls ``body(vmapped, lockstep, operands)`` so that ``lockstep`` stays unbatched under ``vmap`` over the axis.

    A ``vmap`` over the worker axis would batch ``lockstep``, and turn every ``switch`` on it into selects that execute
    all branches. Here the batching rule takes one of the equal values instead; other mappings pay nothing. It also
    tells ``body`` whether the axis is mapped by ``vmap``. No collective tells this reliably while a ``scan`` or ``jit``
    inside the ``vmap`` is traced.

    Args:
        body: A function of whether the axis is mapped by ``vmap``, of ``lockstep``, and of ``operands``. It must not
            close over arrays, not even constants: a ``cond`` around the call may batch them, which the rule would not
            see. They go into ``lockstep``.
        axis_name: The mapped axis of the workers.
        lockstep: Real arrays that are equal on all workers, like the round.
        operands: This worker's own arrays.

    Raises:
        ValueError: A tuple of axes under ``vmap``.
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


def _axes(batched: Any) -> Any:
    return jax.tree.map(lambda b: 0 if b else None, batched)
