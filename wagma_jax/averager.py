"""The rounds of WAGMA-SGD inside one XLA program, as a pure function of a model and a state.

This is group means, sync rounds and simulated lateness. How sums are exchanged is in ``collectives``; how an optax
chain uses the rounds is in ``transformations``.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wagma_jax import collectives
from wagma_jax.averaging import AverageInfo, PolicyFunction, check_arrays, leaf_policies, merge
from wagma_jax.choices import LateMerge, check_late_merge
from wagma_jax.schedule import Groups, GroupSchedule


class GroupAverageState(NamedTuple):
    """What a worker remembers between averages; checkpoints like any other state.

    Attributes:
        round: int32 scalar, the next round; equal on all workers.
        skipped: int32 scalar, calls since the last round; stays 0 unless ``every`` > 1.
        published: This worker's latest publication, which it contributes when late: the tree, with every leaf that is
            not averaged in ordinary rounds replaced by ``()``. ``()`` altogether unless lateness is simulated.
        returned: What its latest round has returned, of the same leaves: a late worker adds what it has learned since.
            ``()`` unless ``late_merge="add"``.
    """

    round: jax.Array
    skipped: jax.Array
    published: Any
    returned: Any = ()
    averages_models = True


class GroupAverager:
    """Rotating group averaging with periodic global means (WAGMA-SGD; Li et al., TPDS 2021, algorithm 2).

    ``average`` runs per worker: inside ``jax.shard_map``, ``jax.pmap`` or ``jax.vmap(axis_name=...)``, or through
    :func:`wagma_jax.for_workers`. Each worker owns its parameters: outside of the mapping they have a leading worker
    axis. Every worker must call ``average`` equally often, and never inside a branch that depends on the worker: the
    others would wait for ever, or receive numbers from a step that the worker threw away. ``average`` has no reverse
    mode: take the gradients of a loss before it.

    One trace serves the whole schedule: the round is an array, which selects among the schedule's distinct groupings.

    Args:
        schedule: Who averages with whom.
        axis_name: The mapped axis whose indices are the workers, or a tuple of mesh axes, row-major. On a mesh with
            further axes (model parallelism) each shard averages with its counterparts.
        policy: Maps a leaf's key path and value to "mean", "keep" or "sync" (mean at sync rounds only). None averages
            floating and complex leaves and keeps all others.
        every: Average on every k-th call only; the calls between return the tree as it is and are no rounds.
        simulate_lateness: Whether ``average`` accepts ``late``. The state then holds a copy of the averaged leaves.
        lowering: "auto", or one of the lowerings of ``wagma_jax.collectives``.
        late_merge: What a late worker makes of its group's sum. "average": ``(sum + W') / (S + 1)`` (the paper). "add":
            ``sum / S + (W' - W)``, which keeps all of what it has learned since its latest round, W being what that has
            returned. The state then holds one more copy.

    Raises:
        ValueError: ``every`` is no integer of at least 1, ``axis_name``, ``lowering`` or ``late_merge`` is unknown, or
            ``late_merge="add"`` comes without ``simulate_lateness=True``.
        TypeError: ``schedule`` is no GroupSchedule, or ``policy`` no function.
    """

    def __init__(
        self,
        schedule: GroupSchedule,
        axis_name: collectives.AxisName = "data",
        policy: PolicyFunction | None = None,
        every: int = 1,
        simulate_lateness: bool = False,
        lowering: collectives.Lowering = "auto",
        late_merge: LateMerge = "average",
    ):
        if not isinstance(schedule, GroupSchedule):
            raise TypeError(
                f"schedule must be a GroupSchedule, got {type(schedule).__name__}: pass for example "
                "GroupSchedule(num_workers=8, group_size=4)"
            )
        if policy is not None and not callable(policy):
            raise TypeError(
                f"policy must be a function from a leaf's key path and value to 'mean', 'keep' or 'sync', got "
                f"{policy!r}: pass for example lambda path, leaf: 'mean'"
            )
        try:
            valid = not isinstance(every, bool) and operator.index(every) >= 1
        except TypeError:
            valid = False
        if not valid:
            raise ValueError(f"every must be an integer of at least 1, got {every!r}: 1 averages on every call")
        collectives.check_lowering(lowering)
        check_late_merge(late_merge)
        if late_merge == "add" and not simulate_lateness:
            raise ValueError(
                "late_merge='add' needs simulate_lateness=True, got False: inside one program nobody is late otherwise"
            )
        self.schedule = schedule
        self.axis_name = collectives.canonical_axis(axis_name)
        self.policy = policy
        self.every = int(every)
        self.simulate_lateness = bool(simulate_lateness)
        self.lowering: collectives.Lowering = lowering
        self.late_merge: LateMerge = late_merge

    def init(self, tree: Any, first_round: int = 0) -> GroupAverageState:
        """The state before the first round. It shares no memory with ``tree``, so that both may be donated.

        Args:
            tree: One worker's pytree (what ``average`` will see). For all workers at once:
                ``jax.vmap(averager.init)(stacked)``.
            first_round: The round to begin with, for a run that goes on with a new state.
        """
        policies = leaf_policies(tree, self.policy)

        def copied():
            leaves, treedef = jax.tree.flatten(tree)
            pairs = zip(leaves, policies, strict=True)
            return treedef.unflatten(
                [jnp.array(_strong(leaf), copy=True) if policy == "mean" else () for leaf, policy in pairs]
            )

        if self.simulate_lateness:
            check_arrays(tree)
        published = copied() if self.simulate_lateness else ()
        returned = copied() if self.late_merge == "add" else ()
        return GroupAverageState(jnp.full((), first_round, jnp.int32), jnp.zeros((), jnp.int32), published, returned)

    def average(
        self, tree: Any, state: GroupAverageState, late: Any = None
    ) -> tuple[Any, GroupAverageState, AverageInfo]:
        """One round (or, with ``every`` > 1, one call between rounds).

        An ordinary round assigns ``sum / S``, with ``sum`` over the contributions of this worker's group of S workers,
        or what ``late_merge`` says to a late worker, ``(sum + W') / (S + 1)`` by default. A sync round assigns the mean
        over all workers. Assigned means are bit-identical among workers that are not late.

        Args:
            tree: W', this worker's pytree after its local step. Sums are taken in float32 or wider.
            state: From ``init`` or the previous call.
            late: Boolean scalar per worker (needs ``simulate_lateness=True``); None: nobody. A late worker contributes
                its previous publication: W' of the round before, or the mean if that was a sync round, or W_0 at
                round 0. Ignored at sync rounds.

        Returns:
            The new tree (same structure, shapes and dtypes), the new state, and what was done.

        Raises:
            ValueError: The axis is not bound, or its size is not ``schedule.num_workers``; a floating leaf is known to
                be replicated over it (``shard_map`` with ``check_vma=True``); ``late`` is no boolean scalar, or given
                without ``simulate_lateness=True``; the state belongs to another tree; the lowering does not work
                here.
            TypeError: A leaf is no array, or the policy averages one that is neither floating nor complex, or narrower
                than a byte.
        """
        late = self._check(tree, state, late)
        policies = leaf_policies(tree, self.policy)
        leaves, treedef = jax.tree.flatten(tree)
        mean = [_strong(leaf) for leaf, policy in zip(leaves, policies, strict=True) if policy == "mean"]
        sync = [_strong(leaf) for leaf, policy in zip(leaves, policies, strict=True) if policy == "sync"]
        operands = (mean, sync, jax.tree.leaves(state.published), jax.tree.leaves(state.returned), late)
        new = operands[:4]
        if mean or sync:
            kinds = self._kinds(has_sync_leaves=bool(sync))
            lockstep = (state.round, state.skipped, *kinds.tables())
            new = collectives.per_worker(functools.partial(self._body, kinds), self.axis_name, lockstep, operands)
        merged = {"mean": iter(new[0]), "sync": iter(new[1]), "keep": None}
        tree = treedef.unflatten(
            [leaf if policy == "keep" else next(merged[policy]) for leaf, policy in zip(leaves, policies, strict=True)]
        )
        published = jax.tree.unflatten(jax.tree.structure(state.published), new[2])
        returned = jax.tree.unflatten(jax.tree.structure(state.returned), new[3])
        return tree, *self._advance(state._replace(published=published, returned=returned), late)

    def check_varying(self, tree: Any) -> None:
        """ValueError if ``check_vma`` knows an averaged leaf to be replicated over the workers."""
        collectives.check_varying(tree, self.axis_name, self.policy)

    def _body(self, kinds: "_Kinds", vmapped: bool, lockstep: Any, operands: Any) -> Any:
        """Mean and sync leaves, publications and what was returned, after this call; see ``collectives.per_worker``.

        The branches of the switch do nothing but sum buffers; all rounds share what comes before and after. XLA gives
        every result of a conditional its own buffer, so a branch that did more would copy the model.
        """
        t, skipped, phases, tables = lockstep
        mean, sync, published, returned, late = operands
        num_workers = self.schedule.num_workers
        acted = skipped + 1 >= self.every
        is_sync = acted & self._is_sync(t)
        contributions = mean
        if late is not None:
            late = self._is_late(t, acted, is_sync, late)
            contributions = [jnp.where(late, old, new) for old, new in zip(published, mean, strict=True)]
        mean_buffers, unpack_mean = collectives.pack(contributions)
        sync_buffers, unpack_sync = collectives.pack(sync)

        def widen(buffers):  # the sums of one worker alone
            return [collectives.widen(buffer) for buffer in buffers]

        def group_round(groups, tables):
            def act(buffers):
                sums = collectives.group_sums(buffers[0], self.axis_name, groups, tables, self.lowering, vmapped)
                return sums, widen(buffers[1])

            return act

        def sync_round(buffers):
            mean, sync = (collectives.global_sums(part, self.axis_name, num_workers, vmapped) for part in buffers)
            return mean, sync

        def no_round(buffers):
            return widen(buffers[0]), widen(buffers[1])

        branches = [group_round(*pair) for pair in zip(kinds.groupings, tables, strict=True)]
        kind: Any = 0
        size: Any = num_workers
        if kinds.groupings:
            kind = phases[t % len(kinds.phases)]
            sizes = jnp.stack([table.size for table in tables])  # [kinds, num_workers]
            size = jnp.where(is_sync, num_workers, sizes[kind][lax.axis_index(self.axis_name)])
        if kinds.has_sync:
            kind = jnp.where(is_sync, len(branches), kind)
            branches.append(sync_round)
        if self.every > 1:
            kind, size = jnp.where(acted, kind, len(branches)), jnp.where(acted, size, 1)
            branches.append(no_round)
        buffers = (mean_buffers, sync_buffers)
        mean_sums, sync_sums = lax.switch(kind, branches, buffers) if len(branches) > 1 else branches[0](buffers)

        mean_sums, sync_sums = unpack_mean(mean_sums), unpack_sync(sync_sums)
        befores = returned or [None] * len(mean)
        triples = zip(mean_sums, mean, befores, strict=True)
        new_mean = [merge(total, own, size, late, before) for total, own, before in triples]
        new_sync = [
            jnp.where(is_sync, merge(total, own, num_workers), own) for total, own in zip(sync_sums, sync, strict=True)
        ]
        if published:
            triples = zip(new_mean, mean, published, strict=True)
            published = [jnp.where(is_sync, new, jnp.where(acted, own, old)) for new, own, old in triples]
        if returned:
            returned = [jnp.where(acted, new, old) for new, old in zip(new_mean, returned, strict=True)]
        return new_mean, new_sync, published, returned

    def _kinds(self, has_sync_leaves: bool) -> "_Kinds":
        schedule = self.schedule
        one_group = len(schedule.groups(0)) == 1
        same_as_sync = one_group and not self.simulate_lateness and not has_sync_leaves and self.lowering == "auto"
        if schedule.sync_period == 1 or same_as_sync:
            return _Kinds((), (), True)
        rounds = [schedule.groups(t) for t in range(schedule.period)]
        groupings = tuple(dict.fromkeys(rounds))
        phases = tuple(groupings.index(groups) for groups in rounds)
        return _Kinds(groupings, phases, schedule.sync_period is not None)

    def _is_sync(self, t: jax.Array) -> jax.Array:
        period = self.schedule.sync_period
        return jnp.zeros_like(t, bool) if period is None else (t + 1) % period == 0

    def _is_late(self, t: jax.Array, acted: jax.Array, is_sync: jax.Array, late: jax.Array) -> jax.Array:
        """Whether the lateness of a worker shows: somebody goes on without it."""
        return late & acted & ~is_sync & ~self._is_alone(t)

    def _is_alone(self, t: jax.Array) -> jax.Array:
        """Whether this worker is the only one of its group at round t: then nobody waits for it, and it is not late."""
        schedule = self.schedule
        alone = np.zeros((schedule.period, schedule.num_workers), bool)
        for r in range(schedule.period):
            for group in schedule.groups(r):
                alone[r, list(group)] = len(group) == 1
        if not alone.any():
            return jnp.zeros_like(t, bool)
        return jnp.asarray(alone)[t % schedule.period, lax.axis_index(self.axis_name)]

    def _advance(self, state: GroupAverageState, late: Any):
        """The next state, but for the models in it, and what this call did."""
        t = jnp.asarray(state.round)
        skipped = jnp.asarray(state.skipped)
        acted = skipped + 1 >= self.every
        is_sync = acted & self._is_sync(t)
        was_late = jnp.zeros_like(acted) if late is None else self._is_late(t, acted, is_sync, late)
        info = AverageInfo(
            round=jnp.where(acted, t, -1),
            is_sync=is_sync,
            late=was_late,
            # the previous publication is always that of the previous round: W', the mean, or W_0 as version -1
            staleness=was_late.astype(jnp.int32),
        )
        state = state._replace(
            round=t + acted.astype(t.dtype),
            skipped=jnp.where(acted, 0, skipped + 1).astype(skipped.dtype),
        )
        return state, info

    def _check(self, tree: Any, state: GroupAverageState, late: Any) -> jax.Array | None:
        if not isinstance(state, GroupAverageState):
            raise ValueError(
                f"state must be a GroupAverageState, got {type(state).__name__}: pass what init() or the previous "
                "average() returned"
            )
        check_arrays(tree)
        size, num_workers = collectives.axis_size(self.axis_name), self.schedule.num_workers
        if size != num_workers:
            raise ValueError(
                f"axis {self.axis_name!r} has {size} indices, but the schedule is for num_workers={num_workers}: map "
                f"over {num_workers} workers, or build GroupSchedule(num_workers={size}, ...)"
            )
        self.check_varying(tree)
        if self.simulate_lateness:
            self._check_copies(tree, "publication", state.published, "simulate_lateness=True")
        if self.late_merge == "add":
            self._check_copies(tree, "model of the latest round", state.returned, "late_merge='add'")
        if late is None:
            return None
        if not self.simulate_lateness:
            raise ValueError("late needs simulate_lateness=True: pass that to the constructor, or leave late out")
        return boolean_per_worker(late, num_workers)

    def _check_copies(self, tree: Any, what: str, copies: Any, setting: str):
        expected = [
            (jnp.shape(leaf), jnp.asarray(leaf).dtype)
            for leaf, policy in zip(jax.tree.leaves(tree), leaf_policies(tree, self.policy), strict=True)
            if policy == "mean"
        ]
        came = [(jnp.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(copies)]
        if expected != came:
            raise ValueError(
                f"the state's {what} has {len(came)} leaves {came[:4]}..., the tree's averaged leaves are "
                f"{len(expected)} {expected[:4]}...: the state belongs to another tree (or was made without "
                f"{setting}): call init(tree) for this one"
            )


class _Kinds(NamedTuple):
    """The distinct kinds of round: a grouping each, and the global mean where there are sync rounds."""

    groupings: tuple[Groups, ...]
    phases: tuple[int, ...]  # [period], indices into groupings
    has_sync: bool  # or every round is a global mean, when there are no groupings

    def tables(self) -> tuple[np.ndarray, tuple[collectives.GroupTables, ...]]:
        return np.array(self.phases, np.int32), tuple(map(collectives.group_tables, self.groupings))


def boolean_per_worker(late: Any, num_workers: int) -> jax.Array:
    """``late`` as an array; ValueError if it is no boolean scalar."""
    try:
        shape, dtype = jnp.shape(late), str(jnp.result_type(late))
    except TypeError:
        shape, dtype = (), type(late).__name__
    if shape != () or dtype != "bool":
        raise ValueError(
            f"late must be a boolean scalar per worker, got {dtype}{list(shape)}: map an array of "
            f"[{num_workers}] booleans over the worker axis"
        )
    return jnp.asarray(late)


def _strong(leaf: Any) -> jax.Array:
    """As an array without weak type, so that all branches of a switch agree."""
    leaf = jnp.asarray(leaf)
    return lax.convert_element_type(leaf, leaf.dtype)
