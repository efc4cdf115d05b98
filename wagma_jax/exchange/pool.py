"""Memory for the results of exchanges: former publications and former sums, so that few pages are ever fresh.

Fresh pages are what costs in large models. Buffers are opaque here; what distinguishes a whole model from the part that
ordinary rounds exchange is the number of buffers.
"""

from collections.abc import Callable

from wagma_jax.exchange.storage import Buffers


class Pool:
    """The memory that is free, at most one result for each number of buffers. Its owner guards it with a lock.

    Args:
        ordinary: Maps the buffers of a model to those that ordinary rounds exchange.
        reuse: Whether publications are memory for sums, that is of the same dtypes.
    """

    def __init__(self, ordinary: Callable[[Buffers], Buffers], reuse: bool):
        self._ordinary = ordinary
        self._reuse = reuse
        self._free: dict[int, Buffers] = {}
        self._read: Buffers | None = None  # the publication that an exchange is reading

    def has(self, size: int, retiring: Buffers) -> bool:
        """Whether there is memory for ``size`` buffers, or will be once the publication ``retiring`` is replaced."""
        return size in self._free or size in self._retired(retiring)

    def put(self, buffers: Buffers) -> None:
        """Adds memory that nobody refers to any more, unless there is enough."""
        self._free.setdefault(len(buffers), buffers)

    def retire(self, publication: Buffers) -> None:
        """Adds a publication that was replaced. If an exchange still reads it, ``end_reading`` does."""
        self._free |= self._retired(publication)

    def begin_reading(self, publication: Buffers) -> None:
        """An exchange begins to read a publication."""
        assert self._read is None, "one exchange at a time"
        self._read = publication

    def end_reading(self, current: Buffers) -> None:
        """The exchange is over; ``current`` is the publication now."""
        publication, self._read = self._read, None
        if publication is not None and publication is not current:
            self.retire(publication)

    def take(self, size: int) -> Buffers | None:
        """Memory for ``size`` buffers, None if there is none."""
        return self._free.pop(size, None)

    def clear(self) -> None:
        """Frees everything."""
        self._free = {}

    def _retired(self, publication: Buffers) -> dict[int, Buffers]:
        if not self._reuse or publication is self._read:
            return {}
        ordinary = self._ordinary(publication)
        return {len(ordinary): ordinary}
