"""One thread that runs the protocol over MPI: it sends and receives control messages, and performs the exchanges.

It knows no algorithm: what is published, averaged and merged are the records of ``buffers``, which it swaps under a
lock. The trainer's thread calls the public methods; everything else happens in the engine's thread. Control messages
are polled for, since MPI has no wait that sleeps: often while something happens, every three milliseconds while nothing
does.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mpi4py import MPI

from wagma_jax.exchange import protocol
from wagma_jax.exchange.buffers import Buffers, GroupSum, Inbox, Merge, Outbox, global_mean
from wagma_jax.exchange.protocol import Message, Rest, Rounds, State, Tally
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger.entries import GlobalMean, Round

SHORTEST_POLL = 20e-6  # seconds; doubles while nothing comes
LONGEST_POLL = 3e-3
LONGEST_POLL_WAITING = 1e-4  # while the trainer waits, at first: most waits are shorter than EAGER_SECONDS
EAGER_SECONDS = 5e-3
LOOKS = 3
WIND_UP_SECONDS = 5.0  # after a failure: how long what was promised to others is waited for
ANSWER_SECONDS = 1.0
RECORDS = 4096
_TAG = 11


class ExchangeError(RuntimeError):
    """The run is over: this worker's engine or another worker has failed."""


class Record(NamedTuple):
    """What was exchanged in a round: its group, and the version of each member's contribution."""

    round: int
    group: tuple[int, ...]
    contributed: tuple[int, ...]


class Status(NamedTuple):
    """Where a worker stands, for those who wait.

    Attributes:
        round: Its current round.
        waits_for: The workers that its engine waits for; itself if its trainer has not arrived.
        busy: Seconds since its trainer was last inside a call, 0 while it is.
    """

    round: int
    waits_for: tuple[int, ...]
    busy: float


class _Ask(NamedTuple):
    """A question to another worker's engine, answered by a Status; or, from the trainer, to find out who is missing."""


class _Bye(NamedTuple):
    """The last message of an engine."""


class Taken(NamedTuple):
    """What the trainer found after its round.

    Attributes:
        newest: The newest complete round.
        record: Of the round that it called for, None if that is too long ago.
        merge: What its next model is made by; None for the mean of a sync round.
        result: The sum to be merged; None for Merge.OWN.
        buffers: The publication: the mean after a sync round, else the model that was passed in.
        tally: The sums of the workers' tallies, of a sync round.
        waits: Seconds that this worker has waited for others to get ready, by rank; several share them evenly. At a
            sync round workers know only that they wait for the go of rank 0. Empty without a ledger.
    """

    newest: int
    record: Record | None
    merge: Merge | None
    result: GroupSum | None
    buffers: Buffers
    tally: Tally
    waits: dict[int, float]


