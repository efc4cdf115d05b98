"""Checkpoints of a run: a folder per step, with ``position.json`` and an orbax checkpoint, a *part*, per process.

Every process writes its own part in the background. What is equal on all processes is in one of the parts only. If all
workers are in one JAX program, its processes write one part together. A checkpoint is whole when all parts that
``position.json`` names are there. Orbax writes a part under another name and renames it at the end, so a run that is
killed at any moment leaves whole checkpoints, and others that do not count.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train.counts import Counts
from train.files import write_whole
from train.jsonable import from_json, to_json
from train.pytrees import layout, plain, restored
from train.transports.group import Group, in_a_line

POSITION = "position.json"
_TREE = "tree"  # wraps every piece: orbax does not save a single array, or an empty tree, as it is


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is, and what it has counted so far.

    It needs no random state: every draw depends on (seed, step, worker) alone, not on earlier draws.

    Attributes:
        step: Rounds done.
        examples: Units seen by all workers.
        seconds: Spent in the training loop, without compilation, evaluations and checkpoints.
        data_wait_seconds: How many of them at most were spent without a running step, as its batch was not there yet.
        late: Late contributions.
        contributions: All contributions.
        max_staleness: The oldest contribution, in rounds.
        notes: Those of all batches: sorted integers by name.
        total_steps: Where the run is to end.
        setup: The options that cannot change without a new start from the consensus model.
        fingerprint: What must be the same whenever the run goes on, by name.
        workers: P.
        stacked: Whether the arrays of its checkpoints have a leading worker axis.
        first_step: The step at which the run began with this number of workers; 0 if it has always had it.
        first_example: ``examples`` at that step.
        first_share: The share of the training that was done at that step.
        local_steps: Steps of every worker since ``first_step``.
        wait_seconds: How long every worker has waited in exchanges over MPI; empty in one program.
        work_seconds: How long every worker has computed and been delayed; likewise.
        distance: The distance of the workers' parameters to their consensus, when it was last measured.
        windows: What each process has counted since the last log point.
        at_sync: Whether all workers have the same model, that of a sync round.
        units_per_round: Between the last two meetings; None where there were none since ``first_step``.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    late: int = 0
    contributions: int = 0
    max_staleness: int = 0
    notes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    total_steps: int = 0
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workers: int = 0
    stacked: bool = True
    first_step: int = 0
    first_example: int = 0
    first_share: float = 0.0
    local_steps: Sequence[int] = ()
    wait_seconds: Sequence[float] = ()
    work_seconds: Sequence[float] = ()
    distance: float | None = None
    windows: Sequence[Counts] = ()
    at_sync: bool = False
    units_per_round: float | None = None


class Saved(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        position: Where the run was.
        parts: Shape and dtype of every leaf, by the name of the part, the name of the piece, and the leaf's path.
    """

    position: Position
    parts: Mapping[str, Mapping[str, Mapping[str, list[Any]]]]


