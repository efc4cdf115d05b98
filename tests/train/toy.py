"""Linear regression as a workload: what loop, transports and checkpoints are tested on. ``python -m train.toy``."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import recipe, run
from train.fields import option
from train.options import RunOptions
from train.task import Batch, Gradients, Mean, Score

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

    def check(self) -> None:
        super().check()
        self.check_recipe()


class Carry(NamedTuple):
    """Steps taken, and a random key: something of every kind that a checkpoint must keep."""

    steps: jax.Array
    key: jax.Array


class Toy:
    name, unit, score = "toy", "rows", Score("error", higher=False)
    units_per_epoch = EXAMPLES

    def __init__(self, options: Options):
        self.options = options
        self.units_per_step = options.batch_size
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.init(0))
        self.fingerprint = {"rows": EXAMPLES}
        row = jax.ShapeDtypeStruct((options.batch_size, WIDTH), np.float32)
        self.batch_shapes = [{"x": row, "y": jax.ShapeDtypeStruct((options.batch_size,), np.float32)}]
        rng = np.random.default_rng(7)
        self.x = rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
        self.y = self.x @ np.arange(1, WIDTH + 1, dtype=np.float32)

    def init(self, seed):
        weights = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
        return {"params": {"w": weights}, "stats": {"mean": np.zeros((), np.float32)}}

    def carry(self, key):
        return Carry(jnp.zeros((), jnp.int32), key)

    def gradients(self, model, carry, batch, key):
        targets = batch["y"] + self.options.noise * jax.random.normal(key, batch["y"].shape)

        def loss_function(params):
            return jnp.mean(jnp.square(batch["x"] @ params["w"] - targets))

        loss, grads = jax.value_and_grad(loss_function)(model["params"])
        stats = {"mean": 0.9 * model["stats"]["mean"] + 0.1 * targets.mean()}
        carry = Carry(carry.steps + 1, jax.random.fold_in(carry.key, carry.steps))
        return Gradients(grads, stats, carry, {"loss": Mean(loss, jnp.ones(()))})

    def feed(self, place, seed, first_unit):
        return ToyFeed(self, place, seed, first_unit)

    def evaluate(self, model, place):
        which, parts = place.part
        error = self.x[which::parts] @ model["params"]["w"] - self.y[which::parts]
        return float(np.square(error).sum()), len(error)

    def scores(self, parts):
        return {"error": sum(total for total, _ in parts) / sum(count for _, count in parts)}

    def export(self):
        return {"width": WIDTH}

    def finish(self, out, notes, parts):
        return {"drawn": len(notes.get("drawn", ()))}


class ToyFeed:
    def __init__(self, toy, place, seed, first_unit):
        self.toy, self.place, self.seed, self.first = toy, place, seed, first_unit

    def next(self, step, model, carry):
        size, options = self.toy.options.batch_size, self.toy.options
        time.sleep(options.pause)
        rows = []
        for worker in self.place.workers:
            draws = np.random.default_rng((self.seed, self.first, step, worker))
            own = np.arange(worker, EXAMPLES, options.workers) if options.sampling == "shard" else np.arange(EXAMPLES)
            rows.append(draws.choice(own, size))
        rows = np.stack(rows)
        arrays = self.place.put({"x": self.toy.x[rows], "y": self.toy.y[rows]})
        return Batch(arrays, np.full(len(rows), size), {"drawn": frozenset(rows.ravel().tolist())}), carry

    def close(self):
        pass


WORKLOAD = run.Workload("toy", Options, Toy, recipe.create_optimizer, module="tests.train.toy")

if __name__ == "__main__":
    run.main(WORKLOAD)
