"""Loads batches in the background with grain: dicts of arrays, whatever they mean."""

import collections
import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, Protocol, TypeVar

import numpy as np

from train.data.order import Order
from train.fields import Checked, option
from train.interrupts import SIGNALS

Tree = dict[str, np.ndarray]
"""Arrays by name, all with the same leading axes."""

T = TypeVar("T")

_AHEAD = 2  # batches that are assembled before they are asked for


class Examples(Protocol):
    """One split of a data set. Safe to use from several threads, and picklable."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Tree:
        """Reads examples.

        Args:
            indices: int64 [examples], each in [0, len).
            draws: For training: a generator per example, the only source of randomness for its augmentation. None for
                evaluation, which draws nothing.

        Returns:
            Leaves [examples, ...], with the same names, dtypes and trailing shapes in every call.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LoadingOptions(Checked):
    """How a script loads its data.

    Attributes:
        loader_threads: Threads that load data, in each process that does.
        loader_processes: Processes that load data, for files on a host with many cores; 0: the threads of this one do.
    """

    loader_threads: int = option(8, resume="free")
    loader_processes: int = option(0, resume="free")

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        if self.loader_threads < 1:
            raise ValueError(f"--loader-threads must be at least 1, got {self.loader_threads}")
        if self.loader_processes < 0:
            raise ValueError(f"--loader-processes must not be negative, got {self.loader_processes}")
        super().check()


class Batches(Iterator[T]):
    """Batches, assembled in a thread from what grain loads.

    An error while loading is raised in place of its batch, and ends the iterator.

    Args:
        chunks: A grain iterator over parts of batches.
        chunks_per_batch: Parts of a batch.
        assemble: Makes a batch of its parts.
    """

    def __init__(self, chunks: Any, chunks_per_batch: int, assemble: Callable[[list[Any]], T]):
        self._chunks = chunks
        self._chunks_per_batch = chunks_per_batch
        self._assemble = assemble
        self._ended = threading.Event()
        # One thread, so that batches stay in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: collections.deque[Future[T]] = collections.deque()
        for _ in range(_AHEAD):
            self._ahead.append(self._thread.submit(self._make))

    def __next__(self) -> T:
        if not self._ahead:
            raise StopIteration
        if not self._ended.is_set():
            self._ahead.append(self._thread.submit(self._make))
        try:
            return self._ahead.popleft().result()
        except Exception:  # StopIteration among them
            self.close()
            raise

    def close(self) -> None:
        """Ends the iterator and all loading. It waits for the chunks that are being loaded, not for whole batches."""
        self._ended.set()
        self._ahead.clear()
        self._thread.shutdown(cancel_futures=True)
        self._chunks.close()

    def _make(self) -> T:
        try:
            chunks = []
            for _ in range(self._chunks_per_batch):
                self._check()
                chunks.append(next(self._chunks))
            self._check()
            return self._assemble(chunks)
        except BaseException:
            self._ended.set()  # what follows an error would be the rest of a batch
            raise

    def _check(self) -> None:
        if self._ended.is_set():
            raise StopIteration


