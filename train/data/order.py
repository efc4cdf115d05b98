"""Which worker takes which example at which step.

The order is a pure function of (seed, step, worker). It depends neither on the algorithm nor on the number of processes
or threads, and a run resumes at any step without replaying those before it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np

Sampling = Literal["whole", "shard"]
"""What a worker draws from: the whole training set, or a part of its own."""

# Purposes of random numbers: each has a stream of its own, drawn from the seed and one of these numbers.
_WHOLE, _SHARD, _AUGMENTATION = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples every worker takes at every step.

    With ``sampling="whole"`` each epoch is a new permutation of all examples, dealt out to the workers a batch at a
    time. Batches run on over the end of an epoch, so that no example is left out. With "shard" worker w owns the
    examples w, w + P, w + 2P, ... and goes through a new permutation of them in each of its epochs.

    Attributes:
        num_examples: In the training set.
        num_workers: P.
        batch_size: Examples per worker and step.
        seed: Of the permutations.
        sampling: See above.
        first_example: Where in the endless stream of examples step 0 begins: the number of examples that all workers
            together have seen before, when a run goes on with another number of workers.

    Raises:
        ValueError: A shard would be empty.
    """

    num_examples: int
    num_workers: int
    batch_size: int
    seed: int
    sampling: Sampling = "whole"
    first_example: int = 0

    def __post_init__(self):
        """Checks that every worker has an example."""
        if self.sampling == "shard" and self.num_examples < self.num_workers:
            raise ValueError(
                f"{self.num_workers} workers cannot have a shard each of {self.num_examples} examples: lower "
                "--workers, or let all draw from the whole set with --sampling whole"
            )

    def positions(self, step: int, worker: int) -> np.ndarray:
        """Where a worker reads in its stream of examples, int64 [batch_size].

        With "shard" every worker has a stream of its own; otherwise all share one.
        """
        if self.sampling == "shard":
            start = self.first_example // self.num_workers + step * self.batch_size
        else:
            start = self.first_example + (step * self.num_workers + worker) * self.batch_size
        return np.arange(start, start + self.batch_size)

    def indices(self, positions: np.ndarray, worker: int) -> np.ndarray:
        """Which examples are at these positions of a worker's stream, int64 [positions]."""
        # Whole permutations are kept: grain's own shuffle computes each index by itself, which takes 6 us an index.
        if self.sampling == "shard":
            first, stride, key, permutation = worker, self.num_workers, (_SHARD, worker), _permutation_of_shard
        else:
            first, stride, key, permutation = 0, 1, (_WHOLE,), _permutation_of_all
        size = len(range(first, self.num_examples, stride))
        epochs, within = np.divmod(positions, size)
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permutation(size, (self.seed, *key, int(epoch)))[within[here]]
        return first + stride * indices

    def batch(self, step: int, worker: int) -> np.ndarray:
        """Which examples a worker takes at a step, int64 [batch_size]."""
        return self.indices(self.positions(step, worker), worker)

    def take(self, step: int, workers: Sequence[int], rows: range) -> tuple[np.ndarray, "Draws"]:
        """What some workers take at a step.

        Args:
            step: Counted from ``first_example`` on.
            workers: Some workers.
            rows: Which of their ``len(workers) * batch_size`` examples, those of the first worker first.

        Returns:
            The indices of the examples, int64 [rows], and the generators to augment them with.
        """
        indices, positions, owners = [], [], []
        for which in range(rows.start // self.batch_size, math.ceil(rows.stop / self.batch_size)):
            worker, begin = workers[which], which * self.batch_size
            taken = self.positions(step, worker)[max(rows.start - begin, 0) : rows.stop - begin]
            indices.append(self.indices(taken, worker))
            positions.append(taken)
            owners.append(np.full(len(taken), worker + 1 if self.sampling == "shard" else 0))
        draws = Draws((self.seed, _AUGMENTATION), np.concatenate(owners), np.concatenate(positions))
        return np.concatenate(indices), draws


class Draws(Sequence[np.random.Generator]):
    """One random generator for each of some positions in streams of examples, made when it is asked for.

    Args:
        key: What all generators are seeded with.
        owners: int64 [positions], which stream each position is in.
        positions: int64 [positions].
    """

    def __init__(self, key: tuple[int, ...], owners: np.ndarray, positions: np.ndarray):
        self._key = key
        self._owners = owners
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, item: int) -> np.random.Generator: ...

    @overload
    def __getitem__(self, item: slice) -> "Draws": ...

    def __getitem__(self, item: int | slice) -> "np.random.Generator | Draws":
        if isinstance(item, slice):
            return Draws(self._key, self._owners[item], self._positions[item])
        return np.random.default_rng((*self._key, int(self._owners[item]), int(self._positions[item])))


def _permutation(size: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


# At the end of an epoch some threads are still before it and others after it. The permutation of a shard is small, but
# there are many shards.
_permutation_of_all = functools.lru_cache(maxsize=3)(_permutation)
_permutation_of_shard = functools.lru_cache(maxsize=256)(_permutation)
