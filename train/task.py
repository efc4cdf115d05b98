"""What a workload gives to training, and what training gives to a workload: interfaces, no logic.

A workload is one class that has the members of :class:`Task`. It never sees other workers, axis names, transports or
algorithms; training never sees what their data are.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Model = dict[str, Any]
"""``{"params": floating leaves, "stats": statistics}``, exchanged and exported whole; ``stats`` is {} without any."""


class Mean(NamedTuple):
    """One metric of one worker's step; over steps and workers both fields add up.

    Attributes:
        total: float32 [], the sum over what the metric is a mean of.
        count: float32 [], how many there are.
    """

    total: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Gradients(NamedTuple):
    """What one worker makes of one batch.

    Attributes:
        grads: A tree like ``model["params"]``: of this worker's own loss, with no axis anywhere.
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
        notes: Sets of integers by name that are to be kept with the run: indices of unreadable examples, say.
    """

    arrays: Any
    units: np.ndarray
    notes: Mapping[str, frozenset[int]] = {}


class Score(NamedTuple):
    """The number that tables and pictures show first.

    Attributes:
        name: Its key among the scores.
        unit: For people; with "%" the score is a share of 1 and shown times 100.
        higher: Whether higher is better.
    """

    name: str
    unit: str = ""
    higher: bool = True


class Place(Protocol):
    """Where the workers of this process are.

    Attributes:
        num_workers: P, of all processes.
        workers: Those of this process.
        part: (which, of how many) of an evaluation is this process's.
        devices: Of this process, for an evaluation.
    """

    @property
    def num_workers(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> range: ...  # noqa: D102
    @property
    def part(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def devices(self) -> Sequence[Any]: ...  # noqa: D102

    def put(self, tree: Any) -> Any:
        """Brings host arrays [len(workers), ...] onto the devices, as ``Batch.arrays``."""
        ...

    def map(self, function: Callable[..., Any], donate: Sequence[int] = ()) -> Callable[..., Any]:
        """Compiles a function of one worker's arrays for all workers, of arrays as :meth:`put` returns them."""
        ...


class Feed(Protocol):
    """The batches of the workers of this process."""

    def next(self, step: int, model: Model, carry: Any) -> tuple[Batch, Any]:
        """The batch of a step, and the carry to take the step with.

        Args:
            step: Steps that each worker has taken since the run has had this number of workers. Each call is for the
                step after that of the last one; the first may be for any.
            model: As the step will see it, on the devices like ``Batch.arrays``.
            carry: Likewise.
        """
        ...

    def close(self) -> None:
        """Ends what loads in the background."""
        ...


class Task(Protocol):
    """A workload.

    Attributes:
        name: Of the model and the data, for titles.
        unit: What is counted, in the plural: "rows", "tokens".
        units_per_step: Of one worker's step; nominal where they vary.
        units_per_epoch: None where there are no epochs.
        like: Shapes and dtypes of one worker's model.
        batch_shapes: The few shapes (trees of ``jax.ShapeDtypeStruct`` of one worker's batch) that a step is compiled
            for before times count.
        fingerprint: What must be equal on all processes and stay so when a run is resumed, by a name for people.
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
    def like(self) -> Model: ...  # noqa: D102
    @property
    def batch_shapes(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def score(self) -> Score: ...  # noqa: D102

    def init(self, seed: int) -> Model:
        """The model that all workers start from, NumPy arrays; the same for the same seed."""
        ...

    def carry(self, key: jax.Array) -> Any:
        """A worker's local state at the start; traced. It is checkpointed, and never exchanged. () without any."""
        ...

    def gradients(self, model: Model, carry: Any, batch: Any, key: jax.Array) -> Gradients:
        """One worker's gradients; traced and pure. The key is of (seed, step, worker)."""
        ...

    def feed(self, place: Place, seed: int, first_unit: int) -> Feed:
        """The batches of this process's workers.

        Args:
            place: Where they are.
            seed: Of the data order.
            first_unit: Units that all workers together had seen when the run got this number of workers.
        """
        ...

    def evaluate(self, model: Model, place: Place) -> Any:
        """What this process finds of a model (NumPy arrays) on its part of the evaluation; picklable."""
        ...

    def scores(self, parts: Sequence[Any]) -> dict[str, float]:
        """The scores by name, from what all processes found."""
        ...

    def export(self) -> dict[str, Any]:
        """What a reader of the exported model needs to know to use it; as JSON has it."""
        ...

    def finish(self, out: Path, notes: Mapping[str, frozenset[int]], parts: Sequence[Any]) -> dict[str, Any]:
        """Writes what the workload has to say at the end of a run; what it returns is added to the summary.

        Args:
            out: The folder of the run.
            notes: Those of all batches.
            parts: What all processes found in the last evaluation.
        """
        ...
