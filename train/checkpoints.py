"""Checkpoints of a run, by orbax: all that it needs to go on exactly; and the consensus model alone, for others.

A checkpoint is a folder named after its step. orbax writes it under another name and renames it when it is whole, so
that what an interruption leaves half written is never taken for a checkpoint.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from train import distributed

_POSITION = "position"
_LAYOUT = "layout"
_TREE = "tree"  # an item may be a single array, or nothing at all, which orbax does not save as it is


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is, and what it has counted so far.

    No random state is among it: every draw is made from (seed, step, worker), whatever was drawn before.

    Attributes:
        step: Steps done.
        examples: Examples seen by all workers.
        seconds: Spent in the training loop, without compilation, evaluation and checkpoints.
        data_wait_seconds: Part of them in which no step was running as its batch was not there yet, at most.
        late: Late contributions.
        contributions: All contributions.
        max_staleness: The oldest contribution, in rounds.
        unreadable: Indices of training examples that could not be read.
        total_steps: Where the run is to end.
        setup: The options that it cannot change without starting again from its consensus model.
        num_examples: In the training set.
        workers: P.
        first_step: The step at which the run began with this number of workers; 0 if it has always had it.
        first_example: ``examples`` at that step.
        first_share: The share of the training that was done at that step.
        wait_seconds: What every worker has waited in exchanges over MPI; empty otherwise.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    late: int = 0
    contributions: int = 0
    max_staleness: int = 0
    unreadable: tuple[int, ...] = ()
    total_steps: int = 0
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_examples: int = 0
    workers: int = 0
    first_step: int = 0
    first_example: int = 0
    first_share: float = 0.0
    wait_seconds: tuple[float, ...] = ()


class Checkpoints:
    """Writes the checkpoints of one run; a context manager, which waits for what is being written.

    Args:
        folder: Where they are; made if missing.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._manager = ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, position: Position, items: Mapping[str, Any]) -> None:
        """Saves a checkpoint of this step; written in the background, from a copy. Does nothing if it is there.

        Args:
            position: Goes into the checkpoint; its step is the checkpoint's name.
            items: Trees of arrays by name, which may be restored apart from each other.
        """
        if position.step in self._manager.all_steps():
            return
        self._manager.save(
            position.step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave({_TREE: tree}) for name, tree in items.items()},
                **{
                    _POSITION: ocp.args.JsonSave(dataclasses.asdict(position)),
                    _LAYOUT: ocp.args.JsonSave({name: layout(tree) for name, tree in items.items()}),
                },
            ),
        )

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()


