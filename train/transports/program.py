"""All workers in one XLA program, on the devices of one process or of several that ``jax.distributed`` joins."""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

import wagma_jax as wagma
from train import checkpoints, devices, lateness
from train.checkpoints import Position, Saved
from train.counts import Counts, Distance
from train.learner import Begin, Learner, State, square_distance
from train.loop import Consensus, Stepped
from train.options import RunOptions
from train.pytrees import on_host, with_leaves
from train.task import Batch, Mean
from train.transports.compiling import ByShape
from train.transports.group import Group
from train.transports.joining import join
from train.transports.local import NobodyLate
from wagma_jax.algorithms import Strategy, whole_model

AXIS = "data"
TOGETHER = True  # all processes write one part of a checkpoint together
_IN_FLIGHT = 2  # steps dispatched but not done; more would only keep batches in memory


@dataclasses.dataclass(frozen=True)
class ProgramPlace:
    """Where the workers of one program are; see ``train.task.Place``.

    Attributes:
        num_workers: P.
        mesh: The devices, or None for one device.
        part: (which, of how many) processes this is.
    """

    num_workers: int
    mesh: Mesh | None
    part: tuple[int, int]
    equal_shapes = True

    @property
    def workers(self) -> range:
        """The workers of this process."""
        return devices.local_rows(self.num_workers, self.mesh, AXIS)

    @property
    def devices(self) -> Sequence[Any]:
        """The devices of this process that its workers use."""
        return jax.local_devices()[:1] if self.mesh is None else self.mesh.local_devices

    def put(self, tree: Any) -> Any:
        """Brings host arrays [len(workers), ...] onto the devices."""
        return devices.place(tree, self.mesh, AXIS)

    def map(self, function: Callable[..., Any], donate: Sequence[int] = ()) -> Callable[..., Any]:
        """Compiles a function of one worker's arrays for all workers."""
        mapped = wagma.for_workers(function, axis_name=AXIS, mesh=self.mesh)
        return jax.jit(mapped, donate_argnums=tuple(donate))

    def cutoff(self, share: float) -> NobodyLate:
        """All workers of one program are done at the same time."""
        del share
        return NobodyLate()


def place(options: RunOptions, group: Group) -> ProgramPlace:
    """Where the workers of a run are.

    Raises:
        ValueError: They cannot be spread evenly over the processes.
    """
    mesh = devices.worker_mesh(options.workers, AXIS, group.size)
    return ProgramPlace(options.workers, mesh, (group.rank, group.size))


class _Made(NamedTuple):
    """What a step returns besides the state, each [num_workers]."""

    metrics: dict[str, Mean]
    late: Any
    staleness: Any
    square_distance: Any


