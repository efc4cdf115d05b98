"""Merge rules and the per-leaf policy, as pure functions on arrays and pytrees.

How sums are taken (collectives, MPI) does not belong here: every transport applies these rules to its sums.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Policy = Literal["mean", "keep", "sync"]
PolicyFunction = Callable[[jax.tree_util.KeyPath, Any], Policy]


class AverageInfo(NamedTuple):
    """What one call of ``average`` did, per worker.

    Attributes:
        round: int32 scalar, the round that was executed; -1 where ``every`` skipped the averaging.
        is_sync: bool scalar, whether it was a sync round (global mean).
        late: bool scalar, whether this worker's contribution was an older model; never at sync rounds.
        staleness: int32 scalar, the age in rounds of this worker's contribution; 0 on time.
    """

    round: Any
    is_sync: Any
    late: Any
    staleness: Any


def average_inexact(path: jax.tree_util.KeyPath, leaf: Any) -> Policy:
    """The default policy: floating and complex leaves are averaged; integers, booleans and PRNG keys are kept."""
    del path
    return "mean" if _is_inexact(leaf) else "keep"


def leaf_policies(tree: Any, policy: PolicyFunction | None = None) -> list[Policy]:
    """The policy of every leaf, in the order of ``jax.tree.leaves(tree)``.

    Args:
        tree: Any pytree.
        policy: Maps a leaf's key path and value to "mean" (averaged every round), "sync" (averaged at sync rounds
            only) or "keep" (never averaged). None: :func:`average_inexact`.

    Raises:
        ValueError: The function returned something else.
        TypeError: The function asks to average a leaf that is neither floating nor complex.
    """
    decide = average_inexact if policy is None else policy
    policies: list[Policy] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found = decide(path, leaf)
        name = leaf_name(path)
        if found not in ("mean", "keep", "sync"):
            raise ValueError(
                f"policy() must return 'mean', 'keep' or 'sync' for every leaf, got {found!r} for {name}: "
                "return one of the three"
            )
        if found != "keep" and not _is_inexact(leaf):
            raise TypeError(
                f"policy() returned {found!r} for {name}, which is {_dtype(leaf)}; only floating and complex leaves "
                "have a mean: return 'keep' for it"
            )
        policies.append(found)
    return policies


def leaf_name(path: jax.tree_util.KeyPath) -> str:
    """A leaf's path for messages."""
    return jax.tree_util.keystr(path) or "(the whole tree)"


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which leaves of ``dtype`` are summed: float32 or wider (complex64 or wider)."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def merge(total: jax.Array, own: jax.Array, size: Any, late: Any = None) -> jax.Array:
    """The model after an ordinary round: ``sum / S``, or ``(sum + W') / (S + 1)`` for a late worker.

    Li et al. (TPDS 2021), algorithm 2; S is the size of the worker's actual group.

    Args:
        total: Sum of the group's contributions, in the accumulation dtype, shape of ``own``.
        own: This worker's W', in the leaf's dtype.
        size: The number of workers in the group, an integer or an integer scalar array.
        late: None where nobody can be late, else a boolean scalar: whether ``total`` holds an older model of this
            worker instead of ``own``.

    Returns:
        The new leaf, in the dtype of ``own``.
    """
    mean = divided(total, size)
    if late is not None:
        mean = jnp.where(late, divided(total + own.astype(total.dtype), size + 1), mean)
    return mean.astype(own.dtype)


def divided(total: jax.Array, size: Any) -> jax.Array:
    """``total / size``; for a traced size with the same bits wherever it is compiled.

    XLA turns some divisions by a scalar that is unknown at compilation into multiplications, but not all of them. Here
    it is a multiplication from the start. An ``int`` divides, which may differ by a unit in the last place.
    """
    if isinstance(size, int):
        return total / size
    return total * (1 / jnp.asarray(size).astype(jnp.finfo(total.dtype).dtype)).astype(total.dtype)


def additive_update(old: Any, new: jax.Array) -> jax.Array:
    """The update with which ``optax.apply_updates`` turns ``old`` into ``new``, in the accumulation dtype.

    Under strict dtype promotion it is in the dtype of ``new``: ``apply_updates`` could not add another.
    """
    wide = accumulation_dtype(new.dtype)
    difference = new.astype(wide) - jnp.asarray(old).astype(wide)
    config: Any = jax.config  # its attributes are made at run time
    return difference.astype(new.dtype) if config.jax_numpy_dtype_promotion == "strict" else difference


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(type(leaf))


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jnp.inexact)
