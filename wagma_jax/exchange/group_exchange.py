"""Wait-avoiding group model averaging for training scripts: one object per process."""

import atexit
import contextlib
import operator
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import io_callback
from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction, additive_update
from wagma_jax.exchange import offsets
from wagma_jax.exchange.buffers import Buffers, Merge
from wagma_jax.exchange.engine import Engine, ExchangeError, Taken
from wagma_jax.exchange.meeting import meet
from wagma_jax.exchange.protocol import Clock, Rounds, Tally
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.staging import ALIGNMENT, Staging
from wagma_jax.exchange.standing import MOST_ROUNDS, Standing, restore
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger.entries import Call, ConsensusCall, End, Meet, MergeName, Start
from wagma_jax.schedule import GroupSchedule, integer
from wagma_jax.transformations import raise_no_params

SWITCH_INTERVAL = 2e-4  # seconds for which a thread may hold Python's lock while an exchange is open
BROADCAST_BYTES = 1 << 24  # at a time
GOODBYE_SECONDS = 3.0  # after a failure: how long a process waits for the others to end, before it ends them
_GOODBYE_TAG = 12
_MERGES: dict[Merge | None, MergeName] = {Merge.OWN: "own", Merge.SUM: "sum", Merge.LATE: "late", None: "mean"}


class ExchangeInfo(NamedTuple):
    """What one call of ``GroupExchange.average`` did.

    Attributes:
        round: The round that the call arrived at; -1 before the first.
        is_sync: Whether it was a sync round (global mean).
        late: Whether an older model of this worker was contributed to that round.
        staleness: The age in rounds of this worker's contribution to it; 0 on time.
        waited_seconds: How long the call waited for the round, exchange included, after W' was ready.
        group: The ranks that averaged in that round.
        contributed_rounds: The version of each one's contribution: the round it was published for, -1 for the
            parameters at the start. Empty where a worker lags so far behind that this is forgotten.
        base: The newest round whose result the returned model contains; -1 if none.
        tally: At a sync round the sums over all workers of what they have passed as ``tally``; else empty.
    """

    round: int
    is_sync: bool
    late: bool
    staleness: int
    waited_seconds: float
    group: tuple[int, ...]
    contributed_rounds: tuple[int, ...]
    base: int
    tally: Tally = ()


