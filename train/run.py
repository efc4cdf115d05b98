"""Runs any workload: prepares, trains, evaluates and exports it. The only module that knows all the others."""

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import optax

from train import console, exports, folders, loop, results, resume, settings
from train.budget import Budget, Length
from train.checkpoints import Checkpoints, Position
from train.errors import GaveUpError
from train.fields import flag
from train.files import write_whole
from train.jsonable import to_json
from train.learner import Begin, Learner
from train.options import RunOptions
from train.parsing import parse as parse_options
from train.pytrees import as_shapes
from train.summary import SUMMARY, finish
from train.task import Task
from train.transports import local, mpi, program
from train.transports.group import Group, JaxGroup, KeepsTogether
from wagma_jax import algorithms

TRANSPORTS: Mapping[str, ModuleType] = {"xla": program, "mpi": mpi}

O = TypeVar("O", bound=RunOptions)  # noqa: E741


@dataclasses.dataclass(frozen=True)
class Workload(Generic[O]):
    """A workload as the command line has it.

    Attributes:
        name: The name of its module: ``python -m train.NAME``.
        options: Its options.
        create: Makes the task; raises ValueError for whatever is wrong with options or data. It compiles nothing.
        optimizer: Makes the local optimizer. If its rate changes, its ``update`` takes ``share``.
        presets: The defaults of each preset, by its name.
        module: Its module, for the commands that are shown; None: ``train.NAME``.
    """

    name: str
    options: type[O]
    create: Callable[[O], Task]
    optimizer: Callable[[O], optax.GradientTransformation]
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    module: str | None = None

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python -m {self.module or f'train.{self.name}'}"


class AlreadyCompleteError(KeepsTogether):
    """The run in ``--out`` is complete, and nothing is left to do."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that has been checked, and of which nothing has been compiled.

    Attributes:
        workload: What is trained.
        options: Its options.
        task: The task.
        transport: The module of its transport.
        group: The processes.
        place: Where the workers are.
        learner: One worker's computations.
        position: Where to begin.
        budget: Where it ends.
        state: What the workers go on from; None for a new run.
        out: The folder of the results.
    """

    workload: Workload[Any]
    options: RunOptions
    task: Task
    transport: Any
    group: Group
    place: Any
    learner: Learner
    position: Position
    budget: Budget
    state: Any
    out: Path


def prepare(workload: Workload[O], options: O, group: Group | None = None) -> Prepared:
    """Checks all that can be checked before anything is compiled or overwritten, and makes the folder of the results.

    Args:
        workload: What is to be trained.
        options: Its options.
        group: The processes, if they have joined already.

    Raises:
        ValueError: On all processes: options out of range, something wrong with the data, a checkpoint of another
            model, or ``--out`` holds something already.
        AlreadyCompleteError: With ``--resume-if-exists``: nothing is left to do.
    """
    transport: Any = TRANSPORTS[options.transport]
    if group is None:
        check(options)
        group = transport.join(options)
    assert group is not None
    place = transport.place(options, group)  # before anything else makes JAX initialize its devices
    console.set_speaker(group.is_first)
    group.agreed(lambda: check(options))
    task = group.agreed(lambda: _check_alone(workload, options))
    marks = resume.fingerprint(task.fingerprint)
    shared = {flag(name): value for name, value in options.to_json().items() if name != "process_id"}
    group.check_same(shared | marks)
    length = group.agreed(lambda: options.length(task.units_per_step, task.units_per_epoch))
    exchanges = algorithms.find(options.algorithm).exchanges
    learner = Learner(task, workload.optimizer(options), exchanges, options.seed, options.moments)
    group.agreed(learner.check)
    found = None
    if options.resume is not None:
        found = resume.restore(options, learner, transport, place, group, length)
    position = group.agreed(lambda: _planned(options, length, marks, None if found is None else found.position))
    for line in options.notes() if found is None else [found.about]:
        console.say(line)
    out = options.resume
    if options.resume is not None and position.first_step == position.step:
        old = options.resume
        group.agreed(lambda: folders.set_aside_ledgers(old, position.step) if group.is_first else None)
    if out is None:
        made = group.agreed(lambda: folders.new_folder(workload.name, options) if group.is_first else None)
        out = group.from_first(made)
    assert out is not None
    group.agreed(lambda: _save(options, task, out) if group.is_first else None)
    position = dataclasses.replace(position, stacked=transport.TOGETHER)
    units = length.units() - position.first_example if length.by_units else None
    budget = Budget(position.total_steps, position.first_step, position.first_share, units)
    state = None if found is None else found.state
    return Prepared(workload, options, task, transport, group, place, learner, position, budget, state, out)


