"""What algorithms share that mix models with neighbours inside XLA, and any strategy of models as an optax chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wagma_jax import collectives
from wagma_jax.algorithms.base import Strategy
from wagma_jax.averaging import AverageInfo, PolicyFunction, leaf_policies
from wagma_jax.collectives import AxisName
from wagma_jax.gossip import GossipSchedule
from wagma_jax.transformations import averaging_once, raise_no_params, updates_to_average


def check(
    tree: Any, before: Any, schedule: GossipSchedule, axis_name: AxisName, policy: PolicyFunction | None = None
) -> None:
    """Checks what ``Strategy.combine`` was given.

    Raises:
        ValueError: The axis is not bound, or its size is not P; a floating leaf is known to be replicated over it;
            ``before`` is another tree than ``tree``.
    """
    size = collectives.axis_size(axis_name)
    if size != schedule.num_workers:
        raise ValueError(
            f"axis {axis_name!r} has {size} indices, but the algorithm is for num_workers={schedule.num_workers}: "
            f"map over {schedule.num_workers} workers, or pass num_workers={size}"
        )
    collectives.check_varying(before, axis_name, policy)
    shapes = [[(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(each)] for each in (tree, before)]
    if jax.tree.structure(tree) != jax.tree.structure(before) or shapes[0] != shapes[1]:
        raise ValueError(
            "before must be a tree like the model after the step, with equal shapes and dtypes, got "
            f"{jax.tree.map(jnp.shape, before)} beside {jax.tree.map(jnp.shape, tree)}: pass the model at which the "
            "step began"
        )


def averaged(tree: Any, policy: PolicyFunction | None = None) -> list[jax.Array]:
    """The leaves that are averaged in every round: floating and complex ones, unless ``policy`` chooses others."""
    pairs = zip(jax.tree.leaves(tree), leaf_policies(tree, policy), strict=True)
    return [jnp.asarray(leaf) for leaf, kind in pairs if kind == "mean"]


def wide(leaves: list[jax.Array]) -> list[jax.Array]:
    """Leaves in the dtypes in which sums are taken: float32 or wider."""
    return [collectives.widen(leaf) for leaf in leaves]


def with_averaged(tree: Any, new: list[jax.Array], policy: PolicyFunction | None = None) -> Any:
    """The tree with new values, cast to its dtypes, for the leaves that :func:`averaged` returned."""
    leaves, treedef = jax.tree.flatten(tree)
    values = iter(new)
    return treedef.unflatten(
        [
            next(values).astype(jnp.result_type(leaf)) if kind == "mean" else leaf
            for leaf, kind in zip(leaves, leaf_policies(tree, policy), strict=True)
        ]
    )


def everyone_waits(t: jax.Array) -> AverageInfo:
    """What a round did in which all waited for those they received from."""
    no = jnp.zeros_like(t, bool)
    return AverageInfo(round=t, is_sync=no, late=no, staleness=jnp.zeros_like(t))


def transformation(inner: optax.GradientTransformation, strategy: Strategy) -> optax.GradientTransformationExtraArgs:
    """A local optimizer, and after it a strategy that combines models, as optax has them."""

    def update(updates, state, params=None, *, late=None, **extra_args):
        del extra_args
        if params is None:
            raise_no_params(updates)
        if late is not None:
            raise ValueError("late= is for algorithms in which workers may be late, but here all wait: leave it out")

        def combine(target):
            combined, new_state, _ = strategy.combine(target, params, state, late)
            return combined, {}, new_state

        return updates_to_average(params, updates, None, combine)

    link = optax.GradientTransformationExtraArgs(lambda params: strategy.init(params), update)
    return averaging_once(optax.chain(inner, link))
