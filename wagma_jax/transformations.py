"""optax gradient transformations: WAGMA-SGD as a link of a chain, and the baselines that need no asynchrony."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from wagma_jax import collectives
from wagma_jax.averager import GroupAverager
from wagma_jax.averaging import Policy, PolicyFunction, additive_update, leaf_policies
from wagma_jax.choices import LateMerge
from wagma_jax.schedule import GroupSchedule


def group_average(
    schedule: GroupSchedule,
    axis_name: collectives.AxisName = "data",
    policy: PolicyFunction | None = None,
    every: int = 1,
    simulate_lateness: bool = False,
    lowering: collectives.Lowering = "auto",
    late_merge: LateMerge = "average",
) -> optax.GradientTransformationExtraArgs:
    """Averages models in rotating groups; the last link of a chain.

    Let U be the incoming updates, W' = W + U the model after the local step, and W'' the result of
    :meth:`GroupAverager.average`. The outgoing updates are W'' - W. After ``optax.apply_updates`` the model is W'' to
    within one ulp of max(abs(W), abs(W'')). For leaves narrower than float32 the updates are emitted in float32, which
    makes ``apply_updates`` exact, unless W'' is thousands of times smaller than W. (:class:`GroupAverager` assigns, and
    is always exact.)

    ``update`` takes ``late=`` where lateness is simulated: a boolean scalar per worker.

    It must be the last link, and every worker must reach it equally often:

    - Sound: ``optax.chain(..., group_average(...))``, ``multi_transform`` and ``masked`` (masked leaves are not
      averaged), ``inject_hyperparams`` of the inner optimizer, ``apply_if_finite`` *inside* (before) it, ``lax.scan``
      over steps, ``nnx.Optimizer``, donation.
    - To accumulate gradients over k micro-steps, put ``MultiSteps(inner, k)`` inside and give ``every=k``: a round for
      each emitted step. ``MultiSteps(..., k)`` around it leads to the same model, but computes an average at every
      micro-step and throws all others away. Without ``every``, ``MultiSteps`` inside makes a round of every micro-step.
    - Unsound: a branch *around* it that depends on the worker, such as ``apply_if_finite``, ``conditionally_mask`` or
      ``MultiSteps(should_skip_update_fn=...)``. Under ``shard_map`` and ``pmap`` the others wait for ever; under
      ``vmap`` they receive the model that was rejected, NaNs included.
    - Unsound: any link *after* it. It changes the mean on each worker separately, so that the members of a group no
      longer agree.

    Args:
        schedule: Who averages with whom.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        policy: Which leaves are averaged when; see :class:`GroupAverager`.
        every: Average on every k-th update only.
        simulate_lateness: Whether ``update`` accepts ``late``.
        lowering: See ``wagma_jax.collectives``.
        late_merge: What a late worker makes of its group's sum; see :class:`GroupAverager`.

    Returns:
        A transformation whose state is a :class:`GroupAverageState`.

    Raises:
        ValueError: From ``update``: without ``params`` (optax's own message), or as :meth:`GroupAverager.average`.
    """
    averager = GroupAverager(schedule, axis_name, policy, every, simulate_lateness, lowering, late_merge)

    def update(updates, state, params=None, *, late=None, **extra_args):
        del extra_args
        if params is None:
            raise_no_params(updates)
        averager.check_varying(params)  # updates that vary would hide that params do not

        def average(target):
            averaged, new_state, info = averager.average(target, state, late)
            acted: dict[Policy, jax.Array] = {"sync": info.is_sync}
            if averager.every > 1:
                acted["mean"] = info.round >= 0
            return averaged, acted, new_state

        return updates_to_average(params, updates, averager.policy, average)

    return optax.GradientTransformationExtraArgs(lambda params: averager.init(params), update)


def updates_to_average(
    params: Any,
    updates: Any,
    policy: PolicyFunction | None,
    average: Callable[[Any], tuple[Any, Mapping[Policy, jax.Array], Any]],
) -> tuple[Any, Any]:
    """The updates that lead from ``params`` to an average of models, and the state after it; for the last link.

    Args:
        params: W, the model.
        updates: U, a tree like it; leaves that are kept may have any, since theirs are not added.
        policy: Which leaves are averaged.
        average: Maps W' = W + U to (the average, whether leaves of a policy were averaged, the state after it); leaves
            of policies that it does not name always are.
    """
    old, treedef = jax.tree.flatten(params)
    outgoing = treedef.flatten_up_to(updates)
    policies = leaf_policies(params, policy)
    target = [
        w if kind == "keep" else optax.apply_updates(w, u)  # keys and integers may have no update to be added
        for w, u, kind in zip(old, outgoing, policies, strict=True)
    ]
    averaged, acted, state = average(treedef.unflatten(target))

    def emit(w, u, new, kind):
        if kind == "keep":
            return u
        difference = additive_update(w, new)
        if kind not in acted:
            return difference
        return jnp.where(acted[kind], difference, jnp.asarray(u).astype(difference.dtype))

    return treedef.unflatten(map(emit, old, outgoing, jax.tree.leaves(averaged), policies)), state


def wagma(
    inner: optax.GradientTransformation,
    schedule: GroupSchedule,
    axis_name: collectives.AxisName = "data",
    policy: PolicyFunction | None = None,
    every: int = 1,
    simulate_lateness: bool = False,
    lowering: collectives.Lowering = "auto",
    late_merge: LateMerge = "average",
) -> optax.GradientTransformationExtraArgs:
    """WAGMA-SGD with any local optimizer: ``optax.chain(inner, group_average(schedule, ...))``.

    Args:
        inner: The local optimizer. Its state (momentum, ...) stays local. Gradients must be this worker's own: no
            ``pmean`` over the workers before it.
        schedule: Who averages with whom.
        axis_name: As :func:`group_average`, like all further arguments.
        policy: Which leaves are averaged when.
        every: Average on every k-th update only.
        simulate_lateness: Whether ``update`` accepts ``late``.
        lowering: See ``wagma_jax.collectives``.
        late_merge: What a late worker makes of its group's sum.

    Raises:
        ValueError: From ``init``: ``inner`` already averages models. From ``update``: as :func:`group_average`.
    """
    last = group_average(schedule, axis_name, policy, every, simulate_lateness, lowering, late_merge)
    return averaging_once(optax.chain(inner, last))


def averaging_once(chain: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A chain whose last link averages models; ``init`` raises ValueError if one inside does so, too."""
    averages = lambda node: getattr(type(node), "averages_models", False)

    def init(params):
        state = chain.init(params)
        count = sum(map(averages, jax.tree.leaves(state, is_leaf=averages)))
        if count > 1:
            raise ValueError(
                f"the inner optimizer already averages models ({count - 1} such link inside): models must be averaged "
                "once, by the last link; pass the local optimizer alone, such as optax.sgd(0.1)"
            )
        return state

    return optax.GradientTransformationExtraArgs(init, chain.update)


def allreduce_gradients(axis_name: collectives.AxisName = "data") -> optax.GradientTransformation:
    """Averages gradients over all workers; the first link of a chain makes it Allreduce-SGD, the synchronous baseline.

    Args:
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.

    Raises:
        ValueError: From ``update``: the axis is not bound, or a gradient is replicated over it (under
            ``shard_map(check_vma=True)`` JAX has summed it over the workers already).
    """

    axis_name = collectives.canonical_axis(axis_name)

    def update(updates, state, params=None):
        del params
        collectives.axis_size(axis_name)
        collectives.check_varying(updates, axis_name)
        return collectives.mean_of_all(updates, axis_name), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def raise_no_params(updates: Any) -> NoReturn:
    """Raises what optax raises where ``update`` needs ``params``."""
    # optax keeps the message in a private module; its own links raise it
    link = optax.add_decayed_weights(0.0)
    link.update(updates, link.init(updates), None)
    raise AssertionError("optax accepted an update without params")
