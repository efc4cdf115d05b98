"""What is used of JAX beyond its documented interface: all of it, so that one test shows what a new version breaks."""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import xla_bridge
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir


def backends_are_initialized() -> bool:
    """Whether JAX has made its clients, so that variables such as NPROC have been read."""
    return xla_bridge.backends_are_initialized()


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
