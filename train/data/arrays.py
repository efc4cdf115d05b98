"""Batches from arrays in memory."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from train.data.order import Order
from train.task import Batch, Place

Arrays = Mapping[str, np.ndarray]
"""Leaves [examples, ...]."""


def batch_shapes(arrays: Arrays, batch_size: int) -> list[Any]:
    """The shapes of one worker's batches, as ``Task.batch_shapes`` has them."""
    shapes = {name: (batch_size, *array.shape[1:]) for name, array in arrays.items()}
    return [{name: jax.ShapeDtypeStruct(shape, arrays[name].dtype) for name, shape in shapes.items()}]


class ArrayFeed:
    """See ``train.task.Feed``; every batch counts for its examples.

    Args:
        arrays: The training set.
        order: Who takes which example when.
        place: Where the workers are.
    """

    def __init__(self, arrays: Arrays, order: Order, place: Place):
        self._arrays, self._order, self._place = arrays, order, place
        self._units = np.full(len(place.workers), order.batch_size, np.int64)

    def rows(self, step: int) -> np.ndarray:
        """Which examples the workers of this process take at a step, int64 [workers here, batch_size]."""
        return np.stack([self._order.batch(step, worker) for worker in self._place.workers])

    def next(self, step: int, model: Any, carry: Any) -> tuple[Batch, Any]:
        """The batch of a step."""
        del model
        rows = self.rows(step)
        arrays = self._place.put({name: array[rows] for name, array in self._arrays.items()})
        return Batch(arrays, self._units), carry

    def close(self) -> None:
        """Nothing runs in the background."""
