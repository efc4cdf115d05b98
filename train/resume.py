"""Goes on with a run: exactly from its newest checkpoint, or from its consensus model if the set-up has changed."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import checkpoints, console, exports
from train.budget import Length
from train.checkpoints import Position, Saved
from train.learner import Begin, Learner
from train.options import RunOptions
from train.pytrees import as_numpy, as_shapes, mean_of_workers
from train.task import Model
from train.transports.group import Group
from wagma_jax.averaging import accumulation_dtype

CHECKPOINTS = "checkpoints"
CONSENSUS = "consensus"


class Found(NamedTuple):
    """Where a run goes on.

    Attributes:
        position: Where it is.
        state: The state of this process's workers, as its transport restores it, or what all begin with.
        about: What to tell people.
    """

    position: Position
    state: Any
    about: str


def restore(
    options: RunOptions, learner: Learner, transport: Any, place: Any, group: Group, length: Length
) -> Found | None:
    """Position and state at the newest checkpoint of the run that is resumed; nothing of the run is compiled.

    If the set-up has changed (algorithm, workers, batches and the like), the run begins anew at that step. All workers
    get the mean of the models and optimizer states, and the algorithm's state is new. The data goes on from where all
    workers together had come to, with each example once an epoch if all draw from the whole set.

    Args:
        options: Those of the resumed run.
        learner: One worker's computations.
        transport: The module of the transport.
        place: Where the workers are.
        group: The processes; all call this.
        length: How long the run is to be.

    Returns:
        None if there is no checkpoint.

    Raises:
        ValueError: The checkpoint is of another model or data set, or none can be read.
    """
    assert options.resume is not None
    folder = options.resume / CHECKPOINTS
    optimizer = jax.eval_shape(learner.optimizer_state, as_shapes(learner.task.like))

    def read(path: Path, saved: Saved) -> Any:
        if options.setup_changes(saved.position.setup):
            return consensus(path, saved, learner.task.like, optimizer) if group.is_first else None
        return transport.restore(options, learner, place, path, saved)

    found = checkpoints.read_newest(folder, read, console.warn, group)
    if found is None:
        console.say(f"there is no checkpoint in {folder}: starting from step 0")
        return None
    position, state = found.saved.position, found.found
    check_fingerprint(position, fingerprint(learner.task.fingerprint))
    checkpoints.set_aside(folder, found.unreadable, group)
    changes = options.setup_changes(position.setup)
    if not changes:
        total = length.total_steps(position.first_step, position.first_example)
        stretched = f", with a schedule for {total} steps instead of {position.total_steps}"
        about = f"going on from step {position.step}{stretched if total != position.total_steps else ''}"
        return Found(position, state, about)
    about = (
        f"{', '.join(changes)}: starting again from the consensus of {position.workers} workers at step {position.step}"
    )
    position = dataclasses.replace(
        position,
        setup=options.setup(),
        workers=options.workers,
        first_step=position.step,
        first_example=position.examples,
        first_share=length.share_done(position.step, position.examples),
        local_steps=(0,) * options.workers,
        wait_seconds=(),
        work_seconds=(),
        windows=(),
        at_sync=True,
        units_per_round=None,
    )
    return Found(position, group.from_first(state), about)


def fingerprint(values: Any) -> dict[str, str]:
    """The fingerprint as checkpoints keep it."""
    return {name: str(value) for name, value in values.items()}


def check_fingerprint(position: Position, now: dict[str, str]) -> None:
    """Raises ValueError if the run was made with another fingerprint."""
    for name in [*now, *position.fingerprint]:
        before, after = position.fingerprint.get(name), now.get(name)
        if before != after:
            raise ValueError(
                f"the run was made with {name}: {_short(before)}, and there are now {_short(after)}: give the data "
                "that it was begun with, or start a new run"
            )


def _short(text: str | None) -> str:
    return "none" if text is None else text if len(text) < 80 else text[:80] + " ..."


def consensus(checkpoint: Path, saved: Saved, model: Model, optimizer: Any = None) -> Begin:
    """The mean of all workers of a checkpoint, read one worker at a time where each has written a part of its own.

    Args:
        checkpoint: Its folder.
        saved: What it says of itself.
        model: Shapes and dtypes of one worker's model.
        optimizer: Of one worker's optimizer; None: it is not read.

    Returns:
        NumPy arrays.

    Raises:
        DifferentModelError: It holds another model.
    """
    wanted = {"model": model} if optimizer is None else {"model": model, "optimizer": optimizer}
    means = {name: like for name, like in wanted.items() if not jax.tree.leaves(like)}
    wanted = {name: like for name, like in wanted.items() if name not in means}
    if saved.position.stacked:
        stacked = as_numpy(wanted, saved.position.workers)
        means |= mean_of_workers(_shares(checkpoint, saved, checkpoints.part_of(None), stacked))
        return Begin(means["model"], means.get("optimizer"))
    for name, like in as_numpy(wanted).items():
        parts = [part for part, pieces in saved.parts.items() if name in pieces]
        means[name] = _mean(_shares(checkpoint, saved, part, {name: like})[name] for part in parts)
    return Begin(means["model"], means.get("optimizer"))


def _shares(checkpoint: Path, saved: Saved, part: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Reads pieces of a part; for the model, the share of the consensus where it is not the model itself."""
    has_share = "share" in saved.parts[part]
    names = {"share" if has_share and name == "model" else name: name for name in wanted}
    found = checkpoints.read(checkpoint, saved, part, {its: wanted[name] for its, name in names.items()}, alone=True)
    return {name: found[its] for its, name in names.items()}


def _mean(trees: Iterable[Any]) -> Any:
    """As ``mean_of_workers``, but takes one tree after the other."""
    first: Any = None
    sums, count = None, 0
    for tree in trees:
        wide = jax.tree.map(_widened, tree)
        sums = wide if sums is None else jax.tree.map(np.add, sums, wide)
        first, count = (tree if first is None else first), count + 1

    def mean(total, first):
        return (total / count).astype(first.dtype) if jnp.issubdtype(first.dtype, jnp.inexact) else first

    return jax.tree.map(mean, sums, first)


def _widened(leaf: Any) -> Any:
    return leaf.astype(accumulation_dtype(leaf.dtype)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def load_consensus(path: Path, like: Model, group: Group | None = None) -> Model:
    """The consensus model of a run, of one of its checkpoints, or an exported one; NumPy arrays.

    Args:
        path: The run, its checkpoint, or the exported model.
        like: Shapes and dtypes of one worker's model.
        group: The processes, all of which call this; None: this one alone.

    Raises:
        ValueError: ``path`` is none of these, or holds another model.
    """
    if (path / "description.json").is_file():
        return exports.load_export(path, like)
    if path.name.isdigit() and not (path / CHECKPOINTS).is_dir():
        saved = checkpoints.look(path)
        return consensus(path, saved, like).model
    found = checkpoints.read_newest(
        path / CHECKPOINTS, lambda step, saved: consensus(step, saved, like), console.warn_aside, group or Group()
    )
    if found is not None:
        return found.found.model
    if (path / CONSENSUS).is_dir():
        return exports.load_export(path / CONSENSUS, like)
    raise ValueError(f"{path} has neither a checkpoint nor an exported model: train on with --resume {path}")