class GroupExchange:
    """Averages this process's model with rotating groups of other processes, without waiting for late ones (WAGMA-SGD).

    After each local step call ``average``: the first of a group to arrive starts its exchange; for those that are
    still computing, a background thread contributes the model that they published last. Whoever was late merges its own
    model with the sum, ``(sum + W') / (S + 1)``. Every ``sync_period`` rounds all take the global mean. Reference: Li
    et al., TPDS 2021, algorithm 2.

    Use it as a context manager: an exception inside of it ends the whole run within seconds, and a normal end waits (at
    no cost to the others) until all workers have ended. All processes construct it at the same time with the same
    arguments. At most three buffers of the model's size exist beside the user's own at a time (in groups of more than
    two, and in sync rounds, another n-th for n members).

    Args:
        comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``. It is duplicated, so it may be used for anything.
        params: A pytree of arrays to be averaged, on the CPU or on accelerators. All workers start from rank 0's: see
            ``params``.
        group_size: S, the largest number of workers in a group. The paper takes S = sqrt(P).
        sync_period: Rounds between global means, which bounds staleness; None: never.
        rotate: Whether groups change from round to round.
        quorum: How many members of a group must arrive before an exchange starts: 1 for the first, up to ``group_size``
            for all, that is without late workers.
        clock: "step": every worker takes part in every round with a step of its own (the paper). "round": a worker that
            finds newer rounds complete jumps to them, so that one that is always slow takes fewer steps.
        policy: The per-leaf policy, from a leaf's key path and value to "mean", "keep" or "sync" (mean at sync rounds
            only). None averages floating and complex leaves and keeps all others.
        timeout_seconds: How long a call waits for others before it raises TimeoutError; ``consensus`` and ``close``
            count from when they last heard of another's progress.
        first_round: The round to begin with, for a run that goes on with equal models and without ``state``.
        state: What ``state()`` has returned on this rank, for a run that goes on exactly: with it ``params`` are this
            rank's own, what its last call had returned, and no rank's are sent to others. All ranks give one, of the
            same round, or none does. None: a new run.
        ledger: A folder in which each rank writes ``ledger-RANK.jsonl``: who waited for whom, how long, and how stale
            contributions were, for ``wagma ledger`` and ``replay``. Some 400 bytes a round. None: nothing is written.

    Raises:
        ValueError: An argument is out of range, or differs between ranks; the trees differ between ranks (on all
            ranks, naming the first leaf).
        TypeError: ``comm`` is no communicator.
        RuntimeError: MPI was initialized without MPI_THREAD_MULTIPLE.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        params: Any,
        *,
        group_size: int,
        sync_period: int | None = 10,
        rotate: bool = True,
        quorum: int = 1,
        clock: Clock = "step",
        policy: PolicyFunction | None = None,
        timeout_seconds: float = 600.0,
        first_round: int = 0,
        state: Mapping[str, Any] | None = None,
        ledger: Path | str | None = None,
    ):
        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(
                f"comm must be an mpi4py.MPI.Intracomm or None, got {comm!r}: pass for example MPI.COMM_WORLD"
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "MPI was initialized without MPI_THREAD_MULTIPLE, which the background thread needs: leave "
                "mpi4py.rc.thread_level at 'multiple', and use an MPI that was built with threads"
            )
        _check_thread_pool()
        self._closed = True  # until everything is there
        meet(comm)
        self._control = comm.Dup()
        error: Exception | None = None
        staging, schedule, leaves, description, book, published = None, None, [], None, None, None
        restored = Standing(-1, -1, -1)
        try:
            schedule = GroupSchedule(comm.size, group_size, sync_period, rotate)
            quorum = _between("quorum", quorum, 1, group_size)
            if clock not in ("step", "round"):
                raise ValueError(f"clock must be 'step' or 'round', got {clock!r}")
            if not timeout_seconds > 0:
                raise ValueError(f"timeout_seconds must be positive, got {timeout_seconds!r}")
            staging = Staging(params, policy)
            leaves = staging.check(params)
            first_round = _between("first_round", first_round, 0, MOST_ROUNDS)
            before = first_round - 1
            restored = Standing(before, before, before) if state is None else restore(state)
            begin = restored.round + 1
            if first_round not in (0, begin):
                raise ValueError(
                    f"first_round is {first_round}, but state goes on with round {begin}: leave first_round out"
                )
            if restored.published is not None:
                published = staging.from_arrays(restored.published)
            book = None if ledger is None else Recorder(ledger, comm.rank)
            settings = {
                "schedule": repr(schedule),
                "quorum": str(quorum),
                "clock": clock,
                "first_round": str(restored.round + 1),
                "state": "not given" if state is None else "given",
                "ledger": "written" if book else "not written",
            }
            description = settings, staging.describe(), str(staging.treedef)
        except Exception as caught:
            error = caught
        self._agree(error, description)
        assert staging is not None
        assert schedule is not None
        self.schedule, self.rank = schedule, comm.rank
        self.timeout_seconds = min(float(timeout_seconds), threading.TIMEOUT_MAX)
        self._staging = staging
        self._leaves = leaves
        self._models = comm.Dup()
        self._wire = Wire(self._models, staging.device)
        model, self._differs = staging.pack(leaves), False
        if state is None:
            model, self._differs = self._broadcast(model)
        self._warm_up(model)
        self._start: Buffers | None = model
        self._ledger = book
        if book is not None:
            self._start_ledger(quorum, clock, restored.round + 1)
        self._counter = restored.round
        self._base = restored.base
        self._stands: int | None = restored.round  # after this round all stood still, and it has not gone on
        self._mean: int | None = restored.version if published is None else None  # version of what was returned last
        self.info = ExchangeInfo(restored.round, False, False, 0, 0.0, (), (), restored.base)
        self._in_steps = False  # whether a jitted step calls average()
        self._engine = Engine(
            Rounds(schedule, comm.rank, quorum, clock),
            self._wire,
            self._control,
            model if published is None else published,
            staging.ordinary,
            staging.narrow,
            not staging.widens,
            restored.round + 1,
            restored.version,
            book,
        )
        self._lock = threading.Lock()
        _open(self)
        self._closed = False
        self._engine.start()

    @property
    def round(self) -> int:
        """The newest round that this worker has arrived at (or been carried past, while resting); -1 at the start."""
        return self._counter

    @property
    def params(self) -> Any:
        """The parameters to start from, before the first call of ``average``: rank 0's; with ``state`` the own ones."""
        if self._start is None:
            raise RuntimeError("params are those at the start, and are gone after the first call of average()")
        self._differs = False
        return self._staging.unpack(self._leaves, self._start)

    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, ExchangeInfo]:
        """One round: publishes W' and takes the group's mean, or merges the newest sum if this worker is late.

        Args:
            params: W', the pytree after the local step; built like the constructor's ``params``. It may be donated or
                changed afterwards: what is returned, and what is published, are copies.
            tally: A few integers of at most 64 bits, which do not take part in the averaging: if this call arrives at a
                sync round, their sums over all workers, by position, are in ``info.tally``, the same on all workers
                (shorter ones go on with zeros; a worker that rests adds nothing). At any other round they are dropped:
                hand in again then what has been counted since the last sync round.

        Returns:
            The new pytree, its leaves on the devices of ``params``, and what was done.

        Raises:
            ValueError: ``params`` is built differently, or ``tally`` holds something else.
            ExchangeError: The run is over, since another worker or this one's exchange has failed.
            TimeoutError: It took longer than ``timeout_seconds``; says which rank was waited for.
            RuntimeError: The exchange is closed.
        """
        with self._call("average"):
            entered = time.perf_counter()
            leaves, tally = self._staging.check(params), _checked(tally)
            if self._differs:
                warnings.warn(
                    "params of this rank differed from rank 0's, and exchange.params, which are equal on all ranks, "
                    "were not used: start from them",
                    stacklevel=2,
                )
                self._differs = False
            model = self._staging.pack(leaves)
            ready = time.perf_counter()
            self._stands = self._mean = None
            t = self._engine.arrive(model, self._counter, tally, self._memory)
            self._start, self._leaves = None, leaves
            del model, params
            taken = self._engine.take(t, self.timeout_seconds)
            woken = time.perf_counter()
            waited = woken - ready
            is_sync = self.schedule.is_sync(t)
            if taken.result is None:  # the mean, or W' itself
                tree = self._unpack(taken.buffers)
                if is_sync:
                    self._base = self._stands = self._mean = t
            else:
                total, size = taken.result.total, taken.result.size
                own = self._staging.ordinary(taken.buffers)
                if taken.merge == Merge.LATE:
                    merged = self._staging.merge_late(total, own, size)
                else:
                    merged = self._staging.narrow(total, own, 1 if taken.result.is_mean else size)
                tree = self._unpack(self._staging.completed(merged, taken.buffers), needed=False)
                self._base = taken.result.round
                if self._staging.copies:
                    self._engine.recycle(total if self._staging.widens else merged)
            self._counter = t if self._engine.machine.clock == "step" else max(t, taken.newest)
            self.info = self._describe(t, is_sync, taken, waited)
            self._leaves = []
            if self._ledger is not None:
                self._ledger.add(
                    Call(
                        round=t,
                        enter=entered,
                        ready=ready,
                        taken=woken,
                        leave=time.perf_counter(),
                        merge=_MERGES[taken.merge],
                        source=t if is_sync else None if taken.result is None else taken.result.round,
                        base=self._base,
                        waits=dict(taken.waits),
                    )
                )
            return tree, self.info

    def consensus(self, params: Any) -> Any:
        """The global mean of all workers' ``params``; their engines go on serving workers that still train.

        All ranks call it equally often, though not after equally many rounds; until the last has come, the others
        rest in it. When it returns all workers stand at the same ``round``.

        Args:
            params: As for ``average``. Leaves whose policy is "keep" come back as they are.

        Returns:
            The mean, equal on all ranks bit for bit.

        Raises:
            ExchangeError, TimeoutError, RuntimeError, ValueError: As ``average``.
        """
        with self._call("consensus"):
            entered = time.perf_counter()
            self._leaves = self._staging.check(params)
            model = self._staging.pack(self._leaves)
            ready = time.perf_counter()
            newest, mean = self._engine.consensus(model, self.timeout_seconds)
            woken = time.perf_counter()
            self._counter = max(self._counter, newest)
            self._base = max(self._base, newest)
            self._stands = self._mean = newest
            self._start = None
            tree = self._unpack(mean)
            if self._ledger is not None:
                leave = time.perf_counter()
                self._ledger.add(ConsensusCall(entered, ready, woken, leave, version=self._base))
            return tree

    def meet(self, tally: Sequence[int] = ()) -> Tally:
        """Waits until all workers stand still, with nothing on its way: a place to evaluate, save or stop.

        Nothing is averaged by it. All ranks call it equally often, though not after equally many rounds; until the last
        has come, the engines of the others go on serving it, and sync rounds count their trainers as arrived. When it
        returns all workers stand at the same ``round``.

        Args:
            tally: Integers of at most 64 bits.

        Returns:
            The sums over all workers of ``tally``, by position; shorter ones go on with zeros.

        Raises:
            ValueError: ``tally`` holds something else.
            ExchangeError, TimeoutError, RuntimeError: As ``average``.
        """
        tally = _checked(tally)
        if self._in_steps:
            jax.effects_barrier()  # steps that were dispatched, but have not called average() yet
        with self._call("meet"):
            entered = time.perf_counter()
            self._stands = None
            self._counter, sums = self._engine.meet(tally, self.timeout_seconds)
            self._stands = self._counter
            if self._ledger is not None:
                self._ledger.add(Meet(entered, leave=time.perf_counter()))
            return sums

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, beside ``params``, so that a new exchange goes on exactly: see its ``state``.

        To be called on all ranks while all stand still: before the first call of ``average``, or after one at a sync
        round, ``meet`` or ``consensus``, before the next. The parameters that belong to it are what the last call of
        ``average`` or ``consensus`` has returned on this rank.

        Returns:
            Integers by name (``round`` is the newest complete round, the same on all ranks); and as ``published``, only
            where what this worker has published last is not those parameters, a list of NumPy arrays: its averaged
            leaves, in the order of the tree.

        Raises:
            RuntimeError: Others may have gone on, or the exchange is closed.
        """
        if self._in_steps:
            jax.effects_barrier()
        with self._call("state"):
            if self._stands is None:
                raise RuntimeError(
                    "state() was called while others may be training: call it after a sync round, meet() or "
                    "consensus(), before the next average()"
                )
            version, model = self._engine.outbox
            published = None if version == self._mean else self._staging.to_arrays(model)
            return Standing(self._stands, self._base, version, published).saved()

    def as_transformation(self) -> optax.GradientTransformationExtraArgs:
        """``average`` as the last link of an optax chain, for a jitted step: ``optax.chain(inner, this)``.

        ``update`` needs ``params``; W' is what ``optax.apply_updates`` gives. The updates that it returns lead to the
        average within one unit in the last place (leaves narrower than float32: exactly, by updates in float32). What
        was done is in ``info`` when the step is over (JAX dispatches steps ahead: ``jax.block_until_ready``).
        """

        self._in_steps = True

        def update(updates, state, params=None, **extra_args):
            del extra_args
            if params is None:
                raise_no_params(updates)
            target = optax.apply_updates(params, updates)
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), target)
            averaged = io_callback(self._from_callback, like, target, ordered=True)
            policies = iter(self._staging.policies)

            def emit(w, u, new):
                return u if next(policies) == "keep" else additive_update(w, new)

            return jax.tree.map(emit, params, updates, averaged), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    def close(self) -> None:
        """Waits until all ranks have called it, serving those that still train, and frees everything.

        Raises:
            ExchangeError: Another worker has failed.
            TimeoutError: The others have not come within ``timeout_seconds``.
        """
        if self._closed:
            return
        if self._in_steps:
            jax.effects_barrier()  # steps that were dispatched, but have not called average() yet
        with self._call("close"):
            self._engine.close(self.timeout_seconds)
            self._closed = True
            if self._ledger is not None:
                self._ledger.add(offsets.measure(self._control))
                self._ledger.add(End())
                self._ledger.close()
            self._start, self._leaves = None, []
            _forget(self, failed=False)
            self._control.Free()
            self._models.Free()

    def __enter__(self) -> "GroupExchange":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.close()
        else:
            if isinstance(error, SystemExit):
                _set_exit_code(error.code)
            self._abort(f"rank {self.rank} ended with {kind.__name__}: {error}")

    # helpers

    @contextlib.contextmanager
    def _call(self, name: str):
        """One call at a time, while it is open; an error inside is told to all others."""
        if self._closed:
            raise RuntimeError(f"{name}() was called after the exchange was closed: build a new GroupExchange")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{name}() was called from two threads at once: call it from one")
        try:
            self._engine.enter()
            self._engine.raise_failure()
            yield
        except (ExchangeError, TimeoutError) as error:
            self._abort(f"rank {self.rank} ended with {type(error).__name__}: {error}")
            raise
        finally:
            self._engine.leave()
            self._lock.release()

    def _abort(self, text: str) -> None:
        if not self._closed:
            self._closed = True
            self._engine.abort(text)
            if self._ledger is not None:
                self._ledger.close()
            _forget(self, failed=True)

    def _agree(self, error: Exception | None, description: Any) -> None:
        """Raises on all ranks if one has an error, or another description than rank 0."""
        meet(self._control)
        text = None if error is None else f"{type(error).__name__}: {error}"
        everyone = self._control.allgather((text, description))
        failed = [rank for rank, (text, _) in enumerate(everyone) if text is not None]
        problem = None
        if error is None and failed:
            problem = f"rank {failed[0]} could not build its exchange: {everyone[failed[0]][0]}"
        elif not failed:
            differences = [(rank, _difference(everyone[0][1], other)) for rank, (_, other) in enumerate(everyone)]
            found = [(rank, difference) for rank, difference in differences if difference]
            if found:
                problem = f"rank {found[0][0]} and rank 0 differ: {found[0][1]}; pass the same on all ranks"
        if error is not None or problem is not None:
            self._control.Free()
            raise error if error is not None else ValueError(problem)

    def _broadcast(self, model: Buffers) -> tuple[Buffers, bool]:
        """Rank 0's buffers, and whether the own ones differ from them."""
        meet(self._control)
        result, differs = [], False
        for own in model:
            mine = np.asarray(own).view(np.uint8)
            theirs = _aligned_empty(mine.size)
            if self.rank == 0:
                theirs[:] = mine
            for start in range(0, theirs.size, BROADCAST_BYTES):
                part = slice(start, start + BROADCAST_BYTES)
                self._control.Bcast(theirs[part], root=0)
                differs = differs or not np.array_equal(mine[part], theirs[part])
            result.append(jax.device_put(theirs.view(own.dtype), self._staging.device, may_alias=True))
        return self._staging.copy(tuple(result)), differs

    def _warm_up(self, model: Buffers) -> None:
        """Compiles every exchange by making it once, so that no round waits for a compiler."""
        self._staging.warm_up(model)
        ordinary = self._staging.ordinary(model)
        everyone = tuple(range(self.schedule.num_workers))
        rounds: dict[Any, int] = {}  # the first with these groups
        if self.schedule.sync_period != 1:
            for t in range(self.schedule.period):
                rounds.setdefault(self.schedule.groups(t), t)
        exchanges = [(self.schedule.group_of(self.rank, t), t, ordinary) for t in rounds.values()]
        exchanges.append((everyone, -1, model))
        for group, _, buffers in exchanges:
            self._wire.prepare(group, buffers)
        meet(self._control)  # before anybody waits inside of an exchange
        for group, t, buffers in exchanges:
            self._wire.exchange(group, 1, (t, -1), buffers, self._wire.memory(buffers))

    def _start_ledger(self, quorum: int, clock: Clock, first_round: int) -> None:
        assert self._ledger is not None
        schedule = self.schedule
        self._ledger.add(
            Start(
                rank=self.rank,
                num_workers=schedule.num_workers,
                group_size=schedule.group_size,
                sync_period=schedule.sync_period,
                rotate=schedule.rotate,
                quorum=quorum,
                clock=clock,
                first_round=first_round,
                host=platform.node(),
                **offsets.measure(self._control)._asdict(),
            )
        )
        self._ledger.write(everything=True)  # without it what follows could not be read after a crash

    def _memory(self, is_sync: bool) -> Buffers:
        model = self._engine.outbox.model
        return self._wire.memory(model if is_sync else self._staging.ordinary(model))

    def _unpack(self, buffers: Buffers, needed: bool = True) -> Any:
        return self._staging.unpack(self._leaves, buffers, needed)

    def _from_callback(self, target: Any) -> Any:
        tree, _ = self.average(target)
        return jax.tree.map(np.asarray, tree)

    def _describe(self, t: int, is_sync: bool, taken: Taken, waited: float) -> ExchangeInfo:
        record = taken.record
        group = tuple(range(self.schedule.num_workers)) if is_sync else self.schedule.group_of(self.rank, t)
        contributed = record.contributed if record is not None else ()
        staleness = 0 if is_sync or not contributed else t - contributed[group.index(self.rank)]
        return ExchangeInfo(t, is_sync, staleness > 0, staleness, waited, group, contributed, self._base, taken.tally)