class Restored(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        position: Where the run was.
        items: The trees by name.
        unreadable: Steps of newer checkpoints that could not be read.
    """

    position: Position
    items: dict[str, Any]
    unreadable: tuple[int, ...] = ()


def restore_newest(
    folder: Path, like: Callable[[Position], Mapping[str, Any]], warn: Callable[[str], None]
) -> Restored | None:
    """Reads the newest checkpoint that can be read; nothing is changed on disk.

    Args:
        folder: Of the checkpoints.
        like: From the position of a checkpoint to what is expected in it: trees by item name, leaves with shape, dtype
            and sharding, or NumPy arrays to get such.
        warn: Told about checkpoints that cannot be read.

    Returns:
        What was read, or None if there is no checkpoint.

    Raises:
        ValueError: A checkpoint holds other trees (names the first leaf that differs), or none can be read.
    """
    unreadable: list[int] = []
    for step in distributed.agreed(lambda: steps(folder)):
        try:
            found = distributed.agreed(lambda step=step: restore(folder / str(step), like))
            return found._replace(unreadable=tuple(unreadable))
        except DifferentModelError:
            raise
        except Exception as error:  # whatever orbax and its storage make of missing or damaged files
            warn(f"checkpoint {folder / str(step)} cannot be read: {distributed.in_a_line(error)}")
            unreadable.append(step)
    if unreadable:
        raise ValueError(
            f"none of the checkpoints in {folder} can be read (steps {', '.join(map(str, unreadable))}): see that the "
            "disk is well, or move them away to start the run anew"
        )
    return None


def set_aside(folder: Path, unreadable: Iterable[int]) -> None:
    """Renames checkpoints that cannot be read, so that their steps can be saved again; for all processes to call."""
    if jax.process_index() == 0:
        for step in unreadable:
            aside = folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(step)).rename(aside)
    distributed.barrier("set checkpoints aside")


def restore(checkpoint: Path, like: Callable[[Position], Mapping[str, Any]]) -> Restored:
    """Reads one checkpoint; ``like`` as for :func:`restore_newest`.

    Raises:
        DifferentModelError: It holds other trees.
        Exception: It cannot be read; what orbax raises.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(
            checkpoint.absolute(),
            args=ocp.args.Composite(**{_POSITION: ocp.args.JsonRestore(), _LAYOUT: ocp.args.JsonRestore()}),
        )
        lists = {name: tuple(value) for name, value in found[_POSITION].items() if isinstance(value, list)}
        position = Position(**found[_POSITION] | lists)
        wanted = like(position)
        for name, tree in wanted.items():
            check_layout(found[_LAYOUT].get(name, {}), layout(tree), f"checkpoint {checkpoint}, {name}")
        items = checkpointer.restore(
            checkpoint.absolute(),
            args=ocp.args.Composite(**{name: ocp.args.StandardRestore({_TREE: tree}) for name, tree in wanted.items()}),
        )
    return Restored(position, {name: items[name][_TREE] for name in wanted})


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that are whole, the newest first."""
    if not folder.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True)


class DifferentModelError(ValueError):
    """A checkpoint holds another model or optimizer than is expected."""


def layout(tree: Any) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def check_layout(saved: Mapping[str, list[Any]], expected: Mapping[str, list[Any]], what: str) -> None:
    """Raises DifferentModelError if two layouts differ, and names the first leaf that does."""
    for path in [*expected, *saved]:
        a, b = saved.get(path), expected.get(path)
        if a != b:
            has, wants = ("nothing" if x is None else f"{x[1]} {x[0]}" for x in (a, b))
            raise DifferentModelError(
                f"{what}: it holds another model or optimizer than these options ask for. At {path} it has {has}, "
                f"expected {wants}: give the options that it was made with, or start a new run"
            )


def as_numpy(like: Any, num_workers: int | None = None) -> Any:
    """NumPy arrays of the shapes and dtypes of a tree, with a leading worker axis if a number of workers is given."""
    leading = () if num_workers is None else (num_workers,)
    return jax.tree.map(lambda x: np.empty((*leading, *x.shape), x.dtype), like)


def mean_of_workers(tree: Any) -> Any:
    """The consensus of a tree of NumPy arrays [num_workers, ...]: means, summed in float32 or wider, of inexact leaves.

    Other leaves, counters say, are the first worker's.
    """

    def mean(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x[0]
        wide = x.dtype if x.dtype.itemsize >= 4 else np.float32
        return x.mean(0, dtype=wide).astype(x.dtype)

    return jax.tree.map(mean, tree)


def export(folder: Path, model: Any, description: dict[str, Any]) -> None:
    """Writes a model without a worker axis as a plain orbax checkpoint, with description.json inside.

    To be called by all processes; an older one at the same place is replaced, once the new one is whole.

    Args:
        folder: The checkpoint.
        model: A pytree of NumPy arrays.
        description: What a reader needs to know to use it; anything that JSON has.
    """
    folder = folder.absolute()
    fresh = folder.with_name(folder.name + ".new")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(fresh, model, force=True)
    if jax.process_index() == 0:
        (fresh / "description.json").write_text(json.dumps(description, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def load_export(folder: Path, like: Any) -> Any:
    """Reads what :func:`export` wrote.

    Args:
        folder: The checkpoint.
        like: A tree of arrays or shapes that says what is expected.

    Raises:
        ValueError: It holds another model.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata.tree
        check_layout(layout(_by_names(found)), layout(_by_names(like)), f"checkpoint {folder}")
        return checkpointer.restore(folder.absolute(), as_numpy(like))


def _by_names(tree: Any) -> Any:
    """Numbers as keys become texts, as orbax has them on disk."""
    return {str(key): _by_names(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree
