"""Counted holds on buffers: how many still use them, so that the memory of those that nobody uses is used again.

A push outlives its round: its buffers are a model that the trainer takes, are read by sends to several workers, and
are mixed. Each of these uses is a hold. Whoever holds buffers alone may spend them: hand their memory to a computation.
"""

from typing import Any, NamedTuple

from wagma_jax.exchange.storage import Buffers

Signature = tuple[tuple[int, Any], ...]


class _Held(NamedTuple):
    buffers: Buffers
    holds: int


def signature(buffers: Buffers) -> Signature:
    """Sizes and dtypes: what makes buffers interchangeable."""
    return tuple((buffer.size, buffer.dtype) for buffer in buffers)


class Holds:
    """The buffers in use, and free memory. Its owner guards it with a lock.

    Args:
        most: How many models' memory of each signature is kept free at most.
    """

    def __init__(self, most: int):
        self._most = most
        self._held: dict[int, _Held] = {}  # by the identity of the tuple, which is referred to here
        self._free: dict[Signature, list[Buffers]] = {}

    def __len__(self) -> int:
        """How many models are in use."""
        return len(self._held)

    def holds(self, buffers: Buffers) -> int:
        """How many hold the buffers."""
        held = self._held.get(id(buffers))
        return 0 if held is None else held.holds

    def hold(self, buffers: Buffers) -> None:
        """One more uses the buffers, which may be new here."""
        if buffers:
            self._held[id(buffers)] = _Held(buffers, self.holds(buffers) + 1)

    def release(self, buffers: Buffers) -> None:
        """One fewer uses them. After the last their memory is free."""
        if not buffers:
            return
        left = self.holds(buffers) - 1
        assert left >= 0, "released by one who does not hold it"
        if left:
            self._held[id(buffers)] = _Held(buffers, left)
        else:
            del self._held[id(buffers)]
            self.put(buffers)

    def spend(self, buffers: Buffers) -> None:
        """Their only holder hands their memory to a computation, which donates them."""
        assert self.holds(buffers) == 1, "others use it, too"
        del self._held[id(buffers)]

    def put(self, buffers: Buffers) -> None:
        """Adds memory that nobody uses, unless there is enough."""
        assert not self.holds(buffers), "somebody uses it"
        free = self._free.setdefault(signature(buffers), [])
        if len(free) < self._most:
            free.append(buffers)

    def take(self, wanted: Signature) -> Buffers | None:
        """Free memory of a signature, which the caller holds; None if there is none."""
        free = self._free.get(wanted)
        if not free:
            return None
        buffers = free.pop()
        self.hold(buffers)
        return buffers

    def clear(self) -> None:
        """Forgets everything."""
        self._held, self._free = {}, {}
