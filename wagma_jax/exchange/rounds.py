"""The engine of rounds: publications, or increments, are added up in groups, and the trainer takes what came of it."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.events import LONGEST_POLL
from wagma_jax.exchange.history import Exchanged
from wagma_jax.exchange.increments import Added, Increments
from wagma_jax.exchange.models import Models, Taken
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.waiting import Inside
from wagma_jax.exchange.weighing import Weighing
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger import entries
from wagma_jax.protocol import messages
from wagma_jax.protocol.messages import Action, Exchange, Tally
from wagma_jax.protocol.rounds import Rounds, State
from wagma_jax.protocol.rules import GroupSum


class RoundsEngine(Engine):
    """Runs a machine of rounds.

    Args:
        machine: The protocol of this worker.
        wire: Exchanges buffers.
        control: A communicator for control messages, used by nobody else.
        models: What this worker has published; or the increments that it has handed in.
        first_round: The round to begin with.
        recorder: Gets an entry for every round, or None.
        weighing: Weighs contributions that count for steps; None where all weigh the same.
        quorum_seconds: How long the trainer waits for a quorum; None: until it is there.

    Attributes:
        models: What was published and averaged.
        weighing: What weighs contributions, or None.
    """

    def __init__(
        self,
        machine: Rounds,
        wire: Wire,
        control: MPI.Intracomm,
        models: Models | Increments,
        first_round: int = 0,
        recorder: Recorder | None = None,
        weighing: Weighing | None = None,
        quorum_seconds: float | None = None,
    ):
        super().__init__(machine, State(round=first_round, arrived=first_round - 1), wire, control, recorder)
        self._quorum_seconds = math.inf if quorum_seconds is None else quorum_seconds
        self._arrival: tuple[int, float] | None = None  # at which round, and when; written by the trainer alone
        self.models: Any = models
        self.weighing = weighing

    # the trainer's side

    def leads_to_sync(self, counter: int) -> bool:
        """Whether the trainer's next call leads to a sync round, as it looks now.

        Args:
            counter: The round of the previous call.
        """
        with self._changed:
            return self.machine.plan.is_sync(self.machine.target(self.state, counter))

    def arrive(
        self,
        model: Buffers | None,
        counter: int,
        tally: Tally,
        complete: Callable[[Buffers], Buffers] = lambda own: own,
    ) -> int:
        """Publishes W' and arrives at a round.

        Args:
            model: W', all buffers or those of ordinary rounds, the engine's from now on; None: what was published
                before stays.
            counter: The round of the previous call.
            tally: What this worker adds to the sums, if it is a sync round.
            complete: Maps the buffers of ordinary rounds to all of W'; called if others have called to a sync round.

        Returns:
            The round.
        """
        buffers: Buffers = ()
        memory = None
        while True:
            with self._changed:
                t = self.machine.target(self.state, counter)
                lacks = model is not None and not self.models.is_whole(model) and self.machine.plan.is_sync(t)
                if not lacks:
                    buffers = () if model is None else self.models.part(model, t)
                    begun = self._inside is not None and self._inside.round == t
                    enough = model is None or begun or self.state.round > t or self.models.has_memory(len(buffers))
                    if enough or memory is not None:
                        if model is not None:
                            self.models.publish(t, model, memory)
                        self._waits.begin()
                        break
            # by this thread, and without the lock
            if lacks:
                assert model is not None
                model = complete(model)
            else:
                memory = self.wire.memory(buffers)
        if self._quorum_seconds < math.inf:
            self._arrival = t, time.perf_counter()
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
            state = self.machine.passed_alone(self.state, t)
            if state is None:
                return None
            self.state = state
            self.models.pass_over()
            self._note_alone(t)
            return t

    def publish_rest(self, rest: Buffers) -> None:
        """Publishes the buffers of the newest W' that only sync rounds exchange."""
        with self._changed:
            self.models.put_rest(rest)

    def publish(self, version: int, model: Buffers) -> None:
        """Publishes a model that was passed over in rounds of one."""
        with self._changed:
            self.models.publish_passed(version, model)

    def forget_passed(self) -> None:
        """The trainer has taken a global mean in the place of the models that rounds of one have passed over."""
        with self._changed:
            self.models.forget_passed()

    def untaken(self, r: int) -> GroupSum | None:
        """The sum of a round up to r that the trainer has not taken, with copies of its buffers in NumPy; or None."""
        with self._changed:
            newest = self.models.inbox.newest
            if newest is None or newest.taken or newest.round > r:
                return None
            return newest._replace(total=[np.array(part) for part in newest.total])

    def take(self, t: int, timeout: float) -> tuple[int, Taken | Added, dict[int, float]]:
        """Waits until round t is complete, and takes the newest sum, or the mean.

        Returns:
            The newest complete round; what was taken; and the seconds that this worker has waited for others to get
            ready, by rank (several share them evenly; at a sync round workers only know their neighbours in the tree
            of all, for whom or behind whom they wait; empty without a ledger).

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

    # the engine's thread

    def _is_eager(self) -> bool:
        return super()._is_eager() or self._patience() < LONGEST_POLL

    def _poll(self) -> messages.Expire | None:
        return messages.Expire(self.state.round) if self._patience() <= 0 else None

    def _patience(self) -> float:
        """Seconds that the trainer still waits for the quorum of the current round; inf if it does not, or for ever."""
        if self._arrival is None:
            return math.inf
        t, since = self._arrival
        waits = t == self.state.round and self.machine.is_patient(self.state)
        return self._quorum_seconds - (time.perf_counter() - since) if waits else math.inf

    def _passed(self, before: State) -> None:
        self._note_alone(before.round)

    def _note_alone(self, r: int) -> None:
        """Notes the rounds of one that were passed since round ``r``, which no exchange has completed."""
        if r == self.state.round:
            return
        for t in filter(self.machine.is_alone, range(r, self.state.round)):
            self.models.history.note(Exchanged(t, (self.machine.worker,), (t,)))
            if self._recorder is not None:
                now = time.perf_counter()
                self._recorder.add(entries.Round(t, (self.machine.worker,), (t,), now, now))
            self._changed.notify_all()

    def _exchange(self, action: Exchange) -> list[Action]:
        """Exchanges the publication with the group."""
        r, group, tally = action
        with self._changed:
            own = self.models.contribute(r)
            begin = time.perf_counter()
            self._inside = Inside(f"the exchange of round {r}", group, begin, r)
        memory = self.wire.memory(own.buffers) if own.memory is None else own.memory
        buffers, weights, weight = own.buffers, (), len(group)
        if self.weighing is not None:
            weights, buffers = self.weighing(group, own.steps, own.buffers, self.machine.plan.is_sync(r))
            weight = sum(weights)
        divisor = weight if own.is_mean else 1
        contributed, result = self.wire.exchange(group, divisor, (r, own.version), buffers, memory)
        result = self.models.finish(r, result, own.buffers)
        with self._changed:
            self.models.put(Exchanged(r, group, contributed, weights), own, result, tally)
            if self._recorder is not None:
                end = time.perf_counter()
                self._recorder.add(entries.Round(r, group, contributed, begin, end, weights))
            return self._completed()

    def _completed(self) -> list[Action]:
        self.models.end_reading()
        return super()._completed()

    def _memory_of_mean(self, model: Buffers) -> Buffers | None:
        return self.models.memory(len(model))

    def _narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        return self.models.narrow(totals, like)

    def _put_mean(self, version: int, mean: Buffers) -> None:
        self.models.put_mean(version, mean)

    def _release(self) -> None:
        self.models.clear()
        if self.weighing is not None:
            self.weighing.release()
