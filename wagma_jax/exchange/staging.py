"""Between the user's pytree and what is exchanged: flat buffers on the CPU, some for each dtype and policy.

A model enters by one copy (`Staging.pack`). One of large leaves leaves without a copy: what the user gets are views of
the buffer that the average was written to, which nobody else refers to any more. One of small leaves is copied out by
one compiled call, and the buffer is used again. Models on one accelerator are joined and cut there, so that they travel
as buffers; arrays that are spread over several devices are staged through the host leaf by leaf.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.averaging import (
    PolicyFunction,
    accumulation_dtype,
    check_arrays,
    divided,
    leaf_name,
    leaf_policies,
    merge,
)
from wagma_jax.exchange.flattening import concatenated, joined, split
from wagma_jax.exchange.isolation import callers_x64, cpu_device, dtype_of
from wagma_jax.exchange.layouts import MOST_ELEMENTS, make_layouts, pieces_of
from wagma_jax.exchange.places import Leaves, Places, Survey, put, put_loose, without_mesh
from wagma_jax.exchange.storage import Buffers, ready, stored, sum_dtype, values

SMALL_LEAF_BYTES = 1 << 18  # models of smaller leaves (their mean) are copied out: views cost 20 us for each leaf
FEW_PARTS = 128  # of a buffer, up to which its compiled copies need not be shared


class Staging:
    """Packs and unpacks pytrees that are built like ``params``.

    Args:
        params: A pytree of arrays, scalars among them.
        policy: The per-leaf policy, as for ``averaging.leaf_policies``.
        most_elements: Of a buffer, a multiple of ``ALIGNMENT``; larger leaves are cut.

    Raises:
        ValueError, TypeError: From the policy.
        RuntimeError: JAX has no CPU device.

    Attributes:
        has_rest: Whether there are leaves that only sync rounds average.
    """

    def __init__(self, params: Any, policy: PolicyFunction | None = None, most_elements: int = MOST_ELEMENTS):
        self.policies = leaf_policies(params, policy)
        self._x64 = callers_x64()
        paths_and_leaves, self.treedef = jax.tree_util.tree_flatten_with_path(params)
        self.names = [leaf_name(path) for path, _ in paths_and_leaves]
        self.shapes = [np.shape(leaf) for _, leaf in paths_and_leaves]
        self.dtypes = [dtype_of(leaf, self._x64) for _, leaf in paths_and_leaves]
        self.device = cpu_device()
        self.layouts = make_layouts(self.shapes, self.dtypes, self.policies, most_elements)
        self._indices = [i for i, policy in enumerate(self.policies) if policy != "keep"]
        self._indices_of_ordinary = [i for i, policy in enumerate(self.policies) if policy == "mean"]
        self._indices_of_rest = [i for i, policy in enumerate(self.policies) if policy == "sync"]
        self.copies = self.nbytes < SMALL_LEAF_BYTES * sum(len(layout.parts) for layout in self.layouts)
        self._seen: list[Any] = []  # what trees that were found good consist of
        # Explicit shardings: whether arrays are committed to their device would make another compilation each. And
        # closures over the layouts alone: none holds the object that holds it.
        here = jax.sharding.SingleDeviceSharding(self.device)
        jit = functools.partial(jax.jit, in_shardings=here, out_shardings=here)
        # optimized, a copy of a thousand small leaves takes seconds to compile, and is hardly faster
        many = self.copies and max((len(layout.parts) for layout in self.layouts), default=0) > FEW_PARTS
        options = {"xla_backend_optimization_level": 0} if many else None
        # the layouts of a model, of what ordinary rounds exchange, and of the rest, which only sync rounds average
        self._every = tuple(range(len(self.layouts)))
        self._ordinary = tuple(k for k in self._every if self.layouts[k].ordinary)
        self._rest = tuple(k for k in self._every if not self.layouts[k].ordinary)
        self.has_rest = bool(self._rest)
        self._pack = {
            chosen: jit(
                functools.partial(concatenated, tuple(self.layouts[k] for k in chosen)), compiler_options=options
            )
            for chosen in {self._every, self._ordinary, self._rest}
        }
        self._pieces = {chosen: pieces_of(self.layouts[k] for k in chosen) for chosen in self._pack}
        self._parts_of = [_getter([part.leaf for part in layout.parts]) for layout in self.layouts]
        self._leaves_of = {chosen: _getter(self._indices_of(chosen)) for chosen in self._pack}
        self._surveys = {chosen: Survey(self.device) for chosen in self._pack}
        self.widens = any(accumulation_dtype(layout.dtype) != layout.dtype for layout in self.layouts)
        # a sum that is wider than the model cannot become the model in place
        self._merge_late = jit(_merged_late, donate_argnums=() if self.widens else 0)
        self._merge_weighted = jit(_merged_weighted, donate_argnums=() if self.widens else 0)
        self._divide = jit(_divided, donate_argnums=() if self.widens else 0)
        self._copy = jit(_copied)
        # these follow their arguments: to any device, committed or not
        self._join = [jax.jit(functools.partial(joined, layout)) for layout in self.layouts]
        self._split = [jax.jit(functools.partial(split, layout)) for layout in self.layouts]
        self._starts: dict[Any, Any] = {}  # of the parts of each buffer, on each device
        self._left = False  # whether the last unpack() has left the buffers to their owner

    @property
    def nbytes(self) -> int:
        """Bytes of what is averaged."""
        return sum(layout.size * layout.dtype.itemsize for layout in self.layouts)

    def describe(self) -> list[tuple[str, tuple[int, ...], str, str]]:
        """(name, shape, dtype, policy) of every leaf: what must be equal on all workers."""
        return [
            (name, shape, str(dtype), policy)
            for name, shape, dtype, policy in zip(self.names, self.shapes, self.dtypes, self.policies, strict=True)
        ]

    def check(self, tree: Any) -> Leaves:
        """The leaves of ``tree``.

        Raises:
            ValueError: It is not built like ``params``.
            TypeError: A leaf is no array.
        """
        leaves, treedef = jax.tree.flatten(tree)
        leaves = Leaves(leaves)
        try:
            kinds: list[Any] = list(map(_kind, leaves))
        except AttributeError:  # NumPy arrays and Python numbers
            kinds = [getattr(leaf, "aval", None) for leaf in leaves]
        if kinds == self._seen and treedef == self.treedef:
            return leaves
        if treedef != self.treedef:
            raise ValueError(f"the tree must be built like params: expected {self.treedef}, got {treedef}")
        check_arrays(tree)
        for i, leaf in enumerate(leaves):
            self._check_leaf(i, leaf)
        leaves.changeable = None in kinds
        self._seen = [] if leaves.changeable else kinds  # of what is no jax.Array nothing is known beforehand
        return leaves

    def _check_leaf(self, i: int, leaf: Any) -> None:
        name, shape, dtype, came = self.names[i], self.shapes[i], self.dtypes[i], dtype_of(leaf, self._x64)
        if np.shape(leaf) != shape or came != dtype:
            raise ValueError(
                f"{name} must be {dtype}{list(shape)} as in params, got {came}{list(np.shape(leaf))}: pass the "
                "same pytree as to the constructor"
            )

    def pack(self, leaves: list[Any], whole: bool = True) -> Buffers:
        """A copy of the averaged leaves, complete on return.

        Args:
            leaves: From ``check``.
            whole: Whether all of them, or only those that ordinary rounds average.
        """
        return self._packed(leaves, self._every if whole else self._ordinary)

    def pack_rest(self, leaves: list[Any]) -> Buffers:
        """A copy of the leaves that only sync rounds average; () if there are none."""
        return self._packed(leaves, self._rest)

    def rest_of(self, leaves: list[Any]) -> list[Any]:
        """The leaves that only sync rounds average."""
        return [leaves[i] for i in self._indices_of_rest]

    def rest_alone(self, leaves: Leaves) -> Leaves:
        """The same in their places, with None for all others, and copies of what may change."""
        return leaves.only(self._indices_of_rest, self.dtypes)

    def averaged_alone(self, leaves: Leaves) -> Leaves:
        """As ``rest_alone``, of all leaves that are averaged at some time; the same leaves if none may change."""
        return leaves.only(self._indices, self.dtypes) if leaves.changeable else leaves

    def _packed(self, leaves: list[Any], chosen: tuple[int, ...]) -> Buffers:
        if not chosen:
            return ()
        wanted = [self._parts_of[k](leaves) for k in chosen]
        places = self._places(leaves, chosen)
        if places.only is not None:
            return ready(self._pack_there(chosen, wanted, places.only))
        if places.scattered:
            wanted = jax.tree.map(without_mesh, wanted)
            wanted = jax.device_put(wanted, self.device)  # starts all transfers before it waits for one
        return ready(self._pack[chosen](wanted))

    def _places(self, leaves: list[Any], chosen: tuple[int, ...]) -> Places:
        """Where the leaves of these buffers are."""
        known = leaves.places if isinstance(leaves, Leaves) else {}
        if chosen not in known:
            known[chosen] = self._surveys[chosen](self._leaves_of[chosen](leaves))
        return known[chosen]

    def _indices_of(self, chosen: tuple[int, ...]) -> list[int]:
        if chosen == self._every:
            return self._indices
        return self._indices_of_ordinary if chosen == self._ordinary else self._indices_of_rest

    def _pack_there(self, chosen: tuple[int, ...], wanted: Sequence[Sequence[Any]], device: Any) -> Buffers:
        """A copy of leaves that are on one accelerator: joined there, a buffer at a time, to save its memory."""
        buffers = []
        for k, leaves in zip(chosen, wanted, strict=True):
            leaves = list(map(without_mesh, leaves))
            with jax.default_device(device):
                joined = self._join[k](leaves)
            buffers.append(jax.device_put(joined, self.device))
        return tuple(buffers)

    def to_arrays(self, buffers: Buffers) -> list[np.ndarray]:
        """Copies of the averaged leaves in NumPy, in the order of the tree."""
        return [np.array(leaf) for leaf in self._views(self._every, buffers)]

    def from_arrays(self, arrays: Sequence[Any]) -> Buffers:
        """Buffers from what ``to_arrays`` has returned.

        Raises:
            ValueError: They are others than the averaged leaves of ``params``.
        """
        indices = self._indices
        if len(arrays) != len(indices):
            raise ValueError(f"expected {len(indices)} arrays, one for each averaged leaf of params, got {len(arrays)}")
        leaves: list[Any] = [None] * len(self.policies)
        for i, array in zip(indices, arrays, strict=True):
            leaves[i] = array
            self._check_leaf(i, array)
        return self.pack(leaves)

    def warm_up(self, buffers: Buffers, leaves: list[Any], weighted: bool = False) -> None:
        """Compiles everything beforehand, for models that are where ``leaves`` are.

        Args:
            buffers: A model.
            leaves: Its leaves.
            weighted: Whether contributions are weighted.
        """
        ordinary = self.ordinary(buffers)
        totals = lambda: tuple(buffer.astype(sum_dtype(buffer.dtype)) for buffer in self.copy(ordinary))
        self.merge_late(totals(), ordinary, 2, 2 if weighted else None)
        self.narrow(totals(), ordinary, 2)
        if self.has_rest and self.widens:  # a global mean, in the engine's thread
            wide = tuple(buffer.astype(sum_dtype(buffer.dtype)) for buffer in self.copy(buffers))
            self.narrow(wide, buffers, 2)
        for some in dict.fromkeys((len(buffers), len(ordinary))):
            tree = self.unpack(leaves, buffers if some == len(buffers) else ordinary)
            own = jax.tree.leaves(tree)  # whose types may no longer be weak
            for chosen in self._pack:
                self._packed(own, chosen)

    def ordinary(self, buffers: Buffers) -> Buffers:
        """Those of all buffers that ordinary rounds exchange."""
        if not self._rest:
            return buffers
        return tuple(buffer for buffer, layout in zip(buffers, self.layouts, strict=True) if layout.ordinary)

    def completed(self, ordinary: Buffers, rest: Buffers) -> Buffers:
        """All buffers of a model, in order, from both parts."""
        parts = iter(ordinary), iter(rest)
        return tuple(next(parts[0] if layout.ordinary else parts[1]) for layout in self.layouts)

    def rest(self, buffers: Buffers) -> Buffers:
        """Those of all buffers that only sync rounds exchange."""
        if not self._rest:
            return ()
        return tuple(buffer for buffer, layout in zip(buffers, self.layouts, strict=True) if not layout.ordinary)

    def narrow(self, totals: Buffers, like: Buffers, size: int = 1) -> Buffers:
        """``totals / size`` in the dtypes of ``like``; ``totals`` are donated."""
        if size == 1 and not self.widens:
            return totals
        return self._divide(totals, like, size)

    def merge_late(self, totals: Buffers, own: Buffers, size: int, weight: int | None = None) -> Buffers:
        """A late worker's model, ``(sum + W') / (S + 1)`` (``averaging.merge``); ``totals`` are donated.

        Args:
            totals: Sums of the buffers of ordinary rounds.
            own: W'.
            size: S, the number of contributions.
            weight: n, where contributions are weighted: the model is ``(sum + n W') / (N + n)``, and ``size`` is N.
        """
        if weight is None:
            return self._merge_late(totals, own, size)
        return self._merge_weighted(totals, own, size, weight)

    def copy(self, buffers: Buffers) -> Buffers:
        """A copy in memory of its own."""
        return self._copy(buffers)

    def unpack(self, leaves: list[Any], buffers: Buffers, needed: bool = True) -> Any:
        """The tree with the averaged leaves taken from ``buffers``.

        Args:
            leaves: Where all other leaves come from, and the place to which each leaf goes.
            buffers: All buffers, or those of ordinary rounds: leaves that only sync rounds average then stay.
            needed: Whether they are needed afterwards; else their memory may become the tree's (see ``spent``).
        """
        everything = len(buffers) == len(self.layouts)
        chosen = self._every if everything else self._ordinary
        indices = self._indices_of(chosen)
        places = self._places(leaves, chosen)
        there = self.device if places.only is None else places.only
        self._left = self.copies or places.only is not None
        if self._left:
            if there is self.device:  # where own_settings let computations be
                new: list[Any] = self._split_at(chosen, buffers, there, places.committed)
            else:
                with jax.default_device(there):  # of what is not committed
                    new = self._split_at(chosen, buffers, there, places.committed)
        else:
            new = self._views(chosen, self.copy(buffers) if needed else buffers)
        if not self._left or not places.simple:
            new = put(new, places.each, there)
        if self._left:
            ready(new)  # others may write to the buffers from now on
        if len(new) == len(leaves):
            return self.treedef.unflatten(new)
        result = list(leaves)
        for i, leaf in zip(indices, new, strict=True):
            result[i] = leaf
        if not everything:
            for i in set(self._indices).difference(indices):
                if not isinstance(leaves[i], jax.Array):
                    result[i] = put_loose(np.array(leaves[i], self.dtypes[i]), self.device)
        return self.treedef.unflatten(result)

    def spent(self, totals: Buffers, merged: Buffers) -> Buffers | None:
        """Those of the buffers that are memory for the next sums, now that a sum is unpacked; None if there are none.

        Args:
            totals: The sum.
            merged: What was made of it, and went to ``unpack`` as no longer needed.
        """
        if self.widens:
            return totals
        return merged if self._left else None

    def _split_at(self, chosen: tuple[int, ...], buffers: Buffers, device: Any, committed: bool) -> list[jax.Array]:
        """Copies of the leaves on a device, in order: a buffer at a time goes there, and is cut there."""
        pieces: list[jax.Array] = []
        for k, buffer in zip(chosen, buffers, strict=True):
            key = k, device, committed
            if key not in self._starts:
                offsets = [np.int32(part.offset) for part in self.layouts[k].parts]
                starts = [] if len(offsets) <= FEW_PARTS else offsets
                self._starts[key] = jax.device_put(starts, device) if committed else put_loose(starts, device)
            there = jax.device_put(buffer, device) if committed else np.asarray(buffer)
            pieces += self._split[k](there, self._starts[key])
        return self._gathered(chosen, pieces, jnp.concatenate)

    def _views(self, chosen: tuple[int, ...], buffers: Buffers) -> list[np.ndarray]:
        """The leaves as views of the buffers, in order."""
        pieces = []
        for k, buffer in zip(chosen, buffers, strict=True):
            array = np.asarray(buffer).view(self.layouts[k].dtype)
            for part in self.layouts[k].parts:
                piece = array[part.offset : part.offset + part.size]
                pieces.append(piece.reshape(part.shape) if part.is_whole else piece)
        return self._gathered(chosen, pieces, np.concatenate)

    def _gathered(
        self, chosen: tuple[int, ...], pieces: Sequence[Any], concatenate: Callable[[list[Any]], Any]
    ) -> list[Any]:
        """The leaves in order, from the pieces of all parts, of which whole leaves have their shapes."""
        found = self._pieces[chosen]
        if found is None:
            return list(pieces)
        return [
            pieces[of[0]] if len(of) == 1 else concatenate([pieces[k] for k in of]).reshape(shape)
            for of, shape in found
        ]


_kind = operator.attrgetter("aval")


def _getter(indices: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """Maps a list to those of its elements: in less time than a comprehension."""
    if len(indices) == 1:
        return lambda leaves: [leaves[indices[0]]]
    return operator.itemgetter(*indices) if indices else lambda leaves: ()


def _copied(buffers: Buffers) -> Buffers:
    return tuple(jnp.copy(buffer) for buffer in buffers)


def _divided(totals: Buffers, like: Buffers, size: jax.Array) -> Buffers:
    return tuple(stored(merge(total, values(own), size)) for total, own in zip(totals, like, strict=True))


def _merged_late(totals: Buffers, own: Buffers, size: jax.Array) -> Buffers:
    return tuple(
        stored(merge(total, values(buffer), size, late=True)) for total, buffer in zip(totals, own, strict=True)
    )


def _merged_weighted(totals: Buffers, own: Buffers, size: jax.Array, weight: jax.Array) -> Buffers:
    def merged(total: jax.Array, buffer: jax.Array) -> jax.Array:
        own = values(buffer)
        times = own.astype(total.dtype) * weight.astype(jnp.finfo(total.dtype).dtype)
        return stored(divided(total + times, size + weight).astype(own.dtype))

    return tuple(map(merged, totals, own))
