"""What the exchanges of all algorithms share: how they begin, rest, meet and end."""

import functools
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import optax
from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction
from wagma_jax.choices import OnNonfinite
from wagma_jax.exchange import callbacks, children, isolation, offsets, startup, transformation
from wagma_jax.exchange.calls import Calls, guarded
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.finite import is_finite
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.preparation import Prepared, exchange_once, prepare, record_start
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.tallies import check_tally
from wagma_jax.ledger import entries
from wagma_jax.protocol.messages import Tally


class Exchange:
    """Exchanges this process's model with other processes, round by round; a context manager.

    An exception inside of it ends the whole run within seconds, and a normal end waits (at no cost to the others) until
    all workers have ended. All processes construct it at the same time with the same arguments. A subclass says what a
    round is: it calls :meth:`_begin` in its constructor, and has :meth:`average`, an engine, and what follows from
    calls that rest.

    Attributes:
        rank: Of this process.
        info: What the last call of ``average`` did.
    """

    rank: int
    info: "Info"
    _on_nonfinite: OnNonfinite = "share"

    def _begin(
        self,
        comm: MPI.Intracomm | None,
        params: Any,
        check: startup.Check,
        *,
        policy: PolicyFunction | None,
        timeout_seconds: float,
        first_round: int,
        state: Mapping[str, Any] | None,
        ledger: Path | str | None,
        kept: Collection[str] = (),
    ) -> None:
        """The constructor's work.

        Args:
            comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``.
            params: A pytree of arrays to be exchanged.
            check: Maps the number of ranks to the settings of the algorithm alone, which must be equal on all ranks, or
                raises what is wrong with them.
            policy: The per-leaf policy.
            timeout_seconds: How long a call waits for others.
            first_round: The round to begin with.
            state: What ``state()`` returned on this rank, or None.
            ledger: The folder of the ledgers, or None.
            kept: What ``state`` may hold of the algorithm alone, by name.

        Raises:
            ValueError, TypeError, TimeoutError, ExchangeError, RuntimeError: See the subclass.
        """
        what = f"{type(self).__name__}()"
        comm = startup.check_process(comm, what)
        gathering = Gathering(comm, startup.limit(timeout_seconds), what)
        self._call = Calls(gathering)
        with self._call.constructor():
            gathering.enter()
            checked = functools.partial(
                startup.check_arguments,
                comm,
                params,
                check,
                policy=policy,
                timeout_seconds=timeout_seconds,
                first_round=first_round,
                state=state,
                ledger=ledger,
                kept=kept,
            )
            self._open(gathering, startup.agree(gathering, checked))

    def _open(self, gathering: Gathering, arguments: startup.Arguments) -> None:
        """The constructor's work, once all ranks have come and agree."""
        self.rank = gathering.rank
        self.timeout_seconds = arguments.timeout_seconds
        self._recorder = arguments.recorder
        self._staging, self._leaves, standing = arguments.staging, arguments.leaves, arguments.standing
        self._gathering, self._control = gathering, gathering.comm
        with isolation.own_settings():
            prepared = prepare(gathering, arguments)
            make = functools.partial(self._make_engine, gathering, arguments, prepared)
            self._engine: Any = startup.done_by_all(gathering, make)
            self._warm_up(gathering, arguments, prepared)
            record_start(gathering, arguments)
        self._data, self._differs = prepared.data, prepared.differs
        self._start: Buffers | None = prepared.model
        self._counter = standing.round
        self._base = standing.base
        # all stood still after this round, and this trainer has not gone on since
        self._stands: int | None = standing.round
        self._in_steps = False  # whether a jitted step calls average()
        self._opened(arguments)
        self._engine.start()
        self._call.opened(self._engine, self._recorder)

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
        with isolation.own_settings():
            return self._staging.unpack(self._leaves, self._start)

    @property
    def sync_period(self) -> int | None:
        """Rounds between global means, at which all stand still; None: there are none."""
        return None

    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, Any]:
        """One round of this worker; its info has at least what ``base.Info`` says."""
        raise NotImplementedError

    @guarded
    def consensus(self, params: Any) -> Any:
        """The global mean of all workers' ``params``; their engines go on serving workers that still train.

        All ranks call it equally often, though not after equally many rounds. Until the last has come, the others rest
        in it. When it returns all workers stand at the same ``round``, and the mean is published.

        Args:
            params: As for ``average``. Leaves whose policy is "keep" come back as they are.

        Returns:
            The mean, equal on all ranks bit for bit.

        Raises:
            ExchangeError, TimeoutError, RuntimeError, ValueError: As ``average``.
        """
        entered = time.perf_counter()
        self._leaves = self._staging.check(params)
        handed = self._hand_in(self._leaves)
        ready = time.perf_counter()
        self._call.count_on()
        newest, mean = self._engine.consensus(handed.model, self.timeout_seconds)
        woken = time.perf_counter()
        self._counter = self._base = self._stands = newest
        self._start = None
        self._rested(newest, is_mean=True)
        tree = self._staging.unpack(self._leaves, mean)
        self._leaves = []
        if self._recorder is not None:
            self._recorder.add(
                entries.ConsensusCall(entered, ready, woken, time.perf_counter(), newest, handed.is_stand_in)
            )
        return tree

    @guarded
    def meet(self, tally: Sequence[int] = ()) -> Tally:
        """Waits until all workers stand still with nothing on its way: a place to evaluate, save or stop.

        Nothing is averaged by it. All ranks call it equally often, though not after equally many rounds. Until the last
        has come, the engines of the others go on serving it, and their trainers count as arrived at sync rounds. When
        it returns all workers stand at the same ``round``.

        Args:
            tally: Integers of at most 64 bits.

        Returns:
            The sums over all workers of ``tally``, by position; shorter ones go on with zeros.

        Raises:
            ValueError: ``tally`` holds something else.
            ExchangeError, TimeoutError, RuntimeError: As ``average``.
        """
        tally = check_tally(tally)
        entered = time.perf_counter()
        self._rests()
        self._stands = None
        self._call.count_on()
        self._counter, sums = self._engine.meet(tally, self.timeout_seconds)
        self._stands = self._counter
        self._rested(self._counter, is_mean=False)
        if self._recorder is not None:
            self._recorder.add(entries.Meet(entered, time.perf_counter()))
        return sums

    def share(self, tree: Any) -> Any:
        """This worker's part of the consensus, which is the mean of all parts; while all stand still.

        It is ``tree`` itself, unless something of this worker's model is elsewhere, such as on its way.

        Args:
            tree: This worker's model, as the last call of ``average`` returned it.
        """
        return tree

    @guarded
    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, beside ``params``, so that a new exchange goes on exactly: see its ``state``.

        Called on all ranks while all stand still: before the first call of ``average``, or after one at a sync round,
        ``meet`` or ``consensus``, before any rank's next ``average``: see to that by a barrier of your own. The
        parameters that belong to it are what the last call of ``average`` or ``consensus`` returned on this rank.

        Returns:
            Integers, and lists of NumPy arrays, by name. ``round`` is the newest complete round, the same on all ranks.

        Raises:
            RuntimeError: Others may have gone on, or the exchange is closed.
        """
        return self._saved(self._check_standstill("state()", "a sync round, meet() or consensus()"))

    def as_transformation(self, every: int = 1) -> optax.GradientTransformationExtraArgs:
        """``average`` as the last link of an optax chain, for a jitted step: ``optax.chain(inner, this)``.

        ``update`` needs ``params``. Its updates lead to the average of W' = params + updates, to one unit in the last
        place (leaves narrower than float32: exactly, by updates in float32). ``info`` is there when the step is over.
        ``every=k`` averages on every k-th update, for ``optax.MultiSteps(inner, k)`` before it: around it is refused.
        """
        self._in_steps = True
        return transformation.as_transformation(lambda target: self.average(target)[0], self._staging, every)

    def close(self) -> None:
        """Waits until all ranks have called it, serving those that still train, and frees everything.

        Raises:
            ExchangeError: Another worker has failed.
            TimeoutError: The others have not come within ``timeout_seconds``.
        """
        if self._call.closed or children.is_child():
            return
        self._finish_steps()
        self._call.make("close", self._close)

    def _close(self) -> None:
        self._rests()
        self._call.count_on()
        self._gathering.end(self._engine.close(self.timeout_seconds))
        if self._recorder is not None:
            self._recorder.add(offsets.measure(self._gathering))
            self._recorder.add(entries.End())
            self._recorder.close()
        self._start, self._leaves = None, []
        self._call.close()
        self._control.Free()
        self._data.Free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.close()
        else:
            self._call.fail(error)

    # what algorithms add

    def _make_engine(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> Engine:
        """Makes the engine, and waits for nobody; raises ValueError if this rank's model or state does not do."""
        raise NotImplementedError

    def _warm_up(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> None:
        """Compiles everything, and makes every exchange once; called by all ranks together."""
        arguments.staging.warm_up(prepared.model, arguments.leaves)
        self._engine.warm_up()
        everyone = tuple(range(gathering.comm.size))
        exchange_once(gathering, prepared.wire, [(everyone, -1, prepared.model)])

    def _opened(self, arguments: startup.Arguments) -> None:
        """The engine is made, and about to start."""

    def _hand_in(self, leaves: list[Any]) -> "HandedIn":
        """What this worker contributes to a global mean."""
        self._rests()
        return HandedIn(self._staging.pack(leaves))

    def _rests(self) -> None:
        """The trainer is about to rest."""

    def _rested(self, newest: int, is_mean: bool) -> None:
        """All stood still after round ``newest``, and took the global mean, or only met."""

    def _saved(self, round_: int) -> dict[str, Any]:
        """What ``state`` returns; all stand still after ``round_``."""
        raise NotImplementedError

    # helpers

    def _check_standstill(self, call: str, places: str) -> int:
        """The round after which all stand still; RuntimeError where this trainer has gone on since."""
        if self._stands is None:
            raise RuntimeError(
                f"{call} was called while others may be training: call it after {places}, before the next average()"
            )
        return self._stands

    def _finite(self, model: Buffers) -> Buffers | None:
        """The model; None if it is to be skipped."""
        return model if self._on_nonfinite == "share" or is_finite(model) else None

    def _warn_of_own_start(self) -> None:
        """At the first call of ``average``."""
        if self._differs:
            warnings.warn(
                "params of this rank differed from rank 0's, and exchange.params, which are equal on all ranks, "
                "were not used: start from them",
                stacklevel=5,  # of whoever calls average(), which is guarded
            )
            self._differs = False

    def _finish_steps(self) -> None:
        """Waits for jitted steps that were dispatched, but have not called ``average`` yet."""
        if self._in_steps and not transformation.in_step():
            callbacks.finish()


class Info(Protocol):
    """What every exchange's ``average`` tells beside its result; see ``ExchangeInfo``."""

    @property
    def round(self) -> int:
        """The round that the call arrived at."""
        ...

    @property
    def is_sync(self) -> bool:
        """Whether all took the global mean in it."""
        ...

    @property
    def late(self) -> bool:
        """Whether something older of this worker was contributed to it."""
        ...

    @property
    def staleness(self) -> int:
        """How old that was, in rounds."""
        ...

    @property
    def waited_seconds(self) -> float:
        """How long the call waited for others."""
        ...

    @property
    def tally(self) -> Tally:
        """At a sync round the sums over all workers of their tallies; else empty."""
        ...


class HandedIn(NamedTuple):
    """A contribution to a global mean.

    Attributes:
        model: Its buffers; the engine's from now on.
        is_stand_in: Whether something else stands for the model that came, since that is not finite.
    """

    model: Buffers
    is_stand_in: bool = False
