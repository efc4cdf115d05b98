"""Where the leaves of a model were, so that averages go back there: on which devices, and whether committed to them."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding


class Place(NamedTuple):
    """Where a leaf is.

    Attributes:
        sharding: Of a ``jax.Array``; None: NumPy arrays and Python numbers, which are nowhere.
        committed: Whether it is bound to its devices. Others follow what they are computed with.
    """

    sharding: Any
    committed: bool


class Places(NamedTuple):
    """Where the leaves of a model are.

    Attributes:
        each: Of each leaf.
        scattered: Whether some are elsewhere than on the CPU device of the buffers, or on a mesh with explicit axes.
        only: The accelerator that holds all of them alone, and nothing else does; None if there is no such device.
        committed: Whether all are.
        simple: Whether compiled functions that follow their arguments leave all leaves where they were.
    """

    each: list[Place]
    scattered: bool
    only: Any
    committed: bool
    simple: bool


class Leaves(list[Any]):
    """The leaves of one tree, and where some of them were found to be.

    Attributes:
        places: Of those of each set of buffers.
        changeable: Whether some are no ``jax.Array``, and may change in place: NumPy arrays.
    """

    def __init__(self, leaves: Iterable[Any]):
        super().__init__(leaves)
        self.changeable = False
        self.places: dict[tuple[int, ...], Places] = {}

    def only(self, indices: Iterable[int], dtypes: Sequence[Any]) -> "Leaves":
        """These in their places, with None for all others, and copies in these dtypes of what may change."""
        kept = Leaves([None] * len(self))
        for i in indices:
            leaf = self[i]
            kept[i] = np.array(leaf, dtypes[i]) if self.changeable and not isinstance(leaf, jax.Array) else leaf
        return kept


_place = operator.attrgetter("sharding", "committed")


class Survey:
    """Finds out where leaves are; remembers the last answer, since it is the same at most rounds.

    Args:
        host: The CPU device of the buffers.
    """

    def __init__(self, host: Any):
        self._host = host
        self._seen: list[tuple[Any, bool]] = []
        self._places: Places | None = None

    def __call__(self, leaves: Sequence[Any]) -> Places:
        """Where the leaves are."""
        try:
            seen = list(map(_place, leaves))
        except AttributeError:  # NumPy arrays and Python numbers
            seen = [(getattr(leaf, "sharding", None), getattr(leaf, "committed", False)) for leaf in leaves]
        if self._places is None or self._seen != seen:
            self._places = self._look([Place(*place) for place in seen])
        self._seen = seen  # the same objects, which a step mostly returns, are compared at once
        return self._places

    def _look(self, each: list[Place]) -> Places:
        devices = {device for place in each for device in _devices(place, self._host)}
        only = devices.pop() if len(devices) == 1 else None
        committed = all(place.committed for place in each)
        simple = only is not None and (
            not any(place.committed for place in each)
            or all(place == Place(SingleDeviceSharding(only), True) for place in each)
        )
        elsewhere = only is None or only != self._host
        explicit = any(_is_explicit(place.sharding) for place in each)
        return Places(each, elsewhere or explicit, only if elsewhere else None, committed, simple)


def _is_explicit(sharding: Any) -> bool:
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types


def put(arrays: list[Any], places: Sequence[Place], host: Any) -> list[jax.Array]:
    """Brings arrays to their places. Those that are there already are not copied; nor is aligned NumPy memory.

    Args:
        arrays: In NumPy or JAX; those whose places are not committed neither.
        places: Of each.
        host: Where uncommitted arrays without a place go.
    """
    result = list(arrays)
    bound = [i for i, place in enumerate(places) if place.committed and not _is_bound(arrays[i], place)]
    moved = jax.device_put([arrays[i] for i in bound], [places[i].sharding for i in bound], may_alias=True)
    for i, array in zip(bound, moved, strict=True):
        result[i] = array
    loose: dict[Any, list[int]] = {}
    for i, place in enumerate(places):
        if not place.committed:
            (device,) = _devices(place, host)
            loose.setdefault(device, []).append(i)
    for device, indices in loose.items():
        wanted = [i for i in indices if not _is_at(arrays[i], device)]
        for i, array in zip(wanted, put_loose([arrays[i] for i in wanted], device), strict=True):
            result[i] = array
    return result


def put_loose(arrays: Any, device: Any) -> Any:
    """Uncommitted arrays on a device."""
    with jax.default_device(device):  # what is committed stays so: only NumPy arrays are taken up uncommitted
        return jax.device_put(jax.tree.map(np.asarray, arrays), may_alias=True)


def without_mesh(leaf: Any) -> Any:
    """A leaf as an array or NumPy array that belongs to no mesh.

    Else an array on a mesh with explicit axes drags its mesh into what is computed with it, also from another device.
    """
    if not isinstance(leaf, jax.Array) or isinstance(leaf.sharding, SingleDeviceSharding):
        return leaf
    return leaf.addressable_data(0) if leaf.is_fully_replicated else np.asarray(leaf)


def _is_bound(array: Any, place: Place) -> bool:
    return isinstance(array, jax.Array) and array.committed and array.sharding == place.sharding


def _is_at(array: Any, device: Any) -> bool:
    return isinstance(array, jax.Array) and not array.committed and array.devices() == {device}


def _devices(place: Place, host: Any) -> set[Any]:
    return {host} if place.sharding is None else place.sharding.device_set
