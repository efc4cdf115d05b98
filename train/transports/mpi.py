"""Every process is a worker, and workers exchange over MPI without waiting for late ones."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import checkpoints, settings, stragglers
from train.checkpoints import Position, Saved
from train.counts import Counts, Distance
from train.learner import Begin, Learner, State, square_distance
from train.loop import Consensus, Stepped
from train.options import RunOptions
from train.pytrees import as_shapes, on_host, with_leaves
from train.task import Batch, Mean
from train.transports import joining, launchers
from train.transports.compiling import ByShape
from train.transports.cutoff import MpiCutoff
from train.transports.group import Group, MpiGroup
from train.transports.reports import Reports
from wagma_jax import algorithms

TOGETHER = False  # every process writes its own part of a checkpoint


def join(options: RunOptions) -> Group:
    """The processes that MPI has started.

    Raises:
        ValueError: They are not as many as the options say, or the extra 'mpi' is missing.
    """
    size = 1
    launched = launchers.launched(os.environ)
    if launched is not None:
        try:
            with joining.announced(launched.processes, "MPI"):
                from wagma_jax.exchange import MPI
        except ImportError as error:
            raise ValueError(str(error)) from None
        size = MPI.COMM_WORLD.size
    if size < 2 or size != options.workers:
        raise ValueError(
            f"--transport mpi makes every process a worker, got --workers {options.workers} and {size} "
            f"process{'es' * (size > 1)}: start with wagma launch -n {max(options.workers, 2)}, or use --transport xla"
        )
    from wagma_jax.exchange import MPI

    return MpiGroup(MPI.COMM_WORLD)


@dataclasses.dataclass(frozen=True)
class MpiPlace:
    """Where the worker of this process is; see ``train.task.Place``."""

    options: RunOptions
    group: MpiGroup
    equal_shapes = False

    @property
    def num_workers(self) -> int:
        """P."""
        return self.options.workers

    @property
    def rank(self) -> int:
        """Of this process and of its worker."""
        return self.group.rank

    @property
    def workers(self) -> range:
        """The worker of this process."""
        return range(self.rank, self.rank + 1)

    @property
    def part(self) -> tuple[int, int]:
        """(which, of how many) of an evaluation is this process's."""
        return self.rank, self.num_workers

    @property
    def devices(self) -> Sequence[Any]:
        """The devices of this process that its worker uses."""
        return jax.local_devices()[:1]

    def put(self, tree: Any) -> Any:
        """Brings host arrays [1, ...] onto the device, without their leading axis."""
        return jax.device_put(jax.tree.map(lambda x: x[0], tree))

    def map(self, function: Callable[..., Any], donate: Sequence[int] = ()) -> Callable[..., Any]:
        """Compiles a function of one worker's arrays."""
        return jax.jit(function, donate_argnums=tuple(donate))

    def cutoff(self, share: float) -> MpiCutoff:
        """A cutoff at this share of the workers; all processes call it, and wait for each other."""
        return MpiCutoff(self.group, self.options, share)


def place(options: RunOptions, group: MpiGroup) -> MpiPlace:
    """Where the worker of this process is.

    Raises:
        ValueError: On all processes: JAX lacks a device on one of them.
    """
    group.agreed(lambda: settings.check_platforms(needs_cpu=True))
    return MpiPlace(options, group)


@dataclasses.dataclass(frozen=True)
class _Found:
    """One worker's state in a checkpoint.

    Attributes:
        state: Model, optimizer and carry.
        steps: Steps of this worker since the run got its present number of workers.
        exchange: What ``exchange.state()`` returned; None where the exchange begins anew.
        equal: Whether all workers have the same model.
    """

    state: State
    steps: int
    exchange: Any
    equal: bool


