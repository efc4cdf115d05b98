"""Which worker takes which pairs at which step, in batches of pairs of similar length."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from train.data.order import Order, Sampling

_BUCKETS = 5  # with the seed, the key of the random stream of buckets; the orders within them have the numbers below
_LEAST_CYCLE = 256


@dataclasses.dataclass(frozen=True)
class BucketOrder:
    """Which batch every worker takes at every step: a pure function of (seed, step, worker).

    Every bucket has an endless order of its pairs (``train.data.order.Order``). Which bucket comes next is drawn in
    cycles, in each of which a bucket comes as often as it has pairs for, in a random order. So all pairs are seen
    equally often, but for rounding.

    Attributes:
        members: Which pairs are in each bucket; int64 each.
        rows: Pairs in a batch of each bucket.
        num_workers: P.
        seed: Of all that is drawn.
        sampling: What a worker draws from.
        together: Whether all workers take batches of the same bucket at a step; else each draws its own.
        seen: How many times all workers together have gone through the data before step 0.
    """

    members: Sequence[np.ndarray]
    rows: Sequence[int]
    num_workers: int
    seed: int
    sampling: Sampling = "whole"
    together: bool = False
    seen: float = 0.0

    def take(self, step: int, worker: int) -> tuple[int, np.ndarray]:
        """The bucket of a worker at a step, and the pairs of its batch, int64 [rows]."""
        cycle, within = divmod(step, self.counts.sum())
        sequence, occurrence = self._cycle(0 if self.together else worker, int(cycle))
        bucket = int(sequence[within])
        number = int(cycle * self.counts[bucket] + occurrence[within])
        return bucket, self.members[bucket][self._orders[bucket].batch(number, worker)]

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each bucket comes in a cycle, int64 [buckets]."""
        exact = np.array([len(pairs) / rows for pairs, rows in zip(self.members, self.rows, strict=True)])
        exact *= max(1.0, _LEAST_CYCLE / exact.sum())
        return np.maximum(np.rint(exact).astype(np.int64), exact > 0)

    @functools.cached_property
    def _orders(self) -> list[Order]:
        return [
            Order(len(pairs), self.num_workers, rows, self.seed, self.sampling, int(self.seen * len(pairs)))
            for pairs, rows in zip(self.members, self.rows, strict=True)
        ]

    @functools.cached_property
    def _cycle(self):
        @functools.lru_cache(maxsize=2 * self.num_workers)
        def cycle(stream: int, number: int) -> tuple[np.ndarray, np.ndarray]:
            """The buckets of a cycle in order, and the how manieth of its bucket each is."""
            rng = np.random.default_rng((self.seed, _BUCKETS, stream, number))
            sequence = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
            occurrence = np.empty(len(sequence), np.int64)
            for bucket in range(len(self.counts)):
                here = sequence == bucket
                occurrence[here] = np.arange(here.sum())
            return sequence, occurrence

        return cycle