class ProgramWorkers:
    """See ``train.loop.Workers``.

    Args:
        options: Those of the run.
        learner: One worker's computations.
        group: The processes.
        place: Where the workers are.
        position: Where the run begins.
        found: What :func:`restore` returned, or what all begin with.
        out: Not used: nothing is recorded within one program.
    """

    def __init__(
        self,
        options: RunOptions,
        learner: Learner,
        group: Group,
        place: ProgramPlace,
        position: Position,
        found: State | Begin,
        out: Path,
    ):
        del out
        self.group, self.place = group, place
        self._options, self._learner, self._position = options, learner, position
        self._strategy = options.strategy(axis_name=AXIS, first_round=position.first_step)
        self._period = self._strategy.schedule.sync_period
        mesh = place.mesh
        self._sharding = devices.sharded(mesh, AXIS)
        workers = np.arange(options.workers, dtype=np.int32)
        self._workers = place.put(workers[place.workers.start : place.workers.stop])
        self.round = position.step
        self._state = found if isinstance(found, State) else self._start(found)
        self._pending: list[tuple[int, _Made]] = []
        self._in_flight: deque[_Made] = deque()
        self._units = 0
        self._waiting_reports: list[tuple[int, list[Counts]]] = []
        self._step = self._compiled()
        self._consensus = self._mean()
        self._share = jax.jit(wagma.for_workers(self._strategy.share, axis_name=AXIS, mesh=mesh))

    @property
    def steps(self) -> int:
        """Steps since the run got its present number of workers."""
        return self.round - self._position.first_step

    @property
    def model(self) -> Any:
        """The models of all workers, on the devices."""
        return self._state.model

    @property
    def carry(self) -> Any:
        """The carries of all workers, on the devices."""
        return self._state.carry

    def step(self, batch: Batch, carry: Any, share: float, tally: Sequence[int]) -> Stepped:
        """Dispatches one step of all workers; log points, evaluations and checkpoints are meetings."""
        t = self.round
        state = self._state._replace(carry=carry)
        scalars = np.int32(t), np.float32(share)
        self._state, made = self._step(state, batch.arrays, self._late(t), self._workers, *scalars)
        self._pending.append((t, made))
        self._in_flight.append(made)
        self._units += int(batch.units.sum())
        self.round = t + 1
        if len(self._in_flight) > _IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        if not self._meets(t + 1):
            return Stepped(t + 1)
        sums = tuple(sum(each) for each in zip(*self.group.everyone(tuple(tally)), strict=True))
        return Stepped(t + 1, sums, self._is_sync(t))

    def busy(self) -> bool:
        """Whether a step is still being computed."""
        return bool(self._in_flight) and not self._in_flight[-1].late.is_ready()

    def local_steps(self) -> tuple[int, ...]:
        """Steps of every worker: all take a step in every round."""
        return (self.steps,) * self._options.workers

    def counted(self) -> Counts:
        """What has been counted since the last call; waits for the steps in flight."""
        jax.block_until_ready(self._state)
        self._in_flight.clear()
        pending, self._pending = self._pending, []
        units, self._units = self._units, 0
        if not pending:
            return Counts(units=units)
        rounds = [t for t, _ in pending]
        made = jax.tree.map(lambda *rows: np.stack(rows), *[devices.local(one) for _, one in pending])  # [steps, here]
        distance = None
        syncs = [index for index, t in enumerate(rounds) if self._is_sync(t)]
        if syncs:
            squares = made.square_distance[syncs[-1]]
            distance = Distance(rounds[syncs[-1]], float(squares.sum(dtype=np.float64)), len(squares))
        add = lambda values: float(values.sum(dtype=np.float64))
        return Counts(
            steps=made.late.size,
            units=units,
            sums={name: (add(mean.total), add(mean.count)) for name, mean in made.metrics.items()},
            late=int(made.late.sum()),
            staleness=int(made.staleness.max()),
            distance=distance,
        )

    def report(self, step: int, window: Counts) -> None:
        """Tells the first process what this one has counted up to a log point; all call it at the same time."""
        everyone = self.group.everyone(window)
        if self.group.is_first:
            self._waiting_reports.append((step, everyone))

    def reports(self, until: int | None = None) -> list[tuple[int, list[Counts]]]:
        """On the first process, what has been reported since the last call."""
        reports, self._waiting_reports = self._waiting_reports, []
        return reports

    def consensus(self) -> Consensus:
        """The mean of all models."""
        model, squares = self._consensus(self._state.model, self._state.algorithm)
        return Consensus(on_host(model), float(devices.local(squares).sum(dtype=np.float64)))

    def pieces(self) -> dict[str, Any]:
        """The state of all workers, [num_workers, ...], and their shares where those are not their models."""
        pieces = self._state._asdict()
        if self._strategy.share is not whole_model:
            pieces["share"] = self._share(self._state.model, self._state.algorithm)
        return with_leaves(pieces)

    def describe(self) -> dict[str, Any]:
        """What the summary says about devices."""
        mesh = self.place.mesh
        return {"processes": self.group.size, "devices": 1 if mesh is None else mesh.size}

    def __enter__(self) -> "ProgramWorkers":
        return self

    def __exit__(self, *exception: object) -> None:
        """There is nothing to close."""

    def _start(self, begin: Begin) -> State:
        """All workers with the same model."""
        copies = wagma.replicate(begin, self._options.workers, mesh=self.place.mesh, axis_name=AXIS)
        create = functools.partial(_create, self._learner, self._strategy, self._position.first_step)
        state = jax.jit(wagma.for_workers(create, axis_name=AXIS, mesh=self.place.mesh))(copies.model, self._workers)
        return state if begin.optimizer is None else state._replace(optimizer=copies.optimizer)

    def _compiled(self) -> Any:
        """The step, compiled for every shape of a batch."""
        shapes = [self._batch(shape) for shape in self._learner.task.batch_shapes]
        mapped = wagma.for_workers(
            functools.partial(_one_step, self._learner, self._strategy),
            axis_name=AXIS,
            mesh=self.place.mesh,
            in_axes=(0, 0, 0, 0, None, None),
        )
        step = jax.jit(mapped, donate_argnums=0)
        scalars = np.int32(0), np.float32(0)
        lowered = lambda shape: step.lower(self._state, shape, self._late(0), self._workers, *scalars)
        compiled = ByShape(shapes, lambda shape: lowered(shape).compile())
        return lambda state, batch, *rest: compiled.of(batch)(state, batch, *rest)

    def _batch(self, shape: Any) -> Any:
        leading = (self._options.workers,)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=self._sharding), shape
        )

    def _mean(self) -> Any:
        mesh = self.place.mesh

        def mean(models, states, squares_of=square_distance):
            share = self._strategy.share
            mean_of = lambda model, state: wagma.consensus(share(model, state), axis_name=AXIS)
            means = wagma.for_workers(mean_of, axis_name=AXIS, mesh=mesh)(models, states)
            apart = wagma.for_workers(lambda a, b: squares_of(a["params"], b["params"]), axis_name=AXIS, mesh=mesh)
            return jax.tree.map(lambda leaf: leaf[0], means), apart(models, means)

        return jax.jit(mean, out_shardings=None if mesh is None else (devices.replicated(mesh), self._sharding))

    def _late(self, t: int) -> Any:
        options, mine = self._options, self.place.workers
        late = lateness.draw(options.late_probability, options.late_trace, options.seed, t, options.workers)
        return None if late is None else self.place.put(late[mine.start : mine.stop])

    def _is_sync(self, t: int) -> bool:
        return self._period is not None and (t + 1) % self._period == 0

    def _meets(self, done: int) -> bool:
        options = self._options
        periods = (options.log_every, options.eval_every, options.checkpoint_every)
        return done >= self._position.total_steps or any(period and done % period == 0 for period in periods)


