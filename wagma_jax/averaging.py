"""Merge rules and the per-leaf policy, as pure functions on arrays and pytrees.

How sums are taken (collectives, MPI) does not belong here: every transport applies these rules to its sums.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

Policy = Literal["mean", "keep", "sync"]
PolicyFunction = Callable[[jax.tree_util.KeyPath, Any], Policy]
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


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
    return "mean" if jnp.issubdtype(_dtype(path, leaf), jnp.inexact) else "keep"


def sync_under(key: str) -> PolicyFunction:
    """The policy that averages what is under a key at sync rounds only, and all else as :func:`average_inexact` does.

    Args:
        key: Of the outermost dictionary.
    """

    def policy(path: jax.tree_util.KeyPath, leaf: Any) -> Policy:
        found = average_inexact(path, leaf)
        is_under = path and getattr(path[0], "key", None) == key
        return "sync" if found == "mean" and is_under else found

    return policy


def without_sync(policy: PolicyFunction | None) -> PolicyFunction | None:
    """The policy for gossip, which has no sync rounds: raises ValueError where it returns "sync"."""
    if policy is None:
        return None

    def checked(path: jax.tree_util.KeyPath, leaf: Any) -> Policy:
        found = policy(path, leaf)
        if found == "sync":
            raise ValueError("policy() returned 'sync', but gossip has no sync rounds: return 'mean' or 'keep'")
        return found

    return checked


def leaf_policies(tree: Any, policy: PolicyFunction | None = None) -> list[Policy]:
    """The policy of every leaf, in the order of ``jax.tree.leaves(tree)``.

    Args:
        tree: Any pytree.
        policy: Maps a leaf's key path and value to "mean" (averaged every round), "sync" (averaged at sync rounds
            only) or "keep" (never averaged). None: :func:`average_inexact`.

    Raises:
        ValueError: The function returned something else.
        TypeError: A leaf is no array, or the function asks to average one that is neither floating nor complex, or
            narrower than a byte.
    """
    decide = average_inexact if policy is None else policy
    policies: list[Policy] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = _dtype(path, leaf)
        found = decide(path, leaf)
        name = leaf_name(path)
        if found not in ("mean", "keep", "sync"):
            raise ValueError(
                f"policy() must return 'mean', 'keep' or 'sync' for every leaf, got {found!r} for {name}: "
                "return one of the three"
            )
        if found != "keep" and not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"policy() returned {found!r} for {name}, which is {dtype}; only floating and complex leaves "
                "have a mean: return 'keep' for it"
            )
        if found != "keep" and jnp.finfo(dtype).bits < 8:
            raise TypeError(
                f"{name} is {dtype}, which is too narrow for a mean: pass a policy that returns 'keep' for it, or "
                "convert it to a float of at least 8 bits"
            )
        policies.append(found)
    return policies


def check_arrays(tree: Any, name: str = "") -> None:
    """Refuses a pytree with leaves that hold no numbers, such as functions, strings and abstract shapes.

    Args:
        tree: Any pytree.
        name: Of the tree; messages put it before a leaf's path.

    Raises:
        TypeError: Names the first such leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _dtype(path, leaf, name)
        if not isinstance(leaf, _ARRAYS) and not hasattr(leaf, "__jax_array__"):
            _raise_no_array(path, leaf, name)


def leaf_name(path: jax.tree_util.KeyPath) -> str:
    """A leaf's path for messages."""
    return jax.tree_util.keystr(path) or "(the whole tree)"


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which leaves of ``dtype`` are summed: float32 or wider (complex64 or wider)."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def merge(total: jax.Array, own: jax.Array, size: Any, late: Any = None, before: jax.Array | None = None) -> jax.Array:
    """The model after an ordinary round: ``sum / S``, or ``(sum + W') / (S + 1)`` for a late worker.

    Li et al. (TPDS 2021), algorithm 2; S is the size of the worker's actual group.

    Args:
        total: Sum of the group's contributions, in the accumulation dtype, shape of ``own``.
        own: This worker's W', in the leaf's dtype.
        size: The number of workers in the group, an integer or an integer scalar array.
        late: None where nobody can be late, else a boolean scalar: whether ``total`` holds an older model of this
            worker instead of ``own``.
        before: None by the paper's rule. Else a late worker takes :func:`merge_by_adding`; see there.

    Returns:
        The new leaf, in the dtype of ``own``.
    """
    if late is None:
        return divided(total, size).astype(own.dtype)
    if before is None:
        own_late = divided(total + own.astype(total.dtype), size + 1).astype(own.dtype)
    else:
        own_late = merge_by_adding(total, own, before, size)
    return jnp.where(late, own_late, divided(total, size).astype(own.dtype))


def merge_by_adding(total: jax.Array, own: jax.Array, before: jax.Array, size: Any) -> jax.Array:
    """A late worker's model after an ordinary round: ``sum / S + (W' - W)``, its last step added to the group's mean.

    Where :func:`merge` keeps a share of 1 / (S + 1) of a late worker's step, this keeps all of it.

    Args:
        total: Sum of the group's contributions, in the accumulation dtype, shape of ``own``; it holds an older model of
            this worker.
        own: This worker's W', in the leaf's dtype.
        before: W, with which the step began that has made W' of it.
        size: As in :func:`merge`.

    Returns:
        The new leaf, in the dtype of ``own``.
    """
    step = own.astype(total.dtype) - before.astype(total.dtype)
    return (divided(total, size) + step).astype(own.dtype)


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


def _dtype(path: jax.tree_util.KeyPath, leaf: Any, name: str = "") -> Any:
    """The leaf's dtype, abstract or not. TypeError names a leaf that has none, or one that JAX does not know."""
    if isinstance(leaf, bool | int | float | complex):
        return np.result_type(type(leaf))
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape") or not _is_known(dtype):
        _raise_no_array(path, leaf, name)
    return dtype


def _is_known(dtype: Any) -> bool:
    def belongs_to(*kinds):
        return any(jnp.issubdtype(dtype, kind) for kind in kinds)

    unknown = belongs_to(np.timedelta64) or str(dtype).startswith("float6_") or dtype in (np.longdouble, np.clongdouble)
    return belongs_to(np.bool_, np.number, jax.dtypes.extended) and not unknown


def _raise_no_array(path: jax.tree_util.KeyPath, leaf: Any, name: str) -> NoReturn:
    dtype = getattr(leaf, "dtype", None)
    name += leaf_name(path) if path or not name else ""
    raise TypeError(
        f"{name} must be an array or a number that JAX knows, got {type(leaf).__name__}"
        f"{'' if dtype is None else f' of {dtype}'}: initialize abstract shapes; keep functions, strings and other "
        "settings out of the tree, for example as static fields or in a closure"
    )
