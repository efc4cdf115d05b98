"""One thread that runs the protocol over MPI: it sends and receives control messages, and performs the exchanges.

The trainer's thread calls the public methods; everything else happens in the engine's thread. One lock guards what both
use.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mpi4py import MPI

from wagma_jax.exchange.errors import ExchangeError, described
from wagma_jax.exchange.events import Events
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.exchange.models import Exchanged, Models, Taken
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.waiting import Ask, Inquiry, Inside, Status, Waits
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger import entries
from wagma_jax.protocol import messages
from wagma_jax.protocol.messages import Action, Kind, Message, Rest, Tally
from wagma_jax.protocol.rounds import Rounds, State

EAGER_SECONDS = 5e-3  # most waits of a trainer are shorter
WIND_UP_SECONDS = 5.0  # after a failure: how long what was promised to others is waited for
ANSWER_SECONDS = 1.0


class _Bye(NamedTuple):
    """The last message of an engine."""


class Engine:
    """Runs one worker's protocol until all have closed.

    Args:
        machine: The protocol of this worker.
        wire: Exchanges buffers.
        control: A communicator for control messages, used by nobody else.
        models: What this worker has published.
        first_round: The round to begin with.
        recorder: Gets an entry for every round, or None.

    Attributes:
        state: The machine's.
        models: What was published and averaged.
    """

    def __init__(
        self,
        machine: Rounds,
        wire: Wire,
        control: MPI.Intracomm,
        models: Models,
        first_round: int = 0,
        recorder: Recorder | None = None,
    ):
        self.machine = machine
        self.wire = wire
        self.mailbox = Mailbox(control)
        self.state = State(round=first_round, arrived=first_round - 1)
        self.models = models
        self._recorder = recorder
        self._inside: Inside | None = None
        self._failure: tuple[str, BaseException | None] | None = None
        self._everyone = tuple(range(machine.schedule.num_workers))
        self._consensus: Buffers | None = None
        self._gathered: tuple[int, Tally] | None = None  # the newest round, and sums, when all last stood still
        self._waits = Waits()
        self._changed = threading.Condition()  # guards all of the above
        self._events = Events(self.mailbox, self._is_eager, lambda: None if recorder is None else recorder.write())
        self._deadline: float | None = None  # of winding up
        self._waiting = False  # whether the trainer is inside a call
        self._left = self._progress = time.perf_counter()  # when the trainer was last in a call, anything happened here
        self._inquiry = Inquiry(self.mailbox, machine.worker)
        self._byes: set[int] = set()
        self._thread = threading.Thread(
            target=isolated(self._run), name=f"wagma exchange {machine.worker}", daemon=True
        )

    # the trainer's side

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def arrive(self, model: Buffers | None, counter: int, tally: Tally) -> int:
        """Publishes W' and arrives at a round.

        Args:
            model: W', all buffers, the engine's from now on; None: what was published before stays.
            counter: The round of the previous call.
            tally: What this worker adds to the sums, if it is a sync round.

        Returns:
            The round.
        """
        with self._changed:
            t = self.machine.target(self.state, counter)
            buffers = self.models.part(self.models.outbox.model if model is None else model, t)
            begun = self._inside is not None and self._inside.round == t
            enough = model is None or begun or self.state.round > t or self.models.has_memory(len(buffers))
        memory = None if enough else self.wire.memory(buffers)  # by this thread, see there
        with self._changed:
            t = self.machine.target(self.state, counter)
            if model is not None:
                self.models.publish(t, model, memory)
            self._waits.begin()
        self._events.post(messages.Arrive(t, tally))
        return t

    def pass_alone(self, counter: int) -> int | None:
        """Arrives at a round in which this worker is alone, without the engine's thread.

        Args:
            counter: The round of the previous call.

        Returns:
            The round; None, and nothing is done, where others are to be told.
        """
        with self._changed:
            t = self.machine.target(self.state, counter)
            state, actions = self.machine.step(self.state, messages.Arrive(t))
            if not self.machine.is_alone(t) or actions or state.round <= t:
                return None
            self.state = state
            self._note_alone(t)
            return t

    def publish(self, version: int, model: Buffers) -> None:
        """Publishes a model that was passed over in rounds of one."""
        with self._changed:
            self.models.publish(version, model, None)

    def take(self, t: int, timeout: float) -> tuple[int, Taken, dict[int, float]]:
        """Waits until round t is complete, and takes the newest sum, or the mean.

        Returns:
            The newest complete round; what was taken; and the seconds that this worker has waited for others to get
            ready, by rank (several share them evenly; at a sync round workers only know that they wait for the GO of
            rank 0; empty without a ledger).

        Raises:
            ExchangeError: The run is over.
            TimeoutError: It took longer than ``timeout`` seconds; says who was waited for.
        """
        with self._changed:
            self._wait(lambda: self.state.round > t and self.models.is_ready(t), timeout, f"round {t}")
            self._waits.watch(())
            return self.state.round - 1, self.models.collect(t), self._waits.seconds

    def recycle(self, total: Buffers) -> None:
        """Takes back the memory of a sum that ``take`` has handed out."""
        with self._changed:
            self.models.recycle(total)

    def consensus(self, model: Buffers, timeout: float) -> tuple[int, Buffers]:
        """The global mean of what all workers hand in; this worker's engine goes on serving others meanwhile.

        Returns:
            The newest round that was complete then, on all workers, and the mean, which is now published as well.
        """
        with self._changed:
            self._consensus = model
        newest, _ = self._rest(Rest.CONSENSUS, (), timeout)
        return newest, self.models.outbox.model

    def meet(self, tally: Tally, timeout: float) -> tuple[int, Tally]:
        """Waits until all workers meet; this worker's engine goes on serving others meanwhile.

        Returns:
            The newest round that was complete then, on all workers, and the sums of their tallies.
        """
        return self._rest(Rest.MEET, tally, timeout)

    def close(self, timeout: float) -> float:
        """Serves the others until all have closed, and ends the thread.

        Returns:
            The seconds that are left of ``timeout`` for what else belongs to the end.
        """
        self._events.post(messages.Retire(Rest.CLOSE))
        with self._changed:
            self._wait(lambda: self.state.life.over, timeout, "close()", resting=True)
            deadline = self._progress + timeout
        self._thread.join(max(0.0, deadline - time.perf_counter()))
        if self._thread.is_alive():
            missing = sorted({*self.mailbox.others} - self._byes)
            raise TimeoutError(f"close() has waited for {timeout:.1f} s for the last messages of the ranks {missing}")
        self.models.clear()
        self.wire.release()
        self.raise_failure()
        return deadline - time.perf_counter()

    def abort(self, text: str) -> None:
        """Tells all others that this worker has failed, and ends the thread as soon as nobody counts on it."""
        self._events.post(messages.Abort(text))
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

    def _rest(self, rest: Rest, tally: Tally, timeout: float) -> tuple[int, Tally]:
        with self._changed:
            self._gathered = None
        self._events.post(messages.Retire(rest, tally))
        with self._changed:
            self._wait(lambda: self._gathered is not None, timeout, f"{rest.name.lower()}()", resting=True)
            assert self._gathered is not None
            return self._gathered

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
        self._events.post(Ask())
        self._changed.wait_for(lambda: condition() or self._failure is not None, ANSWER_SECONDS)
        if condition():
            return
        self.raise_failure()
        raise TimeoutError(f"{what} has waited for {time.perf_counter() - since:.1f} s: {self._diagnosis()}")

    def _diagnosis(self) -> str:
        if self._inside is None:
            return self._inquiry.diagnosis()
        return self._inside.diagnosis(self.machine.worker)

    # the engine's thread

    def _run(self) -> None:
        try:
            while not self.state.life.over:
                event = self._events.next(self._deadline)
                if event is None:  # the others have been waited for long enough after a failure
                    break
                self._handle(event)
            self._finish()
        except BaseException as error:
            text = f"rank {self.machine.worker}'s exchange failed: {described(error)}"
            with self._changed:
                self._failure = self._failure or (text, error)
            self.mailbox.send_all(Message(Kind.ABORT, 0, text=text))
            self.mailbox.flush(WIND_UP_SECONDS)
        finally:
            with self._changed:
                self.state = self.state._replace(life=self.state.life._replace(over=True))
                self._changed.notify_all()

    def _is_eager(self) -> bool:
        """Whether the trainer has begun to wait not long ago."""
        return self._waiting and time.perf_counter() - self._progress < EAGER_SECONDS

    def _handle(self, event: Any) -> None:
        if isinstance(event, Ask):
            return self._inquiry.ask(self.machine.waits_for(self.state))
        if isinstance(event, messages.Receive) and not isinstance(event.message, Message):
            return self._answer(event.source, event.message)
        self._progress = time.perf_counter()
        with self._changed:
            actions = self._step(event)
        while actions:
            actions += self._perform(actions.pop(0))
        if self.state.life.aborted and self._deadline is None:
            self._deadline = time.perf_counter() + WIND_UP_SECONDS
        return None

    def _step(self, event: messages.Event) -> list[Action]:
        before = self.state
        self.state, actions = self.machine.step(before, event)
        self._note_alone(before.round)
        if self._recorder is not None:
            state = self.state
            waiting = state.arrived >= state.round and state.life.resting == Rest.NONE
            self._waits.watch(self.machine.waits_for(state) if waiting else ())
        return actions

    def _note_alone(self, r: int) -> None:
        """Notes the rounds of one that were passed since round ``r``, which no exchange has completed."""
        for t in filter(self.machine.is_alone, range(r, self.state.round)):
            self.models.note(Exchanged(t, (self.machine.worker,), (t,)))
            if self._recorder is not None:
                now = time.perf_counter()
                self._recorder.add(entries.Round(t, (self.machine.worker,), (t,), now, now))
            self._changed.notify_all()

    def _perform(self, action: Action) -> list[Action]:
        """What is to be done next, if an exchange is over by it."""
        if isinstance(action, messages.Send):
            self.mailbox.send(action.dest, action.message)
        elif isinstance(action, messages.Fail):
            with self._changed:
                self._failure = (action.text, None)
                self._changed.notify_all()
        elif isinstance(action, messages.Exchange):
            return self._exchange(*action)
        elif isinstance(action, messages.GlobalMean):
            return self._global_mean()
        elif isinstance(action, messages.Barrier):
            return self._barrier(action.tally)
        return []

    def _exchange(self, r: int, group: tuple[int, ...], tally: Tally) -> list[Action]:
        """Exchanges the publication with the group."""
        with self._changed:
            own = self.models.contribute(r)
            begin = time.perf_counter()
            self._inside = Inside(f"the exchange of round {r}", group, begin, r)
        memory = self.wire.memory(own.buffers) if own.memory is None else own.memory
        divisor = len(group) if own.is_mean else 1
        contributed, result = self.wire.exchange(group, divisor, (r, own.version), own.buffers, memory)
        if self.machine.schedule.is_sync(r):
            result = self.models.narrow(result, own.buffers)
        with self._changed:
            self.models.put(Exchanged(r, group, contributed), own, result, tally)
            if self._recorder is not None:
                self._recorder.add(entries.Round(r, group, contributed, begin, end=time.perf_counter()))
            return self._completed()

    def _global_mean(self) -> list[Action]:
        """Exchanges what the trainers have handed to ``consensus``."""
        with self._changed:
            model = self._consensus
            assert model is not None
            memory = self.models.memory(len(model))
            begin = time.perf_counter()
            self._inside = Inside("the global mean", self._everyone, begin)
        if memory is None:
            memory = self.wire.memory(model)
        _, mean = self.wire.exchange(self._everyone, len(self._everyone), (-1, -1), model, memory)
        mean = self.models.narrow(mean, model)
        with self._changed:
            version = self.state.round - 1
            self.models.put_mean(version, mean)
            self._consensus = None
            self._gathered = version, ()
            if self._recorder is not None:
                self._recorder.add(entries.GlobalMean(version, begin, end=time.perf_counter()))
            return self._completed()

    def _barrier(self, tally: Tally) -> list[Action]:
        """Waits for all other engines, each of which has been woken."""
        with self._changed:
            self._inside = Inside("the barrier of meet()", self._everyone, time.perf_counter())
        self.wire.barrier()
        with self._changed:
            self._gathered = self.state.round - 1, tally
            return self._completed()

    def _completed(self) -> list[Action]:
        self._inside = None
        self.models.end_reading()
        actions = self._step(messages.Completed())
        self._changed.notify_all()
        return actions

    def _answer(self, source: int, message: Any) -> None:
        """Handles what another engine says outside of the protocol."""
        if isinstance(message, Ask):
            busy = 0.0 if self._waiting else time.perf_counter() - self._left
            self.mailbox.send(source, Status(self.state.round, self.machine.waits_for(self.state), busy))
        elif isinstance(message, Status):
            self._inquiry.answered(source, message)
        elif isinstance(message, _Bye):
            self._byes.add(source)

    def _finish(self) -> None:
        """Sends the last message, and receives everybody's: nothing is left on the way."""
        if not self.state.life.aborted:
            self.mailbox.send_all(_Bye())
            while not self._byes.issuperset(self.mailbox.others):
                event = self._events.next()
                if isinstance(event, messages.Receive):
                    self._answer(event.source, event.message)
        self.mailbox.flush(WIND_UP_SECONDS)
