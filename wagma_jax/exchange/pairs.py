"""The engine of pairs: it owns the live model, averages it with those of partners, and hands it out at once."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mpi4py import MPI

from wagma_jax.exchange import tags
from wagma_jax.exchange.arithmetic import Compiled
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.pool import Pool, model_signature
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.wire import Wire
from wagma_jax.exchange.wire.polled import Polled, Posted
from wagma_jax.ledger import entries
from wagma_jax.protocol import messages
from wagma_jax.protocol.live import Live
from wagma_jax.protocol.messages import Action
from wagma_jax.protocol.pairwise import Abandon, Accept, Answer, Ask, Came, Gone, Merge, Pairwise, Phase, State

EAGER_SECONDS = 2e-2  # most swaps are shorter


class Stepped(NamedTuple):
    """What a trainer gets for its step.

    Attributes:
        round: The round that it has arrived at.
        model: The live model, those buffers that swaps exchange; left as it is until the next step.
        others: Its other buffers.
        began: The version of the live model at which the step began.
        version: That of the live model now.
        partners: With whom it was averaged since the step before, in order.
    """

    round: int
    model: Buffers
    others: Buffers
    began: int
    version: int
    partners: tuple[int, ...]


class PairsEngine(Engine):
    """Runs a machine of pairs.

    At most five models exist beside the user's own at a time: the live one, the one that the trainer was given, the one
    that was sent, the one that comes, and the trainer's W' while it is added.

    Args:
        machine: The protocol of this worker.
        wire: Takes global means.
        control: A communicator for control messages, used by nobody else.
        staging: Knows which buffers swaps exchange: those of ordinary rounds.
        taken: The model that the trainer starts from, all buffers.
        model: The live model, all buffers; the same where nobody has interfered.
        first_round: The round to begin with.
        swaps: How many swaps this worker has asked for in the run that goes on.
        recorder: Gets an entry for every swap, or None.

    Attributes:
        live: The live model, those buffers that swaps exchange.
        others: Its other buffers, as the trainer handed them in last.
    """

    def __init__(
        self,
        machine: Pairwise,
        wire: Wire,
        control: MPI.Intracomm,
        staging: Staging,
        taken: Buffers,
        model: Buffers,
        first_round: int = 0,
        swaps: int = 0,
        recorder: Recorder | None = None,
    ):
        super().__init__(machine, State(round=first_round, heard=first_round - 1, begun=swaps), wire, control, recorder)
        self._staging = staging
        self._compute = Compiled(staging.device)
        self._polled = Polled(wire.comm, tags.PAIR)
        base = staging.ordinary(taken)
        self.live = Live(base if model is taken else staging.ordinary(model), base)
        self.others = staging.rest(model)
        self._averaged: list[int] = []  # partners since the last step
        self._posted: Posted | None = None
        self._answered: Buffers | None = None  # what is sent to the partner that has asked
        self._swapping = model_signature(layout for layout in staging.layouts if layout.ordinary)
        self._pool = Pool(1, self._swapping)
        self._use(self._pool.hold, self.live)
        self._begun = 0.0  # when the swap in progress began
        self._swapped: entries.Swap | None = None

    def warm_up(self) -> None:
        """Compiles everything beforehand."""
        self._compute.warm_up(self.live.model)

    # the trainer's side

    def step(self, own: Buffers | None, counter: int) -> Stepped:
        """Adds the trainer's step to the live model, and gives it the result.

        Args:
            own: W', all buffers, the engine's from now on; None: there is no step.
            counter: The round of the previous call.
        """
        with self._changed:
            r, began = self.machine.target(self.state, counter), self.live.taken_version
            self._add(own)
            partners, self._averaged = tuple(self._averaged), []
            stepped = Stepped(r, self.live.model, self.others, began, self.live.version, partners)
        self._events.post(messages.Arrive(r))
        return stepped

    def hand_in(self, own: Buffers | None) -> Buffers:
        """Adds the trainer's step to the live model, before a global mean; returns all buffers of it."""
        with self._changed:
            self._add(own)
            return self._staging.completed(self.live.model, self.others)

    def standing(self) -> tuple[int, Buffers | None]:
        """Where this worker stands while all stand still.

        Returns:
            How many swaps it has asked for, and all buffers of the live model; None where the trainer has it.
        """
        with self._changed:
            live = self.live
            same = live.model is live.taken
            return self.state.begun, None if same else self._staging.completed(live.model, self.others)

    def _add(self, own: Buffers | None) -> None:
        if own is None:
            self._put(self.live.skip())
        else:
            self._put(self.live.step(self._staging.ordinary(own), self._compute))
            self.others = self._staging.rest(own)

    # the engine's thread

    def _exchange(self, action: Any) -> list[Action]:
        if isinstance(action, Ask):
            self._ask(action)
        elif isinstance(action, Accept):
            self._begun = time.perf_counter()
            self._posted = self._polled.post(action.partner, memory=self._memory())
        elif isinstance(action, Answer):
            self._answer_swap(action)
        elif isinstance(action, Merge):
            self._merge(action)
        else:
            assert isinstance(action, Abandon), action
            if self._posted is not None:
                self._posted.abandon()
            self._posted = self._answered = None
        return []

    def _poll(self) -> Came | Gone | None:
        posted = self._posted
        if posted is None or not posted.test():
            return None
        if self.state.swap.phase == Phase.ANSWERED:
            self._posted = None
            return Gone()
        return Came(*posted.header)

    def _passed(self, before: State) -> None:
        if before.swap is not None and before.swap.phase == Phase.ANSWERED and self.state.swap != before.swap:
            with self._changed:
                answered, self._answered = self._answered, None
                self._pool.release(answered or ())  # it has arrived
            self._record()

    def _is_eager(self) -> bool:
        recent = self._posted is not None and time.perf_counter() - self._begun < EAGER_SECONDS
        return recent or super()._is_eager()

    def _ask(self, action: Ask) -> None:
        self._begun = time.perf_counter()
        memory = self._memory()
        with self._changed:
            self._put(self.live.ask())
        header = action.number, action.round
        self._posted = self._polled.post(action.partner, self.live.sent, header, memory)

    def _answer_swap(self, action: Answer) -> None:
        received = self._received()
        with self._changed:
            version, answered = self.live.version, self.live.model
            self._answered = answered
            self._pool.hold(answered)
            self._put(self.live.answer(received, self._compute))
            self._note(action.partner, action.number, version)
        self._posted = self._polled.post(action.partner, self._answered, (action.number, action.round))

    def _merge(self, action: Merge) -> None:
        received = self._received()
        with self._changed:
            version = self.live.sent_version
            self._put(self.live.merge(received, self._compute))
            self._note(action.partner, action.number, version)
        self._record()

    def _received(self) -> Buffers:
        posted, self._posted = self._posted, None
        assert posted is not None, "nothing has come"
        return posted.memory

    def _note(self, partner: int, number: int, sent: int) -> None:
        """The live model has been averaged."""
        self._averaged.append(partner)
        now, r = time.perf_counter(), self.state.arrived
        asked = self.machine.schedule.is_active(self.machine.worker)
        self._swapped = entries.Swap(partner, number, asked, sent, self.live.version, r, self._begun, now)

    def _record(self) -> None:
        """The swap in progress is over."""
        swapped, self._swapped = self._swapped, None
        if self._recorder is not None and swapped is not None:
            self._recorder.add(swapped._replace(end=time.perf_counter()))

    # memory

    def _put(self, live: Live) -> None:
        """Replaces the record. Called with the lock."""
        before, self.live = self.live, live
        self._use(self._pool.hold, live)
        self._use(self._pool.release, before)

    def _use(self, use: Callable[[Buffers], None], live: Live) -> None:
        """Holds or releases what a record refers to."""
        for model in (live.model, live.taken, live.sent):
            use(model or ())

    def _memory(self) -> Buffers:
        """Memory for a model that comes, of which the next live model is made."""
        with self._changed:
            like, memory = self.live.model, self._pool.withdraw(self._swapping)
        return self._staging.copy(like) if memory is None else memory

    # global means

    def _contribution(self, handed: Buffers) -> Buffers:
        return self._staging.completed(self.live.model, self._staging.rest(handed))

    def _narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        return self._staging.narrow(totals, like)

    def _put_mean(self, version: int, mean: Buffers) -> None:
        del version
        self._put(self.live.gather(self._staging.ordinary(mean)))
        self.others = self._staging.rest(mean)
        self._averaged = []

    def _release(self) -> None:
        self.live, self.others, self._answered = Live((), ()), (), None
        self._pool.clear()