def check(options: RunOptions) -> None:
    """Raises ValueError for options, or settings of JAX, that are wrong by themselves."""
    settings.check()
    options.check()


def _save(options: RunOptions, task: Task, out: Path) -> None:
    """Writes what the run needs to go on, and what reads it."""
    (out / SUMMARY).unlink(missing_ok=True)  # of an earlier end: with it the run is complete, and it no longer is
    for name, content in task.files().items():
        write_whole(out / name, content)
    options.save(out)  # the last: with it the folder is a run


def _check_alone(workload: Workload[O], options: O) -> Task:
    """What one process can check by itself."""
    options.averaging_schedule()
    if options.tensorboard:
        results.check_tensorboard()
    if options.resume is None:
        return _created(workload, options)
    saved = workload.options.load(options.resume)
    options.check_resumes(saved)
    task = _created(workload, options)
    if options.resume_if_exists and (options.resume / SUMMARY).exists():
        _check_incomplete(options, options.length(task.units_per_step, task.units_per_epoch))
    if saved.checkpoint_every == 0:
        raise ValueError(f"the run in {options.resume} was made with --checkpoint-every 0: start a new run")
    return task


def _created(workload: Workload[O], options: O) -> Task:
    """The task, once it is known that what it says of its model fits into JSON."""
    task = workload.create(options)
    try:
        json.dumps(to_json(task.export()))
    except TypeError as error:
        raise ValueError(f"export() must return what JSON has, numbers and strings: {error}") from None
    return task


def _check_incomplete(options: RunOptions, length: Length) -> None:
    """Raises AlreadyCompleteError if the run has ended where these options would have it end, as its summary says."""
    assert options.resume is not None
    summary = json.loads((options.resume / SUMMARY).read_text())
    its = summary["options"]
    complete = (its["steps"], its["epochs"]) == (options.steps, options.epochs)
    if not complete and options.epochs is not None:
        complete = summary["examples"] >= length.units()
    elif not complete:
        complete = summary["steps"] >= length.total_steps()
    if complete:
        raise AlreadyCompleteError(f"the run in {options.resume} is complete: there is nothing left to do")


def _planned(options: RunOptions, length: Length, marks: Mapping[str, str], found: Position | None) -> Position:
    """Where a run begins and ends.

    Raises:
        ValueError: It is at its end already.
        AlreadyCompleteError: The same, with ``--resume-if-exists``.
    """
    position = Position(setup=options.setup(), workers=options.workers, fingerprint=marks)
    position = position if found is None else found
    total = length.total_steps(position.first_step, position.first_example)
    # a run interrupted after its last step still has to be evaluated, exported and summarized
    ended = options.resume is None or (options.resume / SUMMARY).exists() or position.first_step == position.step
    if length.by_units:
        reached = position.examples >= length.units()
        what = f"has seen {position.examples} examples, which is its end: raise --epochs to train on"
    else:
        reached = position.step >= total
        what = f"is at step {position.step} of {total}, which is its end: raise --steps or --epochs to train on"
    if reached and ended and options.resume_if_exists and position.first_step != position.step:
        raise AlreadyCompleteError(f"the run in {options.resume} is complete: there is nothing left to do")
    if reached and ended:
        raise ValueError(f"the run in {options.resume} {what}")
    return dataclasses.replace(position, total_steps=max(total, position.step))


