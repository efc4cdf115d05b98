"""What a workload gives to training, and what training gives to a workload: interfaces, no logic.

A workload is one class that has the members of :class:`Task`; it may inherit some from :class:`Defaults`. It never
sees other workers, axis names, transports or algorithms; training never sees what its data mean.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Model = dict[str, Any]
"""``{"params": floating leaves, "stats": statistics}``: exchanged and exported as a whole; ``stats`` may be empty."""


class Mean(NamedTuple):
    """One metric of one worker's step. Both fields are added up over steps and workers.

    Attributes:
        total: float32 [], the sum of the values that the metric is the mean of.
        count: float32 [], how many values these are.
    """

    total: jax.Array
    count: jax.Array


class Gradients(NamedTuple):
    """What a worker computes from one batch.

    Attributes:
        grads: A tree like ``model["params"]``: the gradients of this worker's own loss, without a worker axis.
        stats: A tree like ``model["stats"]``, after the step.
        carry: A tree like the carry that came in.
        metrics: By name; ``loss`` is among them.
    """

    grads: Any
    stats: Any
    carry: Any
    metrics: dict[str, Mean]


class Batch(NamedTuple):
    """The batches of the workers of this process at one step.

    Attributes:
        arrays: What :meth:`Place.put` returned; ``Task.gradients`` sees one worker's.
        units: int64 [workers of this process]: what each batch counts for, in the task's unit.
        notes: Sets of integers by name that the run collects, such as the indices of unreadable examples.
        worked: Seconds that making it has taken and that are work of this process's workers, injected delays among
            them; all other time counts as waiting for data.
        delayed: Whether a :class:`Cutoff` has seen to the injected delay of the step.
    """

    arrays: Any
    units: np.ndarray
    notes: Mapping[str, frozenset[int]] = {}
    worked: float = 0.0
    delayed: bool = False


class Score(NamedTuple):
    """The number that tables and pictures show first.

    Attributes:
        name: Its key among the scores.
        unit: Shown to people. With "%", the score is a share of 1, shown times 100.
        higher: Whether higher is better.
    """

    name: str
    unit: str = ""
    higher: bool = True


class Cutoff(Protocol):
    """Cuts late workers short: they end a stage of their work once enough workers are done with it.

    The injected delay of a stage passes while it lasts, so that a worker which is cut short is spared the rest of it.
    """

    def begin(self, number: int) -> None:
        """A stage begins. All workers must be done with the one before, as they are where all wait for all.

        Args:
            number: Of the injected delay that belongs to it; one comes every ``Task.steps_per_delay`` steps.
        """
        ...

    def pause(self, share: float, may_end: bool) -> bool:
        """To be called before each part of a stage: lets the delay of this part pass, or what is left of it.

        Args:
            share: Of the part in the stage.
            may_end: Whether the stage may end here, without this part and all further ones.

        Returns:
            Whether it is to end here, since enough workers are done.
        """
        ...

    def done(self) -> None:
        """This worker is done with the stage."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class Place(Protocol):
    """Where the workers of this process are.

    Attributes:
        num_workers: P, in all processes together.
        workers: The indices of this process's workers.
        part: (index, count): which part of an evaluation is this process's, and how many parts there are.
        devices: This process's devices, for an evaluation.
        equal_shapes: Whether the batches of all workers at a step must have the same shape, since one program computes
            with all of them.
    """

    @property
    def num_workers(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> range: ...  # noqa: D102
    @property
    def part(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def devices(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def equal_shapes(self) -> bool: ...  # noqa: D102

    def put(self, tree: Any) -> Any:
        """Brings host arrays [len(workers), ...] onto the devices, as ``Batch.arrays``."""
        ...

    def map(self, function: Callable[..., Any], donate: Sequence[int] = ()) -> Callable[..., Any]:
        """Compiles a function of one worker's arrays for all workers; it takes arrays as :meth:`put` returns them."""
        ...

    def cutoff(self, share: float) -> Cutoff:
        """A cutoff at this share of the workers, in (0, 1]; all processes call it, and wait for each other.

        Workers of one program are never late: nobody is cut short there.
        """
        ...


class Feed(Protocol):
    """The batches of the workers of this process."""

    def next(self, step: int, model: Model, carry: Any) -> tuple[Batch, Any]:
        """The batch of a step, and the carry that the step begins with.

        Args:
            step: Steps that each worker has taken since the run got its present number of workers. The first call may
                be for any step; each further one is for the step after the last.
            model: The models that the step will start from, on the devices, arranged like ``Batch.arrays``.
            carry: The carries, arranged in the same way.
        """
        ...

    def close(self) -> None:
        """Stops whatever loads in the background."""
        ...


class Defaults:
    """For a task to inherit: the members of :class:`Task` that many workloads have no use for."""

    units_per_epoch: int | None = None
    updates_per_step: int = 1
    steps_per_delay: int = 1

    def carry(self, key: jax.Array) -> Any:
        """Nothing is carried from step to step."""
        del key
        return ()

    def export(self) -> dict[str, Any]:
        """Nothing needs to be known about the exported model."""
        return {}

    def files(self) -> dict[str, bytes]:
        """The arrays are all there is to the model."""
        return {}

    def finish(self, out: Path, notes: Mapping[str, frozenset[int]], parts: Sequence[Any]) -> dict[str, Any]:
        """Nothing is written, and nothing added to the summary."""
        del out, notes, parts
        return {}


class Task(Protocol):
    """A workload.

    Attributes:
        name: The title of tables and pictures: the data and the model.
        unit: What is counted, in the plural: "rows", "tokens".
        units_per_step: Units of one worker's step; a nominal number if they vary.
        units_per_epoch: Units of the training set; None if there are no epochs.
        updates_per_step: How often a worker calls ``gradients`` and its optimizer between two exchanges. If more than
            once, leaves of a batch are [updates, ...], and only algorithms that exchange models will do.
        steps_per_delay: An injected delay belongs to the first of so many steps, whose work takes uneven time.
        like: Shapes and dtypes of one worker's model.
        batch_shapes: Every shape that one worker's batch may have, as trees of ``jax.ShapeDtypeStruct``. The step is
            compiled for all of them before the run is timed, so there should be few.
        fingerprint: What must be equal on all processes, and must not change when a run is resumed, by readable names.
        score: What tables and pictures show first.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def units_per_step(self) -> int: ...  # noqa: D102
    @property
    def units_per_epoch(self) -> int | None: ...  # noqa: D102
    @property
    def updates_per_step(self) -> int: ...  # noqa: D102
    @property
    def steps_per_delay(self) -> int: ...  # noqa: D102
    @property
    def like(self) -> Model: ...  # noqa: D102
    @property
    def batch_shapes(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def score(self) -> Score: ...  # noqa: D102

    def init(self, seed: int) -> Model:
        """The model that all workers start from, as NumPy arrays; a pure function of the seed."""
        ...

    def carry(self, key: jax.Array) -> Any:
        """A worker's local state at the start, or (); traced. Checkpoints keep it, and it is never exchanged."""
        ...

    def gradients(self, model: Model, carry: Any, batch: Any, key: jax.Array) -> Gradients:
        """One worker's gradients; traced and pure. The key is a function of (seed, step, worker)."""
        ...

    def feed(self, place: Place, seed: int, first_unit: int) -> Feed:
        """The batches of this process's workers.

        Args:
            place: Where the workers are.
            seed: The seed of the data order.
            first_unit: Units that all workers together had seen when the run got its present number of workers.
        """
        ...

    def evaluate(self, model: Model, place: Place) -> Any:
        """Evaluates a model (NumPy arrays) on this process's part of the test data; returns anything picklable."""
        ...

    def scores(self, parts: Sequence[Any]) -> dict[str, float]:
        """The scores by name, from what :meth:`evaluate` returned on all processes."""
        ...

    def export(self) -> dict[str, Any]:
        """What a reader of the exported model needs to know to use it; must fit into JSON."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """Files without which the model is of no use, by name: kept in the run's folder and in the exported model."""
        ...

    def finish(self, out: Path, notes: Mapping[str, frozenset[int]], parts: Sequence[Any]) -> dict[str, Any]:
        """Called at the end of a run: writes files of the workload, and returns what it adds to the summary.

        Args:
            out: The folder of the run.
            notes: The notes of all batches.
            parts: What :meth:`evaluate` returned on all processes, in the last evaluation.
        """
        ...