def _create(learner: Learner, strategy: Strategy, first_step: int, model: Any, worker: jax.Array) -> State:
    """The first state of a worker with this model; traced."""
    optimizer = learner.optimizer_state(model)
    return State(
        model, optimizer, learner.carry(worker, first_step), strategy.init(learner.exchanged(model, optimizer))
    )


def _one_step(
    learner: Learner, strategy: Strategy, state: State, batch: Any, late: Any, worker: Any, step: Any, share: Any
) -> tuple[State, _Made]:
    """One worker's step; traced."""
    sent, optimizer, carry, metrics = learner.before(
        state.model, state.optimizer, state.carry, batch, step, worker, share
    )
    combined, algorithm, info = strategy.combine(sent, state.model, state.algorithm, late)
    model, optimizer = learner.after(state.model, optimizer, combined, share)
    made = _Made(metrics, info.late, info.staleness, learner.square_distance(sent, combined))
    return State(model, optimizer, carry, algorithm), made


def restore(options: RunOptions, learner: Learner, place: ProgramPlace, checkpoint: Path, saved: Saved) -> State:
    """The state of all workers from a checkpoint of the same set-up; nothing is compiled.

    Raises:
        DifferentModelError: It holds another model.
        Exception: It cannot be read.
    """
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((options.workers, *x.shape), x.dtype), learner.task.like)
    first_step = saved.position.first_step
    create = functools.partial(_create, learner, options.strategy(axis_name=AXIS, first_round=first_step), first_step)
    workers = jax.ShapeDtypeStruct((options.workers,), jnp.int32)
    state = jax.eval_shape(wagma.for_workers(create, axis_name=AXIS), like, workers)
    sharding = devices.sharded(place.mesh, AXIS) or SingleDeviceSharding(jax.devices()[0])
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    return state._replace(
        **checkpoints.read(checkpoint, saved, checkpoints.part_of(None), with_leaves(state._asdict()))
    )


WORKERS = ProgramWorkers
__all__ = ["TOGETHER", "WORKERS", "join", "place", "restore"]