class MpiWorkers:
    """See ``train.loop.Workers``.

    Args:
        options: Those of the run.
        learner: One worker's computations.
        group: The processes.
        place: Where this one's worker is.
        position: Where the run begins.
        found: What :func:`restore` returned, or what all begin with.
        out: Folder of the ledgers.
    """

    def __init__(
        self,
        options: RunOptions,
        learner: Learner,
        group: MpiGroup,
        place: MpiPlace,
        position: Position,
        found: "_Found | Begin",
        out: Path,
    ):
        self.group, self.place = group, place
        self._options, self._learner, self._position = options, learner, position
        self._delays = stragglers.parse(options.straggler, learner.task.steps_per_delay)
        self._pause = stragglers.delay(options.straggler_kind)
        self._worker, self._exchange_state = np.int32(place.rank), None
        if isinstance(found, _Found):
            self._state, self.steps, self._exchange_state = found.state, found.steps, found.exchange
        else:
            self._state, self.steps = self._start(found), 0
        self._reports = Reports(group, position.step)
        self._compile()
        algorithm = algorithms.find(options.algorithm)
        self._drifts = algorithm.exchanges == "models" or algorithm.drifts  # whether models differ between meetings
        self._settles = algorithm.drifts
        like = jax.tree.leaves(learner.task.like)
        self._kept = [i for i, leaf in enumerate(like) if not jnp.issubdtype(leaf.dtype, jnp.inexact)]  # never averaged
        settings = options.settings(
            ledger=out,
            **({"first_round": position.step} if self._exchange_state is None else {"state": self._exchange_state}),
        )
        assert algorithm.mpi is not None, "the options have been checked"
        self.exchange = algorithm.mpi(settings, group.world, learner.exchanged(*self._state[:2]))
        self._next_meeting = self._after(position.step)
        self._pending: list[dict[str, Mean]] = []
        self._counts = Counts(waited=0.0, worked=0.0)
        self._equal = not isinstance(found, _Found) or found.equal  # whether all models are equal

    @property
    def round(self) -> int:
        """Rounds done."""
        return self.exchange.round + 1

    @property
    def model(self) -> Any:
        """The worker's model."""
        return self._state.model

    @property
    def carry(self) -> Any:
        """The worker's carry."""
        return self._state.carry

    def step(self, batch: Batch, carry: Any, share: float, tally: Sequence[int]) -> Stepped:
        """One step of this process's worker and one round of the exchange."""
        model, optimizer, _, _ = self._state
        step = np.int32(self._position.first_step + self.steps)
        scalars = step, self._worker, np.float32(share)
        begun = time.perf_counter()
        sent, optimizer, carry, metrics = self._before(model, optimizer, carry, batch.arrays, *scalars)
        jax.block_until_ready(sent)
        where = self.place.num_workers, self.place.rank
        if not batch.delayed:
            spent = batch.worked + time.perf_counter() - begun
            seconds = self._delays.pause(self._options.seed, self.steps, *where, spent)
            if seconds:
                self._pause(seconds)
        worked = batch.worked + time.perf_counter() - begun
        self.steps += 1
        combined, info = self.exchange.average(sent, tally=tally)
        model, optimizer = self._after_exchange(model, optimizer, combined, np.float32(share))
        total, by_units = self._position.total_steps, self._options.ends_by_units
        # a sync round past a meeting or past the end is no meeting: workers that are there join it while they rest
        at_sync = info.is_sync and info.round < self._next_meeting and (by_units or info.round < total)
        distance, waited = None, info.waited_seconds
        if info.is_sync:
            distance = Distance(info.round, float(self._distance(sent, combined)), 1)
        if at_sync and self._settles:
            begun, apart = time.perf_counter(), model
            model = self.exchange.consensus(apart)
            waited += time.perf_counter() - begun
            distance = Distance(info.round, float(self._distance_of_models(apart, model)), 1)
        self._state = State(model, optimizer, carry, ())
        self._pending.append(metrics)
        self._counts += Counts(
            steps=1,
            units=int(batch.units.sum()),
            late=int(info.late),
            staleness=info.staleness,
            waited=waited,
            worked=worked,
            distance=distance,
        )
        done = info.round + 1 if at_sync else self.round
        done = done if by_units else min(done, total)
        self._equal = at_sync and not self._kept
        if at_sync:
            self._next_meeting = self._after(done)
            return Stepped(done, info.tally, True)
        if done >= self._next_meeting or (done >= total and not by_units):
            begun = time.perf_counter()
            sums = self.exchange.meet(tally)  # now all are at the same round
            self._counts += Counts(waited=time.perf_counter() - begun)
            done = self.round if by_units else min(self.round, total)
            self._next_meeting = self._after(done)
            return Stepped(done, sums)
        return Stepped(done)

    def busy(self) -> bool:
        """Nothing is computed between two calls of :meth:`step`."""
        return False

    def counted(self) -> Counts:
        """What has been counted since the last call."""
        counts, self._counts = self._counts, Counts(waited=0.0, worked=0.0)
        pending, self._pending = self._pending, []
        sums: dict[str, tuple[float, float]] = {}
        for step in jax.device_get(pending):
            for name, mean in step.items():
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = total + float(mean.total), count + float(mean.count)
        return dataclasses.replace(counts, sums=sums)

    def report(self, step: int, window: Counts) -> None:
        """Tells the first process what this one has counted up to a log point, without waiting for it."""
        self._reports.tell(step, window)

    def reports(self, until: int | None = None) -> list[tuple[int, list[Counts]]]:
        """On the first process, the log points that all have reported; waits for the one at step ``until``."""
        return self._reports.heard(until)

    def consensus(self) -> Consensus:
        """The mean of all models; all processes call it, at a meeting."""
        model = self._state.model
        if self._equal:
            return Consensus(on_host(model), 0.0)
        # else parameters are equal, and so are the statistics that travel with gradients
        mean = self.group.mean(self.exchange.share(model)) if self._drifts else model
        if self._kept:
            mean = self._with_kept_of_first(mean)
        squares = float(self._distance_of_models(model, mean))
        return Consensus(on_host(mean), squares)

    def _with_kept_of_first(self, model: Any) -> Any:
        """The model, but the first worker's leaves where they are not averaged."""
        leaves, structure = jax.tree.flatten(model)
        firsts = self.group.from_first([np.asarray(leaves[index]) for index in self._kept])
        for index, first in zip(self._kept, firsts, strict=True):
            leaves[index] = first
        return jax.tree.unflatten(structure, leaves)

    def pieces(self) -> dict[str, Any]:
        """This worker's state; its model only on the first process if all are equal."""
        state = self._state
        exchange = jax.tree.map(np.asarray, self.exchange.state())
        pieces: dict[str, Any] = {"optimizer": state.optimizer, "carry": state.carry, "exchange": exchange}
        if not self._equal or self.group.is_first:
            pieces["model"] = state.model
        if self._drifts and not self._equal:
            share = self.exchange.share(state.model)
            if share is not state.model and not _same(share, state.model):
                pieces["share"] = share
        return with_leaves(pieces)

    def local_steps(self) -> tuple[int, ...]:
        """Steps of every worker; all processes call it."""
        return tuple(self.group.everyone(self.steps))

    def describe(self) -> dict[str, Any]:
        """What the summary says about devices."""
        return {"processes": self.group.size, "devices": 1}

    def __enter__(self) -> "MpiWorkers":
        self.exchange.__enter__()
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        """Ends the exchange: once all processes have come here, or at once after an exception."""
        self.exchange.__exit__(kind, *exception)
        if kind is None:
            self._reports.close()

    def _after(self, done: int) -> float:
        """The rounds done at the next meeting that is not a sync round."""
        every = self._options.meeting_period(self.exchange.sync_period)
        return float("inf") if every is None else (done // every + 1) * every

    def _start(self, begin: Begin) -> State:
        model, optimizer = jax.tree.map(jnp.asarray, begin)
        make = jax.jit(lambda model, worker: (
            self._learner.optimizer_state(model), self._learner.carry(worker, self._position.first_step)
        ))  # fmt: skip
        fresh, carry = make(model, self._worker)
        return State(model, fresh if optimizer is None else optimizer, carry, ())

    def _compile(self) -> None:
        """Compiles the halves of a step for every shape of a batch, before times count."""
        learner, (model, optimizer, carry, _) = self._learner, self._state
        scalars = np.int32(0), self._worker, np.float32(0)
        before = jax.jit(learner.before, donate_argnums=(1, 2))
        lowered = lambda shape: before.lower(model, optimizer, carry, shape, *scalars)
        compiled = ByShape(learner.task.batch_shapes, lambda shape: lowered(shape).compile())

        def first_half(model, optimizer, carry, batch, *scalars):
            return compiled.of(batch)(model, optimizer, carry, batch, *scalars)

        self._before = first_half
        like = jax.eval_shape(learner.exchanged, model, optimizer)
        if learner.exchanges == "models":
            self._after_exchange: Any = learner.after
        else:
            after = jax.jit(learner.after)
            self._after_exchange = after.lower(model, optimizer, like, np.float32(0)).compile()
        self._distance = jax.jit(learner.square_distance).lower(like, like).compile()
        self._distance_of_models = jax.jit(lambda a, b: square_distance(a["params"], b["params"]))


def _same(share: Any, model: Any) -> bool:
    """Whether the averaged leaves of two models are equal; the others of a share are those of the model."""
    leaves = zip(jax.tree.leaves(share), jax.tree.leaves(model), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in leaves if jnp.issubdtype(b.dtype, jnp.inexact))


def restore(options: RunOptions, learner: Learner, place: MpiPlace, checkpoint: Path, saved: Saved) -> _Found:
    """This worker's state from a checkpoint of the same set-up; nothing is compiled.

    Raises:
        DifferentModelError: It holds another model.
        Exception: It cannot be read.
    """
    del options
    part, first = checkpoints.part_of(place.rank), checkpoints.part_of(0)
    model = as_shapes(learner.task.like)
    state = State(
        model,
        jax.eval_shape(learner.optimizer_state, model),
        jax.eval_shape(lambda worker: learner.carry(worker, 0), jnp.zeros((), jnp.int32)),
        (),
    )
    wanted = with_leaves(state._asdict())
    equal = sum("model" in pieces for pieces in saved.parts.values()) == 1
    found = {}
    if equal:
        found = checkpoints.read(checkpoint, saved, first, {"model": wanted.pop("model")})
    found |= checkpoints.read(checkpoint, saved, part, wanted)
    state = state._replace(**jax.tree.map(jnp.asarray, found))
    kept = None
    if "exchange" in saved.parts[part]:
        kept = checkpoints.read_as_saved(checkpoint, part, "exchange")
    return _Found(state, saved.position.local_steps[place.rank], kept, equal)


WORKERS = MpiWorkers
