"""Feeds the workers: who takes which example at which step, loaded in parallel to training by grain.

The order is a pure function of (seed, step, worker): it does not depend on the algorithm, nor on the number of
processes or threads, and a run resumes anywhere without replaying what came before.
"""

import dataclasses
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import grain
import grain.experimental
import numpy as np

from train.data import Batch, Examples, Sampling

# Drawn from the seed, each for its own purpose, by one of these numbers beside it.
_WHOLE, _SHARD, _AUGMENTATION = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples every worker takes at every step.

    With ``sampling="whole"`` each epoch is a new permutation of all examples, dealt out to the workers a batch at a
    time; batches run on over the end of an epoch, so that no example is left out. With "shard" worker w owns the
    examples w, w + P, w + 2P, ..., and goes through a permutation of its own of them in each of its epochs.

    Attributes:
        num_examples: In the training set.
        num_workers: P.
        batch_size: Examples per worker and step.
        seed: Of the permutations.
        sampling: See above.
        first_example: Where in the endless stream of examples step 0 begins: what all workers have seen before, when
            a run goes on with another number of workers.

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
        """Where in its stream of examples (its own with "shard", the common one otherwise) a worker reads; [batch]."""
        if self.sampling == "shard":
            start = self.first_example // self.num_workers + step * self.batch_size
        else:
            start = self.first_example + (step * self.num_workers + worker) * self.batch_size
        return np.arange(start, start + self.batch_size)

    def indices(self, positions: np.ndarray, worker: int) -> np.ndarray:
        """Which examples stand at these positions, int64 [batch]."""
        # whole permutations: grain's own shuffle looks up each index by itself, which takes 6 us an index
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

    def take(self, step: int, workers: Sequence[int], rows: range) -> tuple[np.ndarray, "Draws"]:
        """What some workers take at a step: the indices, and the generators that the augmentation draws from.

        Args:
            step: Counted from ``first_example`` on.
            workers: Some workers.
            rows: Which of their ``len(workers) * batch_size`` examples, the first worker's first.
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
    """A generator for each of some positions, made when it is asked for."""

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


class _Chunks:
    """A grain source: the training batches of some workers at some steps, in chunks of examples."""

    def __init__(self, examples: Examples, order: Order, workers: Sequence[int], chunk: int, steps: range):
        self._examples = examples
        self._order = order
        self._workers = workers
        self._chunk = chunk
        self._steps = steps
        self._per_step = len(workers) * order.batch_size // chunk

    def __len__(self) -> int:
        return len(self._steps) * self._per_step

    def __getitem__(self, index) -> Batch:
        which, part = divmod(int(index), self._per_step)
        rows = range(part * self._chunk, (part + 1) * self._chunk)
        return self._examples.load(*self._order.take(self._steps[which], self._workers, rows))


class _TestChunks:
    """A grain source: rows [first, last) of every evaluation batch, in chunks; indices past the end repeat the last."""

    def __init__(self, examples: Examples, batch_size: int, rows: range, chunk: int):
        self._examples = examples
        self._batch_size = batch_size
        self._rows = rows
        self._chunk = chunk

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._batch_size) * (len(self._rows) // self._chunk)

    def __getitem__(self, index) -> tuple[Batch, np.ndarray]:
        batch, part = divmod(int(index), len(self._rows) // self._chunk)
        rows = self._rows[part * self._chunk : (part + 1) * self._chunk]
        indices = batch * self._batch_size + np.arange(rows.start, rows.stop)
        inside = indices < len(self._examples)
        loaded = self._examples.load(np.minimum(indices, len(self._examples) - 1), None)
        return loaded, inside & (loaded["unreadable"] < 0)


def training_batches(
    examples: Examples,
    order: Order,
    workers: Sequence[int],
    steps: range,
    finish: Callable[[Batch], Any] = lambda batch: batch,
    *,
    chunk: int | None = None,
    threads: int = 8,
    processes: int = 0,
) -> Iterator[Any]:
    """The batches of a process's workers, loaded ahead in the background.

    Args:
        examples: The training set.
        order: Who takes which example when.
        workers: The workers of this process.
        steps: Which steps; contiguous.
        finish: What to do with each ``Batch``, leaves ``[len(workers), batch_size, ...]``, in the background: bring it
            onto the devices, say.
        chunk: How many examples are loaded at a time, rounded down to a divisor of those of a step; None: a step's.
        threads: Threads that load (in each process).
        processes: Processes that load; 0: the threads of this one do.

    Returns:
        An iterator (with a ``close`` method) over what ``finish`` returned, one a step.
    """
    total = len(workers) * order.batch_size
    chunk = _divisor(total, chunk)

    def assemble(chunks: Sequence[Batch]) -> Any:
        return finish(_stack(chunks, (len(workers), order.batch_size)))

    return _load(_Chunks(examples, order, list(workers), chunk, steps), total // chunk, assemble, threads, processes)


def evaluation_batches(
    examples: Examples,
    batch_size: int,
    rows: range,
    *,
    chunk: int | None = None,
    threads: int = 8,
    processes: int = 0,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """This process's rows of the evaluation batches, each example once and in order.

    Args:
        examples: The test set.
        batch_size: Of the batches of all processes together.
        rows: Which rows of each batch are this process's; contiguous.
        chunk: As for :func:`training_batches`, a divisor of the number of rows.
        threads: As there.
        processes: As there.

    Returns:
        An iterator (with a ``close`` method) over (``Batch`` with leaves ``[len(rows), ...]``, bool ``[len(rows)]``:
        whether the row counts; rows past the end and unreadable examples do not).
    """
    chunk = _divisor(len(rows), chunk)
    source = _TestChunks(examples, batch_size, rows, chunk)

    def assemble(chunks):
        loaded, counts = zip(*chunks, strict=True)
        return _stack(loaded, (len(rows),)), np.concatenate(counts)

    return _load(source, len(rows) // chunk, assemble, threads, processes)


def _load(source, chunks_per_batch: int, assemble, threads: int, processes: int):
    # in flight: two batches, or what keeps all threads busy
    ahead = max(2 * chunks_per_batch, 2 if chunks_per_batch == 1 else threads)
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    data = grain.MapDataset.source(source).to_iter_dataset(options)
    if processes:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its processes
        workers = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=2)
        data = data.mp_prefetch(workers, worker_init_fn=_follow_the_parent)
    data = data.batch(chunks_per_batch, drop_remainder=True, batch_fn=assemble)
    return iter(grain.experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=2))


def _follow_the_parent(index: int, count: int) -> None:
    """A loading process lives as long as the one that it loads for, no less and no longer.

    A terminal and a scheduler send their signals to all processes, but the parent needs data until it stops; and a
    parent that is killed ends nobody.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _stack(chunks: Sequence[Batch], leading: tuple[int, ...]) -> Batch:
    def join(name: str) -> np.ndarray:
        parts = [chunk[name] for chunk in chunks]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.reshape(*leading, *whole.shape[1:])

    return Batch(image=join("image"), label=join("label"), unreadable=join("unreadable"))


def _divisor(total: int, at_most: int | None) -> int:
    """The largest divisor of ``total`` that is not above ``at_most``."""
    return max(n for n in range(1, min(at_most or total, total) + 1) if total % n == 0)


def _permutation(size: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


# Threads stand on both sides of the end of an epoch; a shard's permutation is small, but there are many shards.
_permutation_of_all = functools.lru_cache(maxsize=3)(_permutation)
_permutation_of_shard = functools.lru_cache(maxsize=256)(_permutation)
