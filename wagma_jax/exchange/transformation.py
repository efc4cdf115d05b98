"""An exchange as a link of an optax chain, inside of a jitted step: the last one for models, the first for gradients.

Only the averaged leaves travel between the step and the exchange. Kept ones, random keys among them, never leave the
step. Everything that tracing shows about a tree is checked while tracing: an error inside of the callback would come
late, and without the line of the user's code.
"""

import collections
import inspect
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from wagma_jax import keys
from wagma_jax.averaging import additive_update, leaf_name
from wagma_jax.exchange import callbacks
from wagma_jax.exchange.staging import Staging
from wagma_jax.schedule import integer
from wagma_jax.transformations import raise_no_params

_UNKNOWN = -1  # in place of a count that nobody keeps
_CALLS = 4
_REPEATS = 2  # among the last _CALLS calls: whoever accumulates repeats at least every second one
_ACCUMULATE = "put MultiSteps inside, optax.chain(optax.MultiSteps(inner, k), exchange.as_transformation(every=k))"

_here = threading.local()


class ExchangeState(NamedTuple):
    """What the transformation remembers; checkpoints like any other state.

    Attributes:
        count: int32 scalar, the updates whose results were kept.
    """

    count: Any


def in_step() -> bool:
    """Whether this thread runs the callback of a step."""
    return getattr(_here, "in_step", False)


