"""One thread that runs a machine over MPI: it sends and receives control messages, and performs the exchanges.

The trainer's thread calls the public methods; everything else happens in the engine's thread. One lock guards what both
use. Here is what all algorithms share: rest, global means, meetings, failures and the end. What an algorithm exchanges
in its rounds is added by a subclass, such as ``rounds.RoundsEngine``.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

from wagma_jax.exchange import ending
from wagma_jax.exchange.errors import ExchangeError, described
from wagma_jax.exchange.events import Events
from wagma_jax.exchange.farewell import Count, Farewell, Verdict
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.waiting import Ask, Inquiry, Inside, Status, Waits, status
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger import entries
from wagma_jax.protocol import messages
from wagma_jax.protocol.machine import Machine, MachineState
from wagma_jax.protocol.messages import Action, Kind, Message, Rest, Tally

EAGER_SECONDS = 5e-3  # most waits of a trainer are shorter
WIND_UP_SECONDS = 5.0  # after a failure: how long what was promised to others is waited for
ANSWER_SECONDS = 1.0


class Engine:
    """Runs one worker's protocol until all have closed.

    Args:
        machine: The protocol of this worker.
        state: The machine's first.
        wire: Exchanges buffers.
        control: A communicator for control messages, used by nobody else.
        recorder: Gets an entry for every round, or None.

    Attributes:
        state: The machine's.
    """

    def __init__(
        self,
        machine: Machine,
        state: MachineState,
        wire: Wire,
        control: MPI.Intracomm,
        recorder: Recorder | None = None,
    ):
        self.machine: Any = machine
        self.state: Any = state
        self.wire = wire
        self.mailbox = Mailbox(control)
        self._recorder = recorder
        self._inside: Inside | None = None
        self._failure: tuple[str, BaseException | None] | None = None
        self._everyone = tuple(range(machine.num_workers))
        self._handed: Buffers | None = None  # by the trainer to ``consensus``
        self._mean: Buffers | None = None  # what came of it
        self._gathered: tuple[int, Tally] | None = None  # the newest round, and sums, when all last stood still
        self._waits = Waits()
        self._changed = threading.Condition()  # guards all of the above
        idle = lambda: None if recorder is None else recorder.write()
        self._events = Events(self.mailbox, self._is_eager, idle, self._poll)
        self._deadline: float | None = None  # of winding up
        self._waiting = False  # whether the trainer is inside a call
        self._left = self._progress = time.perf_counter()  # when the trainer was last in a call, anything happened here
        self._inquiry = Inquiry(self.mailbox, machine.worker)
        self._farewell = Farewell(self.mailbox, machine.worker, machine.num_workers)
        self._thread = ending.thread(isolated(self._run), f"wagma exchange {machine.worker}")

    # the trainer's side

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def consensus(self, model: Buffers, timeout: float) -> tuple[int, Buffers]:
        """The global mean of what all workers hand in; this worker's engine goes on serving others meanwhile.

        Returns:
            The newest round that was complete then, on all workers, and the mean, which is now published as well.
        """
        with self._changed:
            self._handed = model
        newest, _ = self._rest(Rest.CONSENSUS, (), timeout)
        mean, self._mean = self._mean, None
        assert mean is not None
        return newest, mean

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
            missing = self._farewell.missing()
            raise TimeoutError(f"close() has waited for {timeout:.1f} s for the last messages of the ranks {missing}")
        self._release()
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
            # final, since this engine cannot keep what it has promised
            self.mailbox.send_to(self.machine.lifecycle.listeners, Message(Kind.ABORT, 0, text=text, final=True))
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
            rests = self.state.life.resting != Rest.NONE
            return self._inquiry.begin(self.machine.waits_for(self.state), rests)
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
        self._passed(before)
        if self._recorder is not None:
            state = self.state
            waiting = state.arrived >= state.round and state.life.resting == Rest.NONE
            self._waits.watch(self.machine.waits_for(state) if waiting else ())
        return actions

    def _perform(self, action: Action) -> list[Action]:
        """What is to be done next, if an exchange is over by it."""
        if isinstance(action, messages.Send):
            self.mailbox.send(action.dest, action.message)
        elif isinstance(action, messages.Fail):
            with self._changed:
                self._failure = (action.text, None)
                self._changed.notify_all()
        elif isinstance(action, messages.GlobalMean):
            return self._global_mean()
        elif isinstance(action, messages.Barrier):
            return self._barrier(action.tally)
        elif not isinstance(action, messages.Shutdown):
            return self._exchange(action)
        return []

    def _global_mean(self) -> list[Action]:
        """Exchanges what the trainers have handed to ``consensus``."""
        with self._changed:
            assert self._handed is not None
            model = self._contribution(self._handed)
            memory = self._memory_of_mean(model)
            begin = time.perf_counter()
            self._inside = Inside("the global mean", self._everyone, begin)
        if memory is None:
            memory = self.wire.memory(model)
        _, mean = self.wire.exchange(self._everyone, len(self._everyone), (-1, -1), model, memory)
        mean = self._narrow(mean, model)
        with self._changed:
            version = self.state.round - 1
            self._put_mean(version, mean)
            self._handed, self._mean = None, mean
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
        actions = self._step(messages.Completed())
        self._changed.notify_all()
        return actions

    def _answer(self, source: int, message: Any) -> None:
        """Handles what another engine says outside of the protocol."""
        if isinstance(message, Ask):
            busy = 0.0 if self._waiting else time.perf_counter() - self._left
            self.mailbox.send(source, status(self.machine, self.state, message, busy))
        elif isinstance(message, Status):
            self._inquiry.answered(source, message)
        elif isinstance(message, Count | Verdict):
            self._farewell.receive(source, message)

    def _finish(self) -> None:
        """Receives what was sent to this engine, if all have closed: nothing is left on the way."""
        woken = self.state.life.woken
        if woken is not None and woken.rest == Rest.CLOSE:
            self._farewell.begin()
            while not self._farewell.over:
                event = self._events.next()
                failed = event.message if isinstance(event, messages.Receive) else event
                if isinstance(failed, messages.Abort) or getattr(failed, "kind", None) == Kind.ABORT:
                    self._fail_in_farewell(failed.text)
                    return
                # no more is asked of others, but they may ask
                if isinstance(event, messages.Receive) and not isinstance(event.message, Status):
                    self._answer(event.source, event.message)
        self.mailbox.flush(WIND_UP_SECONDS)

    def _fail_in_farewell(self, text: str) -> None:
        """A rank has failed in the farewell: whoever waits for its last messages hears of it."""
        text = text or "another rank has failed while all closed"
        with self._changed:
            self._failure = self._failure or (text, None)
        self.mailbox.send_to(self.machine.lifecycle.listeners, Message(Kind.ABORT, 0, text=text, final=True))
        self.mailbox.flush(WIND_UP_SECONDS)

    # what algorithms add

    def _exchange(self, action: Any) -> list[Action]:
        """Performs an action of the algorithm's own; returns what is to be done next, if it is over by it."""
        raise NotImplementedError

    def _passed(self, before: Any) -> None:
        """The machine has made a step from the state ``before``. Called with the lock."""

    def _poll(self) -> Any:
        """The next event of what is on its way beside the control messages, None if there is none. Never waits."""
        return None

    def _contribution(self, handed: Buffers) -> Buffers:
        """What this worker brings to a global mean, from what its trainer has handed in. Called with the lock."""
        return handed

    def _memory_of_mean(self, model: Buffers) -> Buffers | None:
        """Memory for a global mean of such buffers, if there is some. Called with the lock."""
        del model
        return None

    def _narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        """A mean in the dtypes of ``like``; ``totals`` are donated."""
        raise NotImplementedError

    def _put_mean(self, version: int, mean: Buffers) -> None:
        """A global mean replaces what this worker has. Called with the lock."""
        raise NotImplementedError

    def _release(self) -> None:
        """Frees all buffers, at the end."""
        raise NotImplementedError
