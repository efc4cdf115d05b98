"""Whose memory may be used again: counted holds on buffers, and those that nobody holds any more.

A buffer has several uses at a time. A model is published, read by an exchange, sent to several workers and taken by the
trainer; successive publications share the buffers that only sync rounds exchange. Each of these uses is a hold. After
the last one the buffer is memory for a later result. Who holds buffers alone may spend them: hand their memory to a
computation that donates it, or to the trainer. Fresh pages are what costs in large models, so few should be fresh.
"""

import collections
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wagma_jax.exchange.layouts import Layout
from wagma_jax.exchange.storage import Buffers, storage_dtype, sum_dtype

Signature = tuple[tuple[int, Any], ...]
"""Sizes and dtypes of buffers: what makes them interchangeable."""


@functools.lru_cache(maxsize=64)
def _counted(wanted: Signature) -> tuple[tuple[tuple[int, Any], int], ...]:
    """Which buffers a signature has, and how many of each."""
    return tuple(collections.Counter(wanted).items())


def signature(buffers: Buffers) -> Signature:
    """The signature of buffers."""
    return tuple(map(_kind, buffers))


def model_signature(layouts: Iterable[Layout]) -> Signature:
    """The signature of models."""
    return tuple((layout.size, storage_dtype(layout.dtype)) for layout in layouts)


def sum_signature(layouts: Iterable[Layout]) -> Signature:
    """The signature of sums of models, which are wider where models are narrower than float32."""
    return tuple((size, jnp.dtype(sum_dtype(dtype))) for size, dtype in model_signature(layouts))


class Pool:
    """The buffers in use, and free memory. Its owner guards it with a lock.

    Args:
        most: How many results' memory of each kind is kept free at most.
        *wanted: The kinds of results. Buffers that are like none of theirs are not kept.
    """

    def __init__(self, most: int, *wanted: Signature):
        self._held: dict[int, list[Any]] = {}  # buffer and holds, by the identity of the buffer
        self._free: dict[tuple[int, Any], list[jax.Array]] = collections.defaultdict(list)
        self._most: collections.Counter[tuple[int, Any]] = collections.Counter()
        for kind in dict.fromkeys(wanted):
            self._most.update({shape: most * count for shape, count in collections.Counter(kind).items()})

    def __len__(self) -> int:
        """How many buffers are in use."""
        return len(self._held)

    def holds(self, buffers: Buffers) -> int:
        """How many hold the buffers; of several the most."""
        return max(map(self._holds, buffers), default=0)

    def hold(self, buffers: Buffers) -> None:
        """One more uses the buffers, which may be new here."""
        for buffer in buffers:
            held = self._held.get(id(buffer))
            if held is None:
                self._held[id(buffer)] = [buffer, 1]
            else:
                held[1] += 1

    def release(self, buffers: Buffers) -> None:
        """One fewer uses them. After the last their memory is free."""
        for buffer in buffers:
            held = self._held.get(id(buffer))
            assert held is not None, "released by one who does not hold it"
            if held[1] > 1:
                held[1] -= 1
            else:
                del self._held[id(buffer)]
                self._keep(buffer)

    def spend(self, buffers: Buffers) -> None:
        """Their only holder hands their memory to a computation, which donates them, or to the trainer."""
        for buffer in buffers:
            assert self._holds(buffer) == 1, "others use it, too"
            del self._held[id(buffer)]

    def put(self, buffers: Buffers) -> None:
        """Adds memory that nobody uses, unless there is enough."""
        for buffer in buffers:
            assert not self._holds(buffer), "somebody uses it"
            self._keep(buffer)

    def has(self, wanted: Signature, releasing: Sequence[jax.Array] = ()) -> bool:
        """Whether there is memory of a signature, or will be once one more holder has released ``releasing``."""
        for kind, count in _counted(wanted):
            missing = count - len(self._free[kind])
            if missing > 0 and missing > sum(_kind(each) == kind and self._holds(each) == 1 for each in releasing):
                return False
        return True

    def take(self, wanted: Signature) -> Buffers | None:
        """Free memory of a signature, which the caller holds; None if there is not enough."""
        buffers = self.withdraw(wanted)
        self.hold(buffers or ())
        return buffers

    def withdraw(self, wanted: Signature) -> Buffers | None:
        """The same for a computation that donates it at once: nobody holds it."""
        if not self.has(wanted):
            return None
        return tuple(self._free[shape].pop() for shape in wanted)

    def clear(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._free.clear()

    def _holds(self, buffer: jax.Array) -> int:
        held = self._held.get(id(buffer))
        return 0 if held is None else held[1]

    def _keep(self, buffer: jax.Array) -> None:
        kind = _kind(buffer)
        free = self._free[kind]
        if len(free) < self._most[kind]:
            free.append(buffer)


def _kind(buffer: jax.Array) -> tuple[int, Any]:
    return buffer.shape[0], buffer.dtype  # its size would take longer to get
