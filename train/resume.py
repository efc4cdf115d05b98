"""Goes on with a run: exactly from its newest checkpoint, or from its consensus model if the set-up has changed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

import wagma_jax as wagma
from train import checkpoints, report
from train.checkpoints import Position
from train.devices import sharded
from train.options import RunOptions


class StateParts(NamedTuple):
    """How the state of one worker is made; its model is restored, or made from a seed.

    Attributes:
        model: The shapes of the model, a tree.
        optimizer: From the model to the optimizer's state.
        strategy: From the model to the algorithm's state; may use the axis of the workers.
    """

    model: Any
    optimizer: Callable[[Any], Any]
    strategy: Callable[[Any], Any]

    def create(self, model: Any) -> dict[str, Any]:
        """The state of one worker with this model; traced."""
        return {"model": model, "optimizer": self.optimizer(model), "strategy": self.strategy(model)}


def restore(
    options: RunOptions, folder: Path, parts: StateParts, num_examples: int, mesh: Mesh | None, axis_name: str
) -> tuple[Position, dict[str, Any]] | None:
    """Position and state at the newest checkpoint in a folder; nothing of the run's own is compiled.

    If algorithm, workers or batches are not those of the checkpoint, the result is that of a run which begins at that
    step: all workers get the mean of the parameters, statistics and momentum, the algorithm's state is new, and the
    data goes on where all workers together had come (with each example once an epoch if all draw from the whole set).

    Args:
        options: Those of the resumed run.
        folder: Of the checkpoints.
        parts: How the state is made.
        num_examples: In the training set.
        mesh: Where the workers are.
        axis_name: Of the workers.

    Returns:
        The position, and the state of all workers by the names of its parts; None if there is no checkpoint.

    Raises:
        ValueError: The checkpoint is of another model or data set, or none can be read.
    """

    def like(position: Position) -> dict[str, Any]:
        model = jax.tree.map(lambda x: jax.ShapeDtypeStruct((position.workers, *x.shape), x.dtype), parts.model)
        if options.setup_changes(position.setup):
            opt_state = jax.eval_shape(jax.vmap(parts.optimizer), model)
            return {"model": checkpoints.as_numpy(model), "optimizer": checkpoints.as_numpy(opt_state)}
        state = jax.eval_shape(wagma.for_workers(parts.create, axis_name=axis_name), model)
        sharding = sharded(mesh, axis_name) or SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)

    found = checkpoints.restore_newest(folder, like, report.warn)
    if found is None:
        report.say(f"there is no checkpoint in {folder}: starting from step 0")
        return None
    position, items, unreadable = found
    if position.num_examples != num_examples:
        raise ValueError(
            f"the run has trained on {position.num_examples} examples, and the data set has {num_examples} now: give "
            "the data that it was begun with, or start a new run"
        )
    checkpoints.set_aside(folder, unreadable)
    changes = options.setup_changes(position.setup)
    if not changes:
        total = options.total_steps(num_examples, position.first_step, position.first_example)
        stretched = f", with a schedule for {total} steps instead of {position.total_steps}"
        report.say(f"going on from step {position.step}{stretched if total != position.total_steps else ''}")
        return position, items
    report.say(
        f"{', '.join(changes)}: starting again from the consensus of {position.workers} workers at step {position.step}"
    )
    position = dataclasses.replace(
        position,
        setup=options.setup(),
        workers=options.workers,
        first_step=position.step,
        first_example=position.examples,
        first_share=options.share_done(position.step, position.examples, num_examples),
        wait_seconds=(),
    )
    means = checkpoints.mean_of_workers(items)
    # by which the rate goes; workers that skipped rounds had another count
    means["optimizer"] = optax.tree_utils.tree_set(means["optimizer"], count=np.int32(position.step))
    copies = wagma.replicate(means, options.workers, mesh=mesh, axis_name=axis_name)
    initial = jax.jit(wagma.for_workers(parts.strategy, axis_name=axis_name, mesh=mesh))
    return position, {**copies, "strategy": initial(copies["model"])}
