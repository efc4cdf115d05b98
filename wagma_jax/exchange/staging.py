"""Between the user's pytree and what is exchanged: flat buffers on the CPU, one for each dtype and policy.

A model enters by one copy (`Staging.pack`). One of large leaves leaves without a copy: what the user gets are views of
the buffer that the average was written to, which nobody else refers to any more. One of small leaves is copied out by
one compiled call, and the buffer is used again. Arrays on an accelerator are staged through the host.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.averaging import PolicyFunction, accumulation_dtype, leaf_name, leaf_policies, merge
from wagma_jax.exchange.isolation import callers_x64, cpu_device, dtype_of, without_mesh
from wagma_jax.exchange.storage import Buffers, storage_dtype, stored, sum_dtype, values

ALIGNMENT = 64  # bytes; XLA takes a view as it is only where it begins at a multiple
SMALL_LEAF_BYTES = 1 << 18  # models of smaller leaves (their mean) are copied out: views cost 20 us for each leaf


class Part(NamedTuple):
    """One averaged leaf within its buffer: index of the leaf in the tree, and offset and shape in elements."""

    leaf: int
    offset: int
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """One buffer: its leaves' dtype, whether ordinary rounds exchange it (else only sync rounds do), size and parts."""

    dtype: np.dtype
    ordinary: bool
    size: int
    parts: tuple[Part, ...]


