"""What is used of JAX beyond its documented interface: all of it, so that one test shows what a new version breaks."""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import config, dispatch, xla_bridge
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir


def backends_are_initialized() -> bool:
    """Whether JAX has made its clients, so that variables such as NPROC have been read."""
    return xla_bridge.backends_are_initialized()


_THREADS_CONTEXTS: tuple[tuple[Any, Any], ...] = (
    (config.mesh_context_manager, ()),  # `with mesh:`
    (config.compute_on_context_manager, None),
    (config.xla_metadata_context_manager, None),
)
"""Contexts of a thread that are a part of the key by which JAX finds what it has compiled, and their values without."""


def leave_contexts() -> list[tuple[Any, Any]]:
    """Takes this thread out of them; returns what :func:`enter_contexts` needs to bring it back."""
    return [(one, one.swap_local(without)) for one, without in _THREADS_CONTEXTS if one.value != without]


def enter_contexts(left: list[tuple[Any, Any]]) -> None:
    """Brings this thread back to what :func:`leave_contexts` has left."""
    for one, before in left:
        one.set_local(before)


def forget_steps() -> None:
    """Forgets the steps that this thread has dispatched, and that ``jax.effects_barrier`` waits for.

    JAX does so itself once they are over, but not if one has failed: then every further step fails in the same way.
    """
    dispatch.runtime_tokens.clear()


def without_effects(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function for ``jax.jit`` on CPUs; its ordered effects are ordered among themselves only.

    The tokens that order them are made inside. Otherwise JAX threads one token through all such calls in the process.
    It does that in Python, at half a millisecond a call.

    Args:
        function: Maps arrays to arrays, by primitives with ordered effects, such as those of mpi4jax.
    """

    def wrapped(*args):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _isolated.bind(*jax.tree.leaves(args), jaxpr=jaxpr))

    return wrapped


def _lower_isolated(context: mlir.LoweringRuleContext, *operands: Any, jaxpr: ClosedJaxpr) -> Any:
    tokens = mlir.TokenSet.create(list(jaxpr.effects))
    inlined = mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)
    return inlined(context.replace(tokens_in=tokens), *operands)


# JAX keeps every primitive for ever, so there is one for all functions.
_isolated = Primitive("wagma_without_effects")
_isolated.multiple_results = True
_isolated.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
mlir.register_lowering(_isolated, _lower_isolated, platform="cpu")