class Engine:
    """Runs one worker's protocol until all have closed.

    Args:
        machine: The protocol of this worker.
        wire: Exchanges buffers.
        control: A communicator for control messages, used by nobody else.
        model: What is published at first, all buffers: W_0.
        ordinary: From all buffers to those that ordinary rounds exchange.
        narrow: From a mean and buffers to the mean in their dtypes.
        reuse: Whether buffers are of the dtypes of their sums, so that a former publication is memory for a result.
        first_round: The round to begin with.
        version: The round that ``model`` was published for; None for the one before the first.
        ledger: Gets an entry for every round, or None.
    """

    def __init__(
        self,
        machine: Rounds,
        wire: Wire,
        control: MPI.Intracomm,
        model: Buffers,
        ordinary: Callable[[Buffers], Buffers],
        narrow: Callable[[Buffers, Buffers], Buffers],
        reuse: bool,
        first_round: int = 0,
        version: int | None = None,
        ledger: Recorder | None = None,
    ):
        self.machine = machine
        self.wire = wire
        self.control = control
        self.ordinary = ordinary
        self.narrow = narrow
        self.reuse = reuse
        self.ledger = ledger
        self.state = State(round=first_round, arrived=first_round - 1)
        self.outbox = Outbox(first_round - 1 if version is None else version, model)
        self.inbox = Inbox()
        self.exchanging: tuple[int, tuple[int, ...], float] | None = None  # round, group, since when
        self.messages_sent = 0
        self._records: collections.OrderedDict[int, Record] = collections.OrderedDict()
        self._failure: tuple[str, BaseException | None] | None = None
        self._tally: Tally = ()  # the sums of the newest sync round
        self._consensus: Buffers | None = None
        self._gathered: tuple[int, Tally] | None = None  # newest round, and sums, when all last stood still
        self._in_use: Buffers | None = None  # the publication that an exchange is reading
        self._memory: dict[int, Buffers] = {}  # for results, by the number of their buffers
        self._changed = threading.Condition()  # guards all of the above
        self._events: collections.deque[Any] = collections.deque()
        self._wake = threading.Lock()  # released by the trainer: wakes the thread
        self._requests: list[MPI.Request] = []
        self._deadline: float | None = None  # of winding up
        self._waiting = False
        self._left = time.perf_counter()  # when the trainer was last inside a call
        self._progress = self._left  # when something last happened here
        self._answers: dict[int, Status] = {}
        self._asked: set[int] = set()
        self._byes: set[int] = set()
        self._waits: dict[int, float] = {}  # of the trainer, by rank; for the ledger
        self._missing: tuple[int, ...] = ()  # for whom it waits now
        self._missing_since = self._left
        self._thread = threading.Thread(target=self._run, name=f"wagma exchange {machine.worker}", daemon=True)

    # the trainer's side

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def target(self, counter: int) -> int:
        """The round that a call now would arrive at."""
        with self._changed:
            return self.machine.target(self.state, counter)

    def complete(self, t: int) -> bool:
        """Whether round t is complete here."""
        with self._changed:
            return self.state.round > t

    def recycle(self, total: Buffers) -> None:
        """Takes back the memory of a sum that ``take`` has handed out."""
        with self._changed:
            self._memory.setdefault(len(total), total)

    def arrive(self, model: Buffers, counter: int, tally: Tally, memory: Callable[[bool], Buffers]) -> int:
        """Publishes W' and arrives at a round.

        Args:
            model: W', all buffers, the engine's from now on.
            counter: The round of the previous call.
            tally: What this worker adds to the sums, if it is a sync round.
            memory: Allocates memory for the mean of a sync round (True) or an ordinary one.

        Returns:
            The round.
        """
        with self._changed:
            t = self.machine.target(self.state, counter)
            is_sync = self.machine.schedule.is_sync(t)
            size = len(model if is_sync else self.ordinary(model))
            begun = self.exchanging is not None and self.exchanging[0] == t
            enough = begun or self.state.round > t or size in self._memory or size in self._retired(self.outbox.model)
        allocated = {} if enough else {size: memory(is_sync)}
        with self._changed:
            t = self.machine.target(self.state, counter)
            self._memory |= allocated or self._retired(self.outbox.model)
            self.outbox = self.outbox.publish(t, model)
            self._waits, self._missing = {}, ()
        self._post(protocol.Arrive(t, tally))
        return t

    def take(self, t: int, timeout: float) -> Taken:
        """Waits until round t is complete, and takes the newest sum, or the mean.

        Raises:
            ExchangeError: The run is over.
            TimeoutError: It took longer than ``timeout`` seconds; says who was waited for.
        """
        with self._changed:
            self._wait(lambda: self.state.round > t, timeout, f"round {t}")
            self._watch(())
            record = self._records.get(t)
            merge, result, tally = None, None, self._tally
            if not self.machine.schedule.is_sync(t):
                self.inbox, merge, result = self.inbox.collect(self.outbox.version)
                tally = ()
            return Taken(self.state.round - 1, record, merge, result, self.outbox.model, tally, self._waits)

    def consensus(self, model: Buffers, timeout: float) -> tuple[int, Buffers]:
        """The global mean of what all workers hand in; this worker's engine goes on serving others meanwhile.

        Returns:
            The newest round that was complete then, on all workers, and the mean, which is now published as well.
        """
        with self._changed:
            self._consensus = model
        newest, _ = self._rest(Rest.CONSENSUS, (), timeout)
        return newest, self.outbox.model

    def meet(self, tally: Tally, timeout: float) -> tuple[int, Tally]:
        """Waits until all workers meet; this worker's engine goes on serving others meanwhile.

        Returns:
            The newest round that was complete then, on all workers, and the sums of their tallies.
        """
        return self._rest(Rest.MEET, tally, timeout)

    def _rest(self, rest: Rest, tally: Tally, timeout: float) -> tuple[int, Tally]:
        with self._changed:
            self._gathered = None
        self._post(protocol.Retire(rest, tally))
        with self._changed:
            self._wait(lambda: self._gathered is not None, timeout, f"{rest.name.lower()}()", resting=True)
            assert self._gathered is not None
            return self._gathered

    def close(self, timeout: float) -> None:
        """Serves the others until all have closed, and ends the thread."""
        self._post(protocol.Retire(Rest.CLOSE))
        with self._changed:
            self._wait(lambda: self.state.over, timeout, "close()", resting=True)
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine's thread has not ended within {timeout:.0f} s")
        self.outbox, self.inbox = Outbox(self.outbox.version, ()), Inbox()
        self._memory = {}
        self.wire.release()
        self.raise_failure()

    def abort(self, text: str) -> None:
        """Tells all others that this worker has failed, and ends the thread as soon as nobody counts on it."""
        self._post(protocol.Abort(text))
        self._thread.join(WIND_UP_SECONDS + 1)

    def raise_failure(self) -> None:
        """Raises what ended the run.

        Raises:
            ExchangeError: With the engine's own exception as its cause, if there was one.
        """
        if self._failure is not None:
            text, cause = self._failure
            raise ExchangeError(text) from cause

    def enter(self) -> None:
        """The trainer is inside a call."""
        self._waiting = True

    def leave(self) -> None:
        """The trainer is on its own again."""
        self._waiting = False
        self._left = time.perf_counter()

    def _post(self, event: Any) -> None:
        self._events.append(event)
        with contextlib.suppress(RuntimeError):  # the engine has not slept since the last event
            self._wake.release()

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str, resting: bool = False) -> None:
        """Waits; a resting trainer for as long as others go on."""
        since = time.perf_counter()
        while (left := timeout - (time.perf_counter() - (max(since, self._progress) if resting else since))) > 0:
            if self._changed.wait_for(
                lambda: condition() or self._failure is not None, min(left, threading.TIMEOUT_MAX)
            ):
                if not condition():
                    self.raise_failure()
                return
        self._post(_Ask())
        self._changed.wait_for(lambda: condition() or self._failure is not None, ANSWER_SECONDS)
        if condition():
            return
        self.raise_failure()
        raise TimeoutError(f"{what} has waited for {time.perf_counter() - since:.1f} s: {self._diagnosis()}")

    def _diagnosis(self) -> str:
        if self.exchanging is not None:
            r, group, since = self.exchanging
            others = [rank for rank in group if rank != self.machine.worker]
            seconds = time.perf_counter() - since
            return f"inside the exchange of round {r} with the ranks {others} for {seconds:.1f} s; the network is stuck"
        lines = []
        for rank in sorted(self._asked):
            status = self._answers.get(rank)
            if status is None:
                lines.append(f"rank {rank} does not answer: it is gone, or stuck in code that holds Python's lock")
            elif rank in status.waits_for and status.busy:
                lines.append(
                    f"rank {rank} has not arrived at round {status.round}: it has computed for {status.busy:.1f} s"
                )
        return "; ".join(lines) or "the engine does not answer"

    # the engine's thread

    def _run(self) -> None:
        try:
            while not self.state.over:
                event = self._next()
                if event is None:
                    break
                self._handle(event)
            self._finish()
        except BaseException as error:
            text = f"rank {self.machine.worker}'s exchange failed: {type(error).__name__}: {error}"
            with self._changed:
                self._failure = self._failure or (text, error)
            self._send_all(Message(protocol.Kind.ABORT, 0, text=text))
            self._flush()
        finally:
            with self._changed:
                self.state = self.state._replace(over=True)
                self._changed.notify_all()

    def _handle(self, event: Any) -> None:
        if isinstance(event, _Ask):
            return self._ask(self.machine.waits_for(self.state))
        if isinstance(event, protocol.Receive) and not isinstance(event.message, Message):
            return self._other(event.source, event.message)
        self._progress = time.perf_counter()
        with self._changed:
            self.state, actions = self.machine.step(self.state, event)
            self._watch_all()
        while actions:
            action = actions.pop(0)
            if isinstance(action, protocol.Send):
                self._send(action.dest, action.message)
            elif isinstance(action, protocol.Fail):
                with self._changed:
                    self._failure = (action.text, None)
                    self._changed.notify_all()
            elif isinstance(action, protocol.Exchange):
                actions += self._exchange(*action)
            elif isinstance(action, protocol.GlobalMean):
                actions += self._global_mean()
            elif isinstance(action, protocol.Barrier):
                actions += self._barrier(action.tally)
        if self.state.aborted and self._deadline is None:
            self._deadline = time.perf_counter() + WIND_UP_SECONDS
        return None

    def _watch_all(self) -> None:
        """Notes for the ledger for whom the trainer waits now, if it does."""
        if self.ledger is not None:
            state = self.state
            waiting = state.arrived >= state.round and state.resting == Rest.NONE
            self._watch(self.machine.waits_for(state) if waiting else ())

    def _watch(self, missing: tuple[int, ...]) -> None:
        """Counts the time since the last call for those who were missing; ``missing`` are so from now on."""
        now = time.perf_counter()
        for rank in self._missing:
            share = (now - self._missing_since) / len(self._missing)
            self._waits[rank] = self._waits.get(rank, 0.0) + share
        self._missing, self._missing_since = missing, now

    def _exchange(self, r: int, group: tuple[int, ...], tally: Tally) -> list[Any]:
        """Exchanges the publication with the group; what to do next."""
        is_sync = self.machine.schedule.is_sync(r)
        with self._changed:
            version, model = self.outbox
            self._in_use = model
            is_mean = is_sync or version == r
            buffers = model if is_sync else self.ordinary(model)
            memory = None if is_mean else self._reuse()
            memory = self._memory.pop(len(buffers), None) if memory is None else memory
            begin = time.perf_counter()
            self.exchanging = (r, group, begin)
        if memory is None:
            memory = self.wire.memory(buffers)
        divisor = len(group) if is_mean else 1
        contributed, total = self.wire.exchange(group, divisor, (r, version), buffers, memory)
        if is_sync:
            total = self.narrow(total, model)
        with self._changed:
            self._records[r] = Record(r, group, contributed)
            if len(self._records) > RECORDS:
                self._records.popitem(last=False)
            if self.ledger is not None:
                self.ledger.add(Round(r, group, contributed, begin, end=time.perf_counter()))
            if is_sync:
                self.outbox, self.inbox = global_mean(self.outbox, self.inbox, r, total)
                self._tally = tally
            else:
                self.inbox = self.inbox.put(GroupSum(r, version, len(group), total, is_mean))
            return self._completed()

    def _global_mean(self) -> list[Any]:
        everyone = self._everyone
        with self._changed:
            model = self._consensus
            assert model is not None
            memory = self._memory.pop(len(model), None)
            begin = time.perf_counter()
            self.exchanging = (self.state.round, everyone, begin)
        if memory is None:
            memory = self.wire.memory(model)
        _, mean = self.wire.exchange(everyone, len(everyone), (-1, -1), model, memory)
        mean = self.narrow(mean, model)
        with self._changed:
            version = max(self.state.round - 1, self.outbox.version)
            self.outbox, self.inbox = global_mean(self.outbox, self.inbox, version, mean)
            self._consensus = None
            self._gathered = self.state.round - 1, ()
            if self.ledger is not None:
                self.ledger.add(GlobalMean(version, begin, end=time.perf_counter()))
            return self._completed()

    def _barrier(self, tally: Tally) -> list[Any]:
        with self._changed:
            self.exchanging = (self.state.round, self._everyone, time.perf_counter())
        self.wire.barrier()
        with self._changed:
            self._gathered = self.state.round - 1, tally
            return self._completed()

    def _completed(self) -> list[Any]:
        used, self._in_use, self.exchanging = self._in_use, None, None
        if used is not None and used is not self.outbox.model:
            self._memory |= self._retired(used)
        self.state, actions = self.machine.step(self.state, protocol.Completed())
        self._watch_all()
        self._changed.notify_all()
        return actions

    def _retired(self, model: Buffers) -> dict[int, Buffers]:
        """A former publication as memory for the next result, unless an exchange still reads it."""
        if not self.reuse or model is self._in_use:
            return {}
        ordinary = self.ordinary(model)
        return {len(ordinary): ordinary}

    def _reuse(self) -> Buffers | None:
        """The memory of a sum that the trainer has not come for; it is to be replaced."""
        newest = self.inbox.newest
        if newest is None or newest.taken:
            return None
        self.inbox = Inbox()
        return newest.total

    # control messages

    def _next(self) -> Any:
        """The next event; sleeps in between. None when the others have been waited for long enough after a failure."""
        delay = SHORTEST_POLL
        status = MPI.Status()
        while True:
            if self._events:
                return self._events.popleft()
            # Open MPI looks first and makes progress then: what comes in by that is only seen by a later look
            for _ in range(LOOKS):
                message = self.control.improbe(MPI.ANY_SOURCE, _TAG, status)
                if message is not None:
                    return protocol.Receive(status.Get_source(), message.recv())
            self._test_requests()
            if self.ledger is not None:
                self.ledger.write()
            woken = self._wake.acquire(timeout=delay)
            eager = self._waiting and time.perf_counter() - self._progress < EAGER_SECONDS
            longest = LONGEST_POLL_WAITING if eager else LONGEST_POLL
            delay = SHORTEST_POLL if woken else min(2 * delay, longest)
            if self._deadline is not None and time.perf_counter() > self._deadline:
                return None

    def _send(self, dest: int, message: Any) -> None:
        request = self.control.isend(message, dest, _TAG)
        if not request.Test():  # which also makes the progress that puts the message on its way
            self._requests.append(request)
        self.messages_sent += 1

    def _send_all(self, message: Any) -> None:
        for rank in self._others:
            self._send(rank, message)

    @property
    def _everyone(self) -> tuple[int, ...]:
        return tuple(range(self.machine.schedule.num_workers))

    @property
    def _others(self) -> list[int]:
        return [rank for rank in self._everyone if rank != self.machine.worker]

    def _test_requests(self) -> None:
        self._requests = [request for request in self._requests if not request.Test()]

    def _ask(self, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            if rank not in self._asked and rank != self.machine.worker:
                self._asked.add(rank)
                self._send(rank, _Ask())

    def _other(self, source: int, message: Any) -> None:
        if isinstance(message, _Ask):
            busy = 0.0 if self._waiting else time.perf_counter() - self._left
            self._send(source, Status(self.state.round, self.machine.waits_for(self.state), busy))
        elif isinstance(message, Status):
            self._answers[source] = message
            self._ask(message.waits_for)
        elif isinstance(message, _Bye):
            self._byes.add(source)

    def _finish(self) -> None:
        """Sends the last message, and receives everybody's: nothing is left on the way."""
        if not self.state.aborted:
            self._send_all(_Bye())
            while not self._byes.issuperset(self._others):
                event = self._next()
                if isinstance(event, protocol.Receive):
                    self._other(event.source, event.message)
        self._flush()

    def _flush(self) -> None:
        """Waits until what was sent is on its way."""
        end = time.perf_counter() + WIND_UP_SECONDS
        while self._requests and time.perf_counter() < end:
            self._test_requests()
            time.sleep(SHORTEST_POLL)