def _aligned_empty(nbytes: int) -> np.ndarray:
    """Memory that XLA takes as it is, without a copy."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + nbytes]


def _checked(tally: Sequence[int]) -> Tally:
    try:
        numbers = tuple(operator.index(number) for number in tally)
    except TypeError:
        numbers = None
    if numbers is None or not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        raise ValueError(f"tally must hold integers of at most 64 bits, got {tally!r}: pass for example (1, 250)")
    return numbers


def _between(name: str, value: Any, low: int, high: int) -> int:
    value = integer(name, value, f"pass {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
    return value


def _difference(expected: Any, came: Any) -> str | None:
    """What differs first between two ranks' (settings, leaves, structure)."""
    for name, value in expected[0].items():
        if came[0][name] != value:
            return f"{name} is {came[0][name]} there, and {value} on rank 0"
    for ours, theirs in zip(expected[1], came[1], strict=False):
        if ours != theirs:
            (name, shape, dtype, policy), (other, other_shape, other_dtype, other_policy) = ours, theirs
            return (
                f"the leaf {other} is {other_dtype}{list(other_shape)} ({other_policy}) there, and on rank 0 it is "
                f"{name}, {dtype}{list(shape)} ({policy})"
            )
    if len(expected[1]) != len(came[1]):
        longer = max(expected[1], came[1], key=len)
        return f"the leaf {longer[min(len(expected[1]), len(came[1]))][0]} is missing on one of them"
    return None if expected[2] == came[2] else f"the tree is {came[2]} there, and {expected[2]} on rank 0"