def as_transformation(
    average: Callable[[Any], Any], staging: Staging, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose updates lead from ``params`` to the average.

    Args:
        average: Maps W' to the average; called by the step while it runs. Kept leaves are stand-ins in both.
        staging: Knows the tree.
        every: Average on every k-th update only; the others are no rounds.

    Raises:
        RuntimeError: XLA has one thread only.
        ValueError: ``every`` is no integer of at least 1. From ``update``, while a step is traced: ``params`` are not
            built like those of the exchange, the state is not this transformation's, or ``optax.MultiSteps`` is around
            it. While a step runs: averages are thrown away.
    """
    callbacks.check_threads()
    callbacks.begin()
    every = integer("every", every, "1 averages on every update")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}: 1 averages on every update")
    chosen, call = _calls(average, staging)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise_no_params(updates)
        _check_callers()
        old, treedef = _leaves(staging, params)
        new = treedef.flatten_up_to(updates)
        own: Any = optax.apply_updates([old[i] for i in chosen], [new[i] for i in chosen])
        for i, leaf in zip(chosen, own, strict=True):
            if leaf.shape != staging.shapes[i]:
                raise ValueError(
                    f"{staging.names[i]} must have an update of shape {list(staging.shapes[i])}, as in params, got "
                    f"{list(jnp.shape(new[i]))}: give each leaf an update of its own shape"
                )
        count, state = _counted(state, every, own)
        if every == 1:
            averaged, acts = call(count, own), None
        else:
            acts = (count + 1) % every == 0
            averaged = lax.cond(acts, call, lambda count, own: own, count, own)
        for i, leaf in zip(chosen, averaged, strict=True):
            difference = additive_update(old[i], leaf)
            kept = jnp.asarray(new[i]).astype(difference.dtype)
            new[i] = difference if acts is None else jnp.where(acts, difference, kept)
        return treedef.unflatten(new), state

    return optax.GradientTransformationExtraArgs(_init, update)


def as_first_link(average: Callable[[Any], Any], staging: Staging) -> optax.GradientTransformationExtraArgs:
    """A transformation whose updates are the average of those that come.

    Args:
        average: Maps gradients to their average; called by the step while it runs. Kept leaves are stand-ins in both.
        staging: Knows the tree.

    Raises:
        RuntimeError, ValueError: As :func:`as_transformation`.
    """
    callbacks.check_threads()
    callbacks.begin()
    chosen, call = _calls(average, staging)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _check_callers()
        leaves, treedef = _leaves(staging, updates)
        own = [jnp.asarray(leaves[i]) for i in chosen]
        count, state = _counted(state, 1, own)
        for i, leaf in zip(chosen, call(count, own), strict=True):
            leaves[i] = leaf
        return treedef.unflatten(leaves), state

    return optax.GradientTransformationExtraArgs(_init, update)


def _calls(average: Callable[[Any], Any], staging: Staging) -> tuple[list[int], Callable[[Any, list[Any]], list[Any]]]:
    """The leaves that are averaged, and a traced function of (count, those leaves) that calls ``average``."""
    chosen = [i for i, policy in enumerate(staging.policies) if policy != "keep"]
    stand_ins = [
        None if policy != "keep" else _stand_in(shape, dtype)
        for policy, shape, dtype in zip(staging.policies, staging.shapes, staging.dtypes, strict=True)
    ]
    repeats = _Repeats()

    def averaged_arrays(count: Any, *own: Any) -> list[np.ndarray]:
        repeats.check(int(count))
        leaves = list(stand_ins)
        for i, leaf in zip(chosen, own, strict=True):
            leaves[i] = leaf
        _here.in_step = True
        try:
            new = jax.tree.leaves(average(staging.treedef.unflatten(leaves)))
        finally:
            _here.in_step = False
        return [np.asarray(new[i]) for i in chosen]

    def call(count: Any, own: list[Any]) -> list[Any]:
        like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in own]
        return callbacks.call_in_order(averaged_arrays, like, count, *own)

    return chosen, call


def _init(params: Any) -> ExchangeState:
    del params
    with jax.ensure_compile_time_eval():  # so that a step that makes its own state can be told from one that keeps it
        return ExchangeState(jax.device_put(np.zeros((), np.int32)))  # explicitly, for users who guard transfers


def _counted(state: Any, every: int, own: list[Any]) -> tuple[Any, Any]:
    """The count of a state, and the next state."""
    if isinstance(state, optax.EmptyState) and every == 1:  # of a user who keeps no state
        return jnp.full((), _UNKNOWN, jnp.int32), state
    if not isinstance(state, ExchangeState):
        raise ValueError(
            f"state must be an ExchangeState, got {type(state).__name__}: pass what init() or the previous update() "
            "returned"
        )
    tracing = any(isinstance(leaf, Tracer) for leaf in own)
    if tracing and not isinstance(state.count, Tracer):
        if every > 1:
            raise ValueError(
                f"every={every} counts updates, but the step makes a new state at each call: make the state once, "
                "outside of the step, and pass it from step to step"
            )
        return jnp.full((), _UNKNOWN, jnp.int32), state
    return state.count, ExchangeState(state.count + 1)


def _check_callers() -> None:
    """Refuses ``optax.MultiSteps`` around the exchange, while tracing: nothing that it passes on tells of it."""
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_code.co_name == "update" and isinstance(frame.f_locals.get("self"), optax.MultiSteps)
        every_k = frame.f_locals.get("k_steps") if found else 1
        if not (isinstance(every_k, int) and every_k == 1):
            raise ValueError(
                "optax.MultiSteps around an exchange makes a round of every micro-step, and throws all averages away "
                f"but those of its emitted steps: {_ACCUMULATE}"
            )
        frame = frame.f_back


class _Repeats:
    """Refuses averages that are thrown away, which the count of the state shows: it comes again."""

    def __init__(self):
        self._newest: int | None = None
        self._repeated: collections.deque[bool] = collections.deque(maxlen=_CALLS)

    def check(self, count: int) -> None:
        """Notes a call. One repeat alone is forgiven: a step may run once to be compiled, or be tried again."""
        self._repeated.append(count != _UNKNOWN and count == self._newest)
        self._newest = count
        if sum(self._repeated) >= _REPEATS:
            raise ValueError(
                "averages are thrown away: update() came with the state of its previous call, and every call is a "
                f"round: keep what it returns; to accumulate gradients, {_ACCUMULATE}"
            )


def _leaves(staging: Staging, params: Any) -> tuple[list[Any], Any]:
    """The leaves of ``params``, where kept ones may be masked, and the structure of the whole tree."""
    leaves, treedef = jax.tree.flatten(params)
    if treedef != staging.treedef:
        masked = lambda node: isinstance(node, optax.MaskedNode)
        leaves, treedef = jax.tree.flatten(params, is_leaf=masked)
    if treedef != staging.treedef:
        raise ValueError(
            f"params of update() must be built like those of the exchange: {_unlike(staging, params)}; pass the same "
            "pytree as to the constructor"
        )
    for i, leaf in enumerate(leaves):
        name, shape, dtype = staging.names[i], staging.shapes[i], staging.dtypes[i]
        if isinstance(leaf, optax.MaskedNode):
            if staging.policies[i] != "keep":
                raise ValueError(
                    f"{name} is masked, but the exchange averages it: give it the policy 'keep', or leave it out of "
                    "the exchange's params"
                )
            continue
        came = leaf.dtype if isinstance(leaf, jax.Array) else jnp.result_type(leaf)
        if jnp.shape(leaf) != shape or came != dtype:
            raise ValueError(
                f"{name} must be {dtype}{list(shape)} as in params, got {came}{list(jnp.shape(leaf))}: pass the "
                "same pytree as to the constructor"
            )
    return leaves, treedef


def _unlike(staging: Staging, params: Any) -> str:
    """The first difference between the structures of two trees."""
    came = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for name in staging.names:
        if name not in came:
            return f"the leaf {name} is missing"
    for name in came:
        if name not in staging.names:
            return f"the leaf {name} is new"
    return f"its containers are {jax.tree.structure(params)}, expected {staging.treedef}"


def _stand_in(shape: tuple[int, ...], dtype: Any) -> Any:
    """What stands for a kept leaf, in next to no memory."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            return keys.zeros(shape, dtype)
    return np.broadcast_to(np.zeros((), dtype), shape)