def train(workload: Workload[O], options: O) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole run: trains, evaluates, and writes to ``--out``; see the docs for what.

    Returns:
        The summary, and the rows of the metrics file (those of the first process).

    Raises:
        ValueError: As :func:`prepare`.
    """
    return run(prepare(workload, options))


def run(prepared: Prepared) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As :func:`train`, with what :func:`prepare` returned.

    Raises:
        loop.Interrupted: On all processes: a signal asked the run to stop; it can be resumed.
    """
    options, task, group, position = prepared.options, prepared.task, prepared.group, prepared.position
    console.say(options.averaging_schedule().describe().splitlines()[0])
    console.say("compiling ...")
    state = prepared.state
    if state is None:
        # processes of one program share the compilation of it; others get the first one's, as it takes seconds
        together = prepared.transport.TOGETHER
        model = task.init(options.seed) if together or group.is_first else {}
        state = Begin(model if together else group.from_first(model))
    with ExitStack() as stack:
        workers = prepared.transport.WORKERS(
            options, prepared.learner, group, prepared.place, position, state, prepared.out
        )
        stack.enter_context(workers)
        prepared = dataclasses.replace(prepared, state=None)
        del state
        rows = prepared.out / "metrics.jsonl"
        metrics = stack.enter_context(results.MetricsFile(rows, position.step, group.is_first))
        if options.tensorboard and group.is_first:
            board = results.TensorBoard(prepared.out / "tensorboard", position.step)
            metrics.sinks.append(stack.enter_context(board))
        saver = None
        if options.checkpoint_every:
            folder = prepared.out / resume.CHECKPOINTS
            together = prepared.transport.TOGETHER
            saver = stack.enter_context(Checkpoints(folder, group, options.keep_checkpoints, together))
        training = loop.Run(options, task, workers, position, prepared.budget, metrics, saver)
        feed = task.feed(prepared.place, options.seed, position.first_example)
        stack.callback(feed.close)
        outcome = training(feed)
        devices = workers.describe()
    if outcome.signal is not None:
        raise loop.Interrupted(outcome, prepared.out, saved=saver is not None)
    summary: dict[str, Any] = {}
    if group.is_first:
        assert outcome.model is not None
        description = {**task.export(), "options": options.to_json()}
        exports.export(prepared.out / resume.CONSENSUS, outcome.model, description, task.files())
        summary = finish(options, task, prepared.out, outcome, metrics.rows, devices)
    return group.from_first(summary), metrics.rows


def evaluate(workload: Workload[O], options: O) -> tuple[dict[str, float], Task]:
    """Scores of the consensus model of a run, of one of its checkpoints, or of an exported model.

    Returns:
        The scores by name, and the task.

    Raises:
        ValueError: ``options.evaluate`` is none of these, or its model does not fit the data.
    """
    assert options.evaluate is not None
    check(options)
    settings.check_platforms(needs_cpu=False)
    task = workload.create(options)
    model = resume.load_consensus(options.evaluate, as_shapes(task.like))
    return results.checked_scores(task.scores([task.evaluate(model, local.LocalPlace())]), task.score), task


def parse(workload: Workload[O], arguments: Sequence[str]) -> O:
    """The options of a command line. tyro exits with its own messages; ValueError is raised for what it cannot know."""
    import tyro

    # Docstrings say what options are for. Looking for comments in the sources would take a tenth of a second.
    cli = functools.partial(tyro.cli, config=(tyro.conf.HelptextFromCommentsOff,))
    return parse_options(workload.options, workload.command, workload.presets, cli, arguments)


def main(workload: Workload[Any], arguments: Sequence[str] | None = None) -> None:
    """The command line of a workload."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of things that it then corrects itself
    name = workload.command.removeprefix("python -m ")
    group = Group()
    try:
        options = parse(workload, sys.argv[1:] if arguments is None else arguments)
        if options.evaluate is not None:
            scores, task = evaluate(workload, options)
            console.say(f"consensus model of {options.evaluate}, {task.name}")
            console.console.print(results.evaluation_table(scores, task.score))
            return
        if options.transport != "mpi":  # over MPI one process says for all what is wrong
            check(options)
        group = TRANSPORTS[options.transport].join(options)
        with group.ending_together(ValueError, AlreadyCompleteError):
            prepared = prepare(workload, options, group)
    except AlreadyCompleteError as complete:
        console.say(str(complete))
        return
    except ValueError as error:
        # all processes raise the same, and over MPI the first speaks for all
        sys.exit(f"{name}: {error}" if isinstance(group, JaxGroup) or group.is_first else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    launcher = f"wagma launch -n {group.size} -- " if prepared.options.transport == "mpi" else ""
    again = f"go on with: {launcher}{workload.command} --resume {prepared.out}"
    try:
        with group.ending_together(gave_up=lambda error: f"{name}: {error}; then {again}"):
            summary, _ = run(prepared)
    except loop.Interrupted as interrupted:
        console.say(f"{interrupted}{f'; {again}' if interrupted.saved else ', without a checkpoint'}")
        sys.exit(128 + interrupted.signal)
    except GaveUpError as error:
        sys.exit(f"{name}: {error}; then {again}")
    except KeyboardInterrupt:
        console.warn(f"stopped without saving; {again}")
        sys.exit(130)
    if group.is_first:
        table = results.summary_table([summary], prepared.task.name, prepared.task.score)
        console.console.print(table)
        console.console.print(f"results: {summary['out']}")
    group.close()