def _check_thread_pool() -> None:
    """Warns where a long computation of the trainer would keep the engine's from running."""
    threads = int(os.environ.get("NPROC") or len(os.sched_getaffinity(0)))
    if threads < 2 and jax.config.read("jax_cpu_enable_async_dispatch"):
        warnings.warn(
            f"XLA has {threads} thread for computations on this CPU, so that the exchange waits while a step computes: "
            "start with `wagma launch`, set NPROC=2 and give the process two cores (mpirun --bind-to none), or, before "
            "anything else, jax.config.update('jax_cpu_enable_async_dispatch', False)",
            RuntimeWarning,
            stacklevel=3,
        )


# What a process does at its end. A process that fails must not wait in MPI_Finalize for others which compute on; one
# that has handled its failure has time.

_exchanges: "set[GroupExchange]" = set()  # those that are open; else one that is forgotten would end unnoticed
_switch_interval: list[float] = []
_failed = False
_exit_code = 0  # of a SystemExit that has left an exchange


def _open(exchange: GroupExchange) -> None:
    if not _exchanges:
        _switch_interval[:] = [sys.getswitchinterval()]
        sys.setswitchinterval(min(_switch_interval[0], SWITCH_INTERVAL))
    _exchanges.add(exchange)
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def _forget(exchange: GroupExchange, failed: bool) -> None:
    global _failed
    _failed = _failed or failed
    _exchanges.discard(exchange)
    if not _exchanges:
        sys.setswitchinterval(_switch_interval[0])


