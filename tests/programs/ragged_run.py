"""The toy with batches of growing size, the compilation of which takes a while."""

import time

from tests.train.toy import Options, Toy
from train import recipe, run


class RaggedFeed:
    def __init__(self, feed):
        self.feed = feed

    def next(self, step, model, carry):
        batch, carry = self.feed.next(step, model, carry)
        return batch._replace(arrays={name: array[: step + 1] for name, array in batch.arrays.items()}), carry

    def close(self):
        self.feed.close()


class Ragged(Toy):
    made = 0

    def __init__(self, options):
        super().__init__(options)
        Ragged.made += 1

    def gradients(self, model, carry, batch, key):
        time.sleep(0.1)  # once for each shape, since it is compiled
        return super().gradients(model, carry, batch, key)

    def feed(self, place, seed, first_unit):
        return RaggedFeed(super().feed(place, seed, first_unit))


WORKLOAD = run.Workload("ragged", Options, Ragged, recipe.create_optimizer, module="tests.programs.ragged_run")
