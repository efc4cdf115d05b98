"""Feeds of experience: every iteration begins with a rollout, by the model as it is after the exchange."""

from collections.abc import Callable

import numpy as np

from train.experience.rollouts import Carry, Size
from train.task import Batch, Model, Place

Collect = Callable[[Model, Carry], Carry]


class ExperienceFeed:
    """See ``train.task.Feed``. A batch says which updates of the iteration a step takes; the carry has the experience.

    Args:
        place: Where the workers are.
        collect: Maps the models and carries of all workers here to the carries after another rollout.
        size: Of a worker's experience.
        updates: In an iteration.
        together: Updates in a step: one, or all of them.
        close: Called at the end.
    """

    def __init__(
        self, place: Place, collect: Collect, size: Size, updates: int, together: int, close: Callable[[], None]
    ):
        self._place, self._collect, self._updates, self._together = place, collect, updates, together
        self._total, self.close = size.steps * size.environments, close

    def next(self, step: int, model: Model, carry: Carry) -> tuple[Batch, Carry]:
        """The batch of a step; collects at the first one of an iteration."""
        done = step * self._together % self._updates
        if done == 0:
            carry = self._collect(model, carry)
        return self._batch(done), carry

    def _batch(self, done: int) -> Batch:
        """The batch of the step that begins after so many updates of the iteration."""
        here = len(self._place.workers)
        updates = np.arange(done, done + self._together, dtype=np.int32)
        batch = updates if self._together > 1 else updates[0]
        # what was collected counts in equal parts for all steps that learn from it, in whole numbers
        units = [self._total * each // self._updates for each in (done, done + self._together)]
        arrays = self._place.put({"update": np.stack([batch] * here)})
        return Batch(arrays, np.full(here, units[1] - units[0], np.int64))