def _set_exit_code(code: Any) -> None:
    global _exit_code
    _exit_code = 0 if code is None else code & 255 if isinstance(code, int) else 1


def _at_exit() -> None:
    code = _exit_code or int(bool(_exchanges) or hasattr(sys, "last_value"))  # the latter by an uncaught exception
    for exchange in list(_exchanges):
        exchange._abort(f"rank {exchange.rank} ended without close()")
    if not _failed or MPI.Is_finalized():
        return
    world = MPI.COMM_WORLD
    end = time.perf_counter() + GOODBYE_SECONDS
    others = set(range(world.size)) - {world.rank}
    requests = [world.isend(code, rank, _GOODBYE_TAG) for rank in others]
    if not code:
        return
    codes = {code}
    status = MPI.Status()
    while others and time.perf_counter() < end:
        message = world.improbe(MPI.ANY_SOURCE, _GOODBYE_TAG, status)
        if message is None:
            time.sleep(0.01)
            continue
        codes.add(message.recv())
        others.discard(status.Get_source())
    del requests
    # mpirun takes the code of the first to end: this one's, if the others' say less, who wait in MPI_Finalize meanwhile
    if others or (code > 1 and min(codes) < max(codes) == code):
        sys.stdout.flush()
        sys.stderr.flush()
        world.Abort(max(codes))