def training_batches(
    examples: Examples,
    order: Order,
    workers: Sequence[int],
    first_step: int,
    finish: Callable[[Tree], T] = lambda batch: batch,
    *,
    chunk: int | None = None,
    threads: int = 8,
    processes: int = 0,
) -> Batches[T]:
    """The batches of some workers from a step on, without end; loading begins at once.

    Args:
        examples: The training set.
        order: Who takes which example when.
        workers: The workers of this process.
        first_step: Counted from ``order.first_example`` on.
        finish: What to do with each batch in the background, such as bringing it onto the devices. It gets a dict with
            leaves [len(workers), batch_size, ...].
        chunk: How many examples a thread loads at a time, rounded down to a divisor of those of a step; None: all of a
            step.
        threads: Threads that load, in each process that does.
        processes: Processes that load; 0: the threads of this one do.

    Returns:
        An iterator over what ``finish`` returned, one value per step; to be closed.
    """
    total = len(workers) * order.batch_size
    chunk = _divisor(total, chunk)

    def assemble(chunks: list[Tree]) -> T:
        return finish(_joined(chunks, (len(workers), order.batch_size)))

    source = _TrainingChunks(examples, order, list(workers), first_step, chunk)
    return _load(source, total // chunk, assemble, threads, processes)


def evaluation_batches(
    examples: Examples,
    batch_size: int,
    rows: range,
    *,
    chunk: int | None = None,
    threads: int = 8,
    processes: int = 0,
) -> Batches[tuple[Tree, np.ndarray]]:
    """This process's rows of the evaluation batches, each example once and in order; loading begins at once.

    Args:
        examples: The test set.
        batch_size: Of the batches of all processes together.
        rows: Which rows of each batch are this process's; contiguous.
        chunk: As for :func:`training_batches`, a divisor of the number of rows.
        threads: As there.
        processes: As there.

    Returns:
        An iterator over (dict with leaves [len(rows), ...], bool [len(rows)]). The second is False for rows past the
        end of the set, which hold the last example again. To be closed, unless it has come to its end.
    """
    chunk = _divisor(len(rows), chunk)

    def assemble(chunks: list[tuple[Tree, np.ndarray]]) -> tuple[Tree, np.ndarray]:
        loaded, inside = zip(*chunks, strict=True)
        return _joined(loaded, (len(rows),)), np.concatenate(inside)

    return _load(_EvaluationChunks(examples, batch_size, rows, chunk), len(rows) // chunk, assemble, threads, processes)


class _TrainingChunks:
    """A grain source: the training batches of some workers, in chunks of examples."""

    def __init__(self, examples: Examples, order: Order, workers: Sequence[int], first_step: int, chunk: int):
        self._examples = examples
        self._order = order
        self._workers = workers
        self._first_step = first_step
        self._chunk = chunk
        self._per_step = len(workers) * order.batch_size // chunk

    def __len__(self) -> int:
        return sys.maxsize  # which grain takes for endless

    def __getitem__(self, index) -> Tree:
        step, part = divmod(int(index), self._per_step)
        rows = range(part * self._chunk, (part + 1) * self._chunk)
        return self._examples.load(*self._order.take(self._first_step + step, self._workers, rows))


class _EvaluationChunks:
    """A grain source: some rows of every evaluation batch, in chunks; indices past the end repeat the last."""

    def __init__(self, examples: Examples, batch_size: int, rows: range, chunk: int):
        self._examples = examples
        self._batch_size = batch_size
        self._rows = rows
        self._chunk = chunk

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._batch_size) * (len(self._rows) // self._chunk)

    def __getitem__(self, index) -> tuple[Tree, np.ndarray]:
        batch, part = divmod(int(index), len(self._rows) // self._chunk)
        rows = self._rows[part * self._chunk : (part + 1) * self._chunk]
        indices = batch * self._batch_size + np.arange(rows.start, rows.stop)
        last = len(self._examples) - 1
        return self._examples.load(np.minimum(indices, last), None), indices <= last


def _load(
    source: Any, chunks_per_batch: int, assemble: Callable[[list[Any]], T], threads: int, processes: int
) -> Batches[T]:
    import grain  # takes most of a second

    # Chunks in flight in each process: its part of two batches, or what keeps its threads busy.
    ahead = 2 if chunks_per_batch == 1 else max(math.ceil(2 * chunks_per_batch / max(processes, 1)), threads)
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    data = grain.MapDataset.source(source).to_iter_dataset(options)
    if processes:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its processes
        _start_tracker()
        workers = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=2)
        data = data.mp_prefetch(workers, worker_init_fn=_follow_the_parent)
    return Batches(iter(data), chunks_per_batch, assemble)


def _start_tracker() -> None:
    """Starts what multiprocessing has beside its processes, deaf to signals that ask the run to stop."""
    if threading.current_thread() is not threading.main_thread():
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which a process inherits
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _follow_the_parent(index: int, count: int) -> None:
    """Makes a loading process live exactly as long as the process that it loads for.

    A terminal and a scheduler send their signals to all processes, but the parent needs data until it stops. And a
    parent that is killed cannot end anybody.
    """
    del index, count
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _joined(chunks: Sequence[Tree], leading: tuple[int, ...]) -> Tree:
    """One tree of several, with the leading axis [examples] split into ``leading``."""

    def join(name: str) -> np.ndarray:
        parts = [chunk[name] for chunk in chunks]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.reshape(*leading, *whole.shape[1:])

    return {name: join(name) for name in chunks[0]}


def _divisor(total: int, at_most: int | None) -> int:
    """The largest divisor of ``total`` that is not above ``at_most``."""
    return max(n for n in range(1, min(at_most or total, total) + 1) if total % n == 0)
