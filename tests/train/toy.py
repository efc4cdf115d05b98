"""Linear regression as a workload: what loop, transports and checkpoints are tested on. ``python -m train.toy``."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import recipe, run
from train.data.arrays import ArrayFeed, batch_shapes
from train.data.order import Order
from train.fields import option
from train.options import RunOptions
from train.task import Defaults, Gradients, Mean, Score

WIDTH, EXAMPLES = 5, 240


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions):
    """Fit a linear model.

    Attributes:
        noise: Standard deviation of what is drawn in every step and added to the targets.
        pause: Seconds that it takes to load a batch.
        picture: Draw training.png at the end. Off, since it takes half of the time of so short a run.
    """

    noise: float = 0.01
    pause: float = option(0.0, resume="free")
    picture: bool = option(False, resume="free")


class Carry(NamedTuple):
    """Steps taken, and a random key: something of every kind that a checkpoint must keep."""

    steps: jax.Array
    key: jax.Array


class Toy(Defaults):
    name, unit, score = "toy", "rows", Score("error", higher=False)
    units_per_epoch, fingerprint = EXAMPLES, {"rows": EXAMPLES}

    def __init__(self, options: Options):
        self.options, self.units_per_step = options, options.batch_size
        x = np.random.default_rng(7).normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
        self.data = {"x": x, "y": x @ np.arange(1, WIDTH + 1, dtype=np.float32)}
        self.batch_shapes = batch_shapes(self.data, options.batch_size)
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.init(0))

    def init(self, seed):
        weights = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
        return {"params": {"w": weights}, "stats": {"mean": np.zeros((), np.float32)}}

    def carry(self, key):
        return Carry(jnp.zeros((), jnp.int32), key)

    def gradients(self, model, carry, batch, key):
        targets = batch["y"] + self.options.noise * jax.random.normal(key, batch["y"].shape)
        error = lambda params: jnp.mean(jnp.square(batch["x"] @ params["w"] - targets))
        loss, grads = jax.value_and_grad(error)(model["params"])
        stats = {"mean": 0.9 * model["stats"]["mean"] + 0.1 * targets.mean()}
        carry = Carry(carry.steps + 1, jax.random.fold_in(carry.key, carry.steps))
        return Gradients(grads, stats, carry, {"loss": Mean(loss, jnp.ones(()))})

    def feed(self, place, seed, first_unit):
        options = self.options
        order = Order(EXAMPLES, options.workers, options.batch_size, seed, options.sampling, first_unit)
        return ToyFeed(self.data, order, place, options.pause)

    def evaluate(self, model, place):
        which, parts = place.part
        x, y = self.data["x"][which::parts], self.data["y"][which::parts]
        return float(np.square(x @ model["params"]["w"] - y).sum()), len(y)

    def scores(self, parts):
        return {"error": sum(total for total, _ in parts) / sum(count for _, count in parts)}

    def finish(self, out, notes, parts):
        return {"drawn": len(notes.get("drawn", ()))}


class ToyFeed(ArrayFeed):
    """Takes its time, and notes which rows it gives."""

    def __init__(self, data, order, place, pause):
        super().__init__(data, order, place)
        self.pause = pause

    def next(self, step, model, carry):
        time.sleep(self.pause)
        batch, carry = super().next(step, model, carry)
        return batch._replace(notes={"drawn": frozenset(self.rows(step).ravel().tolist())}), carry


WORKLOAD = run.Workload("toy", Options, Toy, recipe.create_optimizer, module="tests.train.toy")

if __name__ == "__main__":
    run.main(WORKLOAD)