class Checkpoints:
    """Writes the checkpoints of one run; a context manager, which on exit waits for what is being written.

    Args:
        folder: Where they are; made if missing.
        group: The processes; all construct this and call its methods at the same time.
        keep: How many of the newest stay.
        together: Whether all processes form one JAX program and write one part together; otherwise each writes its own.
    """

    def __init__(self, folder: Path, group: Group, keep: int = 2, together: bool = False):
        self._folder = folder.absolute()
        self._group = group
        self._keep = keep
        self._together = together
        self._writer: Any = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()  # which waits
        if kind is None:
            self._group.everyone(None)
            self._prune()

    def save(self, position: Position, pieces: Mapping[str, Any]) -> None:
        """Saves a checkpoint of this step: in the background, from a copy. Does nothing if there is one already.

        Args:
            position: The same on all processes; its step is the checkpoint's name.
            pieces: What this process has to write: trees of arrays by name.
        """
        self._finish()
        plains = {name: plain(tree) for name, tree in pieces.items()}
        part = part_of(None if self._together else self._group.rank)
        parts = self._group.everyone((part, {name: layout(tree) for name, tree in plains.items()}))
        here = self._folder / str(position.step)
        # only now is it known that all processes have written the previous checkpoint
        exists = self._group.from_first(is_whole(here))
        if not exists and self._group.is_first:
            self._prune()
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir(parents=True)
            written = {"position": position, "parts": dict(parts)}
            write_whole(here / POSITION, json.dumps(to_json(written)) + "\n")
        self._group.everyone(None)
        if not exists:
            self._write(here / part, plains)

    def wait(self) -> None:
        """Waits until what was saved is on disk, everywhere."""
        self._finish()
        self._group.everyone(None)

    def _write(self, path: Path, pieces: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp

        self._writer = self._writer or _new_writer()
        trees = {name: ocp.args.StandardSave({_TREE: tree}) for name, tree in pieces.items()}
        self._writer.save(path, args=ocp.args.Composite(**trees))

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.wait_until_finished()

    def _prune(self) -> None:
        if self._group.is_first:
            whole = steps(self._folder)
            for path in self._folder.glob("[0-9]*"):  # what is not whole now was left behind by a start that was killed
                if path.name.isdigit() and int(path.name) not in whole[: self._keep]:
                    (path / POSITION).unlink(missing_ok=True)
                    shutil.rmtree(path, ignore_errors=True)


def _new_writer() -> Any:
    import orbax.checkpoint as ocp

    # By default orbax (0.12) makes the folders of a save in the background too, and announces them to the other
    # processes under the number of the save. Every process counts by itself, and a save by one process alone, such as
    # the export of a consensus, counts on that one only. From then on the others look for another number, so they write
    # before the folders are there, and the first process deletes what it finds: the save hangs or fails, or the
    # checkpoint lacks arrays. Folders that are made before `save` returns need no numbers.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=options))
    return ocp.AsyncCheckpointer(handler, async_options=options)


def is_whole(checkpoint: Path) -> bool:
    """Whether all parts of a checkpoint are there; True if its ``position.json`` is damaged."""
    path = checkpoint / POSITION
    if not path.is_file():
        return False
    try:
        return all((checkpoint / name).is_dir() for name in json.loads(path.read_text())["parts"])
    except (ValueError, KeyError, TypeError, OSError):  # damaged: whoever reads it will be told
        return True


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that are whole, the newest first.

    Raises:
        ValueError: An earlier version wrote them, in another format.
    """
    if not folder.is_dir():
        return []
    numbered = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
    for step in numbered:
        _check_version(folder / str(step))
    return [step for step in numbered if is_whole(folder / str(step))]


def _check_version(checkpoint: Path) -> None:
    if (checkpoint / "position").is_dir():  # where the first version had it
        raise ValueError(
            f"{checkpoint} was written by an earlier version of this project, whose checkpoints cannot be read: go on "
            "with that version, or start a new run"
        )


def look(checkpoint: Path) -> Saved:
    """What a checkpoint says of itself.

    Raises:
        ValueError: It cannot be read.
    """
    _check_version(checkpoint)
    try:
        found = json.loads((checkpoint / POSITION).read_text())
        position = from_json(found["position"], Position)
        return Saved(dataclasses.replace(position, setup=found["position"]["setup"]), found["parts"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{POSITION} of {checkpoint} cannot be read: {in_a_line(error)}") from None


def part_of(worker: int | None) -> str:
    """The name of the part that a worker's process writes; for None, of the part that all processes write together."""
    return "all" if worker is None else f"worker-{worker}"


def read(checkpoint: Path, saved: Saved, part: str, wanted: Mapping[str, Any], alone: bool = False) -> dict[str, Any]:
    """Reads pieces of one part of a checkpoint.

    Args:
        checkpoint: Its folder.
        saved: What :func:`look` said.
        part: Which part.
        wanted: The expected shapes, dtypes and shardings: a tree for each piece, by its name. Leaves without a sharding
            come back as NumPy arrays.
        alone: Whether this process reads by itself, in a program of several processes.

    Raises:
        DifferentModelError: A piece holds another tree.
        Exception: Whatever orbax raises if it cannot be read.
    """
    pieces = saved.parts.get(part, {})
    expected = {name: plain(like) for name, like in wanted.items()}
    for name, like in expected.items():
        check_layout(pieces.get(name, {}), layout(like), f"checkpoint {checkpoint}, {name}")
    like = jax.tree.map(lambda x: x if getattr(x, "sharding", None) else np.empty(x.shape, x.dtype), expected)
    found = _restore(checkpoint / part, like, alone)
    return {name: restored(found[name], wanted[name]) for name in wanted}


def read_as_saved(checkpoint: Path, part: str, name: str) -> Any:
    """Reads a piece made of dicts, lists and arrays, whatever it holds, as NumPy arrays."""
    return jax.tree.map(np.asarray, _restore(checkpoint / part, {name: None})[name])


def alone_options() -> Any:
    """What tells orbax that the other processes of the program take no part."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def _restore(part: Path, like: Mapping[str, Any], alone: bool = False) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    if not like:
        return {}
    options = alone_options() if alone else ocp.options.MultiprocessingOptions()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=options) as reader:
        arguments = {
            name: ocp.args.StandardRestore(None if tree is None else {_TREE: tree}) for name, tree in like.items()
        }
        found = reader.restore(part.absolute(), args=ocp.args.Composite(**arguments))
    return {name: found[name][_TREE] for name in like}


class Restored(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        saved: What it says of itself.
        found: What ``reader`` returned.
        unreadable: Steps of newer checkpoints that could not be read.
    """

    saved: Saved
    found: Any
    unreadable: tuple[int, ...] = ()


def read_newest(
    folder: Path, reader: Callable[[Path, Saved], Any], warn: Callable[[str], None], group: Group
) -> Restored | None:
    """Reads the newest checkpoint that all processes can read; nothing is changed on disk.

    Args:
        folder: Of the checkpoints.
        reader: Reads this process's share of one.
        warn: Told about checkpoints that cannot be read.
        group: The processes, which all call this.

    Returns:
        What was read, or None if there is no checkpoint.

    Raises:
        ValueError: A checkpoint holds other trees (names the first leaf that differs), or none can be read.
    """
    unreadable: list[int] = []
    for step in group.from_first(group.agreed(lambda: steps(folder))):

        def attempt(path=folder / str(step)) -> Restored | DifferentModelError:
            saved = look(path)
            try:
                return Restored(saved, reader(path, saved), tuple(unreadable))
            except DifferentModelError as error:
                return error

        try:
            found = group.agreed(attempt)
        except Exception as error:  # missing or damaged files raise many kinds of errors in orbax and its storage
            warn(f"checkpoint {folder / str(step)} cannot be read: {in_a_line(error)}")
            unreadable.append(step)
            continue
        different = next((one for one in group.everyone(_error(found)) if one is not None), None)
        if different is not None:
            raise DifferentModelError(different)
        assert isinstance(found, Restored)
        return found
    if unreadable:
        raise ValueError(
            f"none of the checkpoints in {folder} can be read (steps {', '.join(map(str, unreadable))}): see that the "
            "disk is well, or move them away to start the run anew"
        )
    return None


def _error(found: Any) -> str | None:
    return str(found) if isinstance(found, DifferentModelError) else None


def set_aside(folder: Path, unreadable: Iterable[int], group: Group) -> None:
    """Renames checkpoints that cannot be read, so that their steps can be saved again; all processes call this."""
    if group.is_first:
        for step in unreadable:
            aside = folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(step)).rename(aside)
    group.everyone(None)


class DifferentModelError(ValueError):
    """A checkpoint holds another model or optimizer than is expected."""


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