class Staging:
    """Packs and unpacks pytrees that are built like ``params``.

    Args:
        params: A pytree of arrays, scalars among them.
        policy: The per-leaf policy, as for ``averaging.leaf_policies``.

    Raises:
        ValueError, TypeError: From the policy.
        RuntimeError: JAX has no CPU device.
    """

    def __init__(self, params: Any, policy: PolicyFunction | None = None):
        self.policies = leaf_policies(params, policy)
        self._x64 = callers_x64()
        paths_and_leaves, self.treedef = jax.tree_util.tree_flatten_with_path(params)
        self.names = [leaf_name(path) for path, _ in paths_and_leaves]
        self.shapes = [np.shape(leaf) for _, leaf in paths_and_leaves]
        self.dtypes = [dtype_of(leaf, self._x64) for _, leaf in paths_and_leaves]
        self.device = cpu_device()
        self.layouts = self._layouts()
        self.copies = self.nbytes < SMALL_LEAF_BYTES * sum(len(layout.parts) for layout in self.layouts)
        self._seen: list[Any] = []  # what trees that were found good consist of
        self._shardings: list[Any] = []  # of the leaves that were looked at last
        self._away: list[int] = []
        # Explicit shardings: whether arrays are committed to their device would make another compilation each. And
        # closures over the layouts alone: none holds the object that holds it.
        here = jax.sharding.SingleDeviceSharding(self.device)
        jit = functools.partial(jax.jit, in_shardings=here, out_shardings=here)
        self._pack = jit(functools.partial(_concatenated, self.layouts))
        self.widens = any(accumulation_dtype(layout.dtype) != layout.dtype for layout in self.layouts)
        # a sum that is wider than the model cannot become the model in place
        self._merge_late = jit(_merged_late, donate_argnums=() if self.widens else 0)
        self._divide = jit(_divided, donate_argnums=() if self.widens else 0)
        self._split = jit(functools.partial(_slices, self.layouts))
        self._copy = jit(_copied)

    def _layouts(self) -> tuple[Layout, ...]:
        found: dict[tuple[str, bool], list[int]] = {}
        for i, policy in enumerate(self.policies):
            if policy != "keep":
                found.setdefault((str(self.dtypes[i]), policy == "mean"), []).append(i)
        layouts = []
        for (_, ordinary), leaves in found.items():
            dtype = self.dtypes[leaves[0]]
            step = max(1, ALIGNMENT // dtype.itemsize)
            parts, size = [], 0
            for i in leaves:
                parts.append(Part(i, size, self.shapes[i]))
                size += -(-math.prod(self.shapes[i]) // step) * step
            layouts.append(Layout(dtype, ordinary, size, tuple(parts)))
        return tuple(layouts)

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

    def check(self, tree: Any) -> list[Any]:
        """The leaves of ``tree``.

        Raises:
            ValueError: It is not built like ``params``.
        """
        leaves, treedef = jax.tree.flatten(tree)
        kinds = [leaf.aval if isinstance(leaf, jax.Array) else None for leaf in leaves]
        if kinds == self._seen and None not in kinds and treedef == self.treedef:
            return leaves
        if treedef != self.treedef:
            raise ValueError(f"the tree must be built like params: expected {self.treedef}, got {treedef}")
        for i, leaf in enumerate(leaves):
            self._check_leaf(i, leaf)
        self._seen = kinds
        return leaves

    def _check_leaf(self, i: int, leaf: Any) -> None:
        name, shape, dtype, came = self.names[i], self.shapes[i], self.dtypes[i], dtype_of(leaf, self._x64)
        if np.shape(leaf) != shape or came != dtype:
            raise ValueError(
                f"{name} must be {dtype}{list(shape)} as in params, got {came}{list(np.shape(leaf))}: pass the "
                "same pytree as to the constructor"
            )

    def _elsewhere(self, leaves: list[Any]) -> list[int]:
        """Which leaves are on other devices than the buffers."""
        shardings = [leaf.sharding if isinstance(leaf, jax.Array) else None for leaf in leaves]
        if shardings != self._shardings:
            away = [i for i, one in enumerate(shardings) if one is not None and one.device_set != {self.device}]
            self._shardings, self._away = shardings, away
        return self._away

    def pack(self, leaves: list[Any]) -> Buffers:
        """A copy of the averaged leaves, complete on return.

        Args:
            leaves: From ``check``.
        """
        wanted = [[leaves[part.leaf] for part in layout.parts] for layout in self.layouts]
        if self._elsewhere(leaves):
            wanted = jax.tree.map(without_mesh, wanted)
            wanted = jax.device_put(wanted, self.device)  # starts all transfers before it waits for one
        return jax.block_until_ready(self._pack(wanted))

    def to_arrays(self, buffers: Buffers) -> list[np.ndarray]:
        """Copies of the averaged leaves in NumPy, in the order of the tree."""
        indices = [part.leaf for layout in self.layouts for part in layout.parts]
        pieces = _slices(self.layouts, tuple(np.asarray(buffer) for buffer in buffers))
        return [np.array(piece) for _, piece in sorted(zip(indices, pieces, strict=True), key=lambda entry: entry[0])]

    def from_arrays(self, arrays: Sequence[Any]) -> Buffers:
        """Buffers from what ``to_arrays`` has returned.

        Raises:
            ValueError: They are others than the averaged leaves of ``params``.
        """
        indices = [i for i, policy in enumerate(self.policies) if policy != "keep"]
        if len(arrays) != len(indices):
            raise ValueError(f"expected {len(indices)} arrays, one for each averaged leaf of params, got {len(arrays)}")
        leaves: list[Any] = [None] * len(self.policies)
        for i, array in zip(indices, arrays, strict=True):
            leaves[i] = array
            self._check_leaf(i, array)
        return self.pack(leaves)

    def warm_up(self, buffers: Buffers) -> None:
        """Compiles everything but ``pack`` beforehand."""
        ordinary = self.ordinary(buffers)
        totals = lambda: tuple(buffer.astype(sum_dtype(buffer.dtype)) for buffer in self.copy(ordinary))
        self.merge_late(totals(), ordinary, 2)
        self.narrow(totals(), ordinary, 2)
        if self.copies:
            self._split(buffers)

    def ordinary(self, buffers: Buffers) -> Buffers:
        """Those of all buffers that ordinary rounds exchange."""
        return tuple(buffer for buffer, layout in zip(buffers, self.layouts, strict=True) if layout.ordinary)

    def completed(self, ordinary: Buffers, buffers: Buffers) -> Buffers:
        """All buffers: ``ordinary`` where ordinary rounds exchange them, copies of ``buffers`` elsewhere."""
        if len(ordinary) == len(buffers):
            return ordinary
        rest = iter(self.copy(tuple(b for b, layout in zip(buffers, self.layouts, strict=True) if not layout.ordinary)))
        new = iter(ordinary)
        return tuple(next(new) if layout.ordinary else next(rest) for layout in self.layouts)

    def narrow(self, totals: Buffers, like: Buffers, size: int = 1) -> Buffers:
        """``totals / size`` in the dtypes of ``like``; ``totals`` are donated."""
        if size == 1 and not self.widens:
            return totals
        return self._divide(totals, like, size)

    def merge_late(self, totals: Buffers, own: Buffers, size: int) -> Buffers:
        """A late worker's model, ``(sum + W') / (S + 1)`` (``averaging.merge``); ``totals`` are donated.

        Args:
            totals: Sums of the buffers of ordinary rounds.
            own: W'.
            size: S, the number of contributions.
        """
        return self._merge_late(totals, own, size)

    def copy(self, buffers: Buffers) -> Buffers:
        """A copy in memory of its own."""
        return self._copy(buffers)

    def unpack(self, leaves: list[Any], buffers: Buffers, needed: bool = True) -> Any:
        """The tree with the averaged leaves taken from ``buffers``.

        Args:
            leaves: Where all other leaves come from, and the devices on which each leaf is wanted.
            buffers: All buffers.
            needed: Whether they are needed afterwards; else their memory is the tree's from now on, unless ``copies``.
        """
        indices = [part.leaf for layout in self.layouts for part in layout.parts]
        away = self._elsewhere(leaves)
        if self.copies:
            pieces = self._split(buffers)
        else:
            buffers = self.copy(buffers) if needed else buffers
            pieces = _slices(self.layouts, tuple(np.asarray(buffer) for buffer in buffers))
        if away or not self.copies:
            places = [leaves[i].sharding if i in away else self.device for i in indices]
            pieces = jax.device_put(pieces, places, may_alias=True)
        result = list(leaves)
        for i, piece in zip(indices, pieces, strict=True):
            result[i] = piece
        return self.treedef.unflatten(result)


def _concatenated(layouts: tuple[Layout, ...], wanted: list[list[Any]]) -> Buffers:
    buffers = []
    for layout, leaves in zip(layouts, wanted, strict=True):
        pieces = []
        ends = [*(part.offset for part in layout.parts[1:]), layout.size]
        for part, end, leaf in zip(layout.parts, ends, leaves, strict=True):
            pieces.append(stored(jnp.asarray(leaf, layout.dtype).ravel()))
            if padding := end - part.offset - pieces[-1].size:
                pieces.append(jnp.zeros(padding, storage_dtype(layout.dtype)))
        # explicitly a copy: JAX may hand an argument that is returned unchanged straight through
        buffers.append(jnp.concatenate(pieces) if len(pieces) > 1 else jnp.copy(pieces[0]))
    return tuple(buffers)


def _copied(buffers: Buffers) -> Buffers:
    return tuple(jnp.copy(buffer) for buffer in buffers)


def _slices(layouts: tuple[Layout, ...], buffers: tuple[Any, ...]) -> list[Any]:
    pieces = []
    for layout, buffer in zip(layouts, buffers, strict=True):
        for part in layout.parts:
            piece = buffer[part.offset : part.offset + math.prod(part.shape)].reshape(part.shape)
            pieces.append(piece.view(layout.dtype) if isinstance(piece, np.ndarray) else values(piece))
    return pieces


def _divided(totals: Buffers, like: Buffers, size: jax.Array) -> Buffers:
    return tuple(stored(merge(total, values(own), size)) for total, own in zip(totals, like, strict=True))


def _merged_late(totals: Buffers, own: Buffers, size: jax.Array) -> Buffers:
    return tuple(
        stored(merge(total, values(buffer), size, late=True)) for total, buffer in zip(totals, own, strict=True)
    )
