"""Batches of sentence pairs for the workers of a process."""

from typing import Any

import jax
import numpy as np

from train.data.text.buckets import Shape
from train.data.text.order import BucketOrder
from train.data.text.tokens import TokenPairs
from train.task import Batch, Place


def batch_shape(shape: Shape) -> Any:
    """One worker's batch of this shape, as ``Task.batch_shapes`` has them."""
    sides = {"source": shape.source, "target": shape.target}
    return {name: jax.ShapeDtypeStruct((shape.rows, length), np.int32) for name, length in sides.items()}


class PairFeed:
    """See ``train.task.Feed``; every batch counts for its tokens of source and target.

    Args:
        pairs: The training set.
        shapes: Of the batches of each bucket.
        order: Who takes what when.
        place: Where the workers are.
    """

    def __init__(self, pairs: TokenPairs, shapes: list[Shape], order: BucketOrder, place: Place):
        self._pairs, self._shapes, self._order, self._place = pairs, shapes, order, place

    def next(self, step: int, model: Any, carry: Any) -> tuple[Batch, Any]:
        """The batch of a step: tokens int32 [workers here, rows, length] of source and target."""
        del model
        taken = [self._order.take(step, worker) for worker in self._place.workers]
        sources, targets = [], []
        for bucket, which in taken:
            shape = self._shapes[bucket]
            sources.append(self._pairs.source.padded(which, shape.source))
            targets.append(self._pairs.target.padded(which, shape.target))
        units = np.array([self._pairs.lengths[which].sum() for _, which in taken], np.int64)
        arrays = self._place.put({"source": np.stack(sources), "target": np.stack(targets)})
        return Batch(arrays, units), carry

    def close(self) -> None:
        """Nothing runs in the background."""
