"""Batches that are loaded ahead, for the workers of a process, and the process's part of an evaluation."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from train.data import loading
from train.data.order import Order
from train.task import Batch, Place

Arrays = Mapping[str, np.ndarray]


class LoadedFeed:
    """See ``train.task.Feed``; every batch counts for its examples.

    Args:
        examples: The training set.
        order: Who takes which example when.
        place: Where the workers are.
        options: How to load.
        prepare: Maps a batch with leaves [workers here, batch_size, ...] to (what a step takes of it, its notes).
            It runs in another thread.
        chunk: How many examples a thread loads at a time; None: all that the process needs for a step.
    """

    def __init__(
        self,
        examples: loading.Examples,
        order: Order,
        place: Place,
        options: loading.LoadingOptions,
        prepare: Callable[[Arrays], tuple[Arrays, Mapping[str, frozenset[int]]]],
        chunk: int | None = None,
    ):
        self._units = np.full(len(place.workers), order.batch_size, np.int64)
        self._batches: Iterator[Any] | None = None

        def finish(batch: Arrays) -> tuple[Any, Mapping[str, frozenset[int]]]:
            arrays, notes = prepare(batch)
            return place.put(arrays), notes

        self._load = lambda step: loading.training_batches(
            examples,
            order,
            list(place.workers),
            step,
            finish,
            chunk=chunk,
            threads=options.loader_threads,
            processes=options.loader_processes,
        )

    def next(self, step: int, model: Any, carry: Any) -> tuple[Batch, Any]:
        """The batch of a step."""
        del model
        if self._batches is None:
            self._batches = self._load(step)
        arrays, notes = next(self._batches)
        return Batch(arrays, self._units, notes), carry

    def close(self) -> None:
        """Ends what loads in the background."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


def evaluation_part(
    examples: loading.Examples,
    place: Place,
    options: loading.LoadingOptions,
    rows_per_device: int,
    chunk: int | None = None,
) -> Iterator[tuple[Any, np.ndarray]]:
    """This process's rows of all evaluation batches, equally many for each of its devices.

    Args:
        examples: The test set.
        place: Which part of it is this process's, and how many devices it has.
        options: How to load.
        rows_per_device: At most so many at a time.
        chunk: As for :class:`LoadedFeed`.

    Returns:
        An iterator over (batch with leaves [rows, ...], bool [rows]: False past the end of the test set).
    """
    which, parts = place.part
    devices = len(place.devices)
    rows = devices * min(rows_per_device, math.ceil(len(examples) / (parts * devices)))
    return loading.evaluation_batches(
        examples,
        parts * rows,
        range(which * rows, (which + 1) * rows),
        chunk=chunk,
        threads=options.loader_threads,
        processes=options.loader_processes,
    )
