"""An exchange as the last link of an optax chain, inside of a jitted step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from wagma_jax.averaging import Policy, additive_update
from wagma_jax.exchange import callbacks
from wagma_jax.transformations import raise_no_params


def as_transformation(
    average: Callable[[Any], Any], policies: Sequence[Policy]
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose updates lead from ``params`` to the average.

    Args:
        average: Maps W' to the average; called by the step while it runs.
        policies: Of each leaf.

    Raises:
        RuntimeError: XLA has one thread only.
    """
    callbacks.check_threads()
    callbacks.make_token()

    def averaged_arrays(target: Any) -> Any:
        return jax.tree.map(np.asarray, average(target))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise_no_params(updates)
        target = optax.apply_updates(params, updates)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), target)
        averaged = callbacks.call_in_order(averaged_arrays, like, target)
        remaining = iter(policies)

        def emit(w, u, new):
            return u if next(remaining) == "keep" else additive_update(w, new)

        return jax.tree.map(emit, params, updates, averaged), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
