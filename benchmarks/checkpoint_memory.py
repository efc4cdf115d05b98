"""Memory of every rank while a run over MPI saves a checkpoint: does the first pay for all?

Every rank writes its own part, and the model, which is equal on all at a sync round, is written by the first alone.
Peaks are those of the resident memory (VmHWM, reset before the save), the save waited for until it is on disk.

Run ``wagma launch -n 8 -- python -m benchmarks.checkpoint_memory`` (a model of 20 million floats; some 8 GiB in all).
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from mpi4py import MPI

from benchmarks.exchange.memory import reset_peak, resident
from train import recipe
from train.checkpoints import Checkpoints, Position
from train.learner import Begin, Learner
from train.options import RunOptions
from train.task import Batch, Gradients, Mean, Score
from train.transports import mpi
from train.transports.group import MpiGroup

FLOATS = 20_000_000


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions):
    """Those of a training script."""


class Norm:
    """The squared norm of a long vector: a workload without data; see ``train.task.Task``."""

    name, unit, units_per_step, units_per_epoch, score = "norm", "steps", 1, None, Score("loss", higher=False)
    fingerprint: dict[str, str] = {}  # noqa: RUF012
    batch_shapes = (jax.ShapeDtypeStruct((1,), np.float32),)

    def __init__(self, floats: int):
        self.like = {"params": {"w": jax.ShapeDtypeStruct((floats,), np.float32)}, "stats": {}}

    def carry(self, key):
        """Nothing is carried."""
        del key
        return ()

    def gradients(self, model, carry, batch, key):
        """Those of half of the squared norm."""
        del batch, key
        w = model["params"]["w"]
        return Gradients({"w": w}, {}, carry, {"loss": Mean(w[:1].sum(), w[:1].sum() * 0 + 1)})


def main(floats: int) -> None:
    """Trains to a sync round, saves twice, and prints the table on the first rank."""
    group = MpiGroup(MPI.COMM_WORLD)
    options = Options(transport="mpi", workers=group.size, sync_period=2, optimizer="adam", group_size=2)
    learner = Learner(Norm(floats), recipe.create_optimizer(options), "models", 0)  # type: ignore[arg-type]
    folder = Path(group.from_first(tempfile.mkdtemp()))
    position = Position(total_steps=4, workers=group.size, stacked=False)
    place = mpi.place(options, group)
    begin = Begin({"params": {"w": np.full(floats, 1.0, np.float32)}, "stats": {}})
    peaks = []
    with (
        mpi.MpiWorkers(options, learner, group, place, position, begin, folder) as workers,
        Checkpoints(folder / "checkpoints", group, keep=1) as saver,
    ):
        for step in (2, 4):
            while workers.round < step:
                batch = Batch(place.put(np.zeros((1, 1), np.float32)), np.ones(1, np.int64))
                workers.step(batch, workers.carry, 0.5, (1, 0, 0, 0))
            group.everyone(None)
            reset_peak()
            before = resident("VmRSS")
            here = dataclasses.replace(position, step=step, local_steps=workers.local_steps())
            saver.save(here, workers.pieces())
            saver.wait()
            peaks.append((before, resident("VmHWM")))
    everyone = group.everyone(peaks)
    if group.is_first:
        for number, step in enumerate((2, 4)):
            rows = [peaks[number] for peaks in everyone]
            others = float(np.median([peak for _, peak in rows[1:]]))
            print(f"save at step {step}: MB before and at the peak, by rank; a model has {4 * floats / 1e6:.0f} MB")
            print("  ".join(f"{before / 1e6:.0f}-{peak / 1e6:.0f}" for before, peak in rows))
            print(f"rank 0 over the median of the others: {rows[0][1] / others:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else FLOATS)
