"""The machine of pairs: active workers ask passive ones, and both average their live models (AD-PSGD).

The rules, and the failure that each prevents:

- *Who asks.* Active workers ask, passive ones answer (see ``bipartite``). If all asked, some might wait in a circle.
- *A swap.* After a step of its trainer an active worker posts the sends of its live model, tells its partner, and
  posts the receives of the answer. The partner posts receives when it is told, and sends its own live model once the
  other one has come. Each averages when it has both (see ``live``). Nothing in it blocks, so it can be abandoned.
- *One at a time.* An active worker whose answer has not come begins no second swap, and a passive one accepts the next
  when its answer is sent: both need memory for one model. Who is told meanwhile is served in turn.
- *Nobody waits.* The trainer takes the live model as it is. A swap that takes long takes part of nobody's time.
- *Rest.* A passive worker serves while its trainer rests. An active one says REST once it has no swap in progress. So
  when all are woken nothing is on its way, and the mean of the live models is that of all steps.
- *Failure.* ABORT abandons every swap: whoever waits for an answer hears of it, too. Only a promise to wake is kept.
- *Clocks.* Each swap carries the newest round that its sender knows of. With ``clock="step"`` a worker's round is the
  count of its own steps. With ``clock="round"`` a step leads to the newest round that it knows of, or past it if it has
  been there: who is slow takes fewer steps. (If each step led past the newest, rounds would outrun every worker.)
  At a rest all go to the newest round of any.

Reference: Lian et al., ICML 2018 (arXiv:1710.06952), section 4; rest, failure and the round clock are additions.
"""

import dataclasses
import enum
import functools
from typing import Any, NamedTuple

from wagma_jax.bipartite import PairSchedule
from wagma_jax.choices import Clock
from wagma_jax.protocol import messages
from wagma_jax.protocol.lifecycle import Life, Lifecycle
from wagma_jax.protocol.messages import Kind, Message, Rest, Send

# events


class Came(NamedTuple):
    """The partner's model has come, and what was sent before it has arrived.

    Attributes:
        number: Of the swap, by the active worker's count.
        round: The newest round that the partner knew of.
    """

    number: int
    round: int


class Gone(NamedTuple):
    """The answer has arrived."""


# actions


class Ask(NamedTuple):
    """Post the sends of the live model, and the receives of the partner's.

    Attributes:
        partner: To whom.
        number: Of the swap.
        round: The newest round that this worker knows of; both go with the model.
    """

    partner: int
    number: int
    round: int


class Accept(NamedTuple):
    """Post the receives of the partner's model."""

    partner: int
    number: int


class Answer(NamedTuple):
    """Post the sends of the live model, and average it with the partner's, which has come; fields as of ``Ask``."""

    partner: int
    number: int
    round: int


class Merge(NamedTuple):
    """Merge the partner's model, which has come."""

    partner: int
    number: int


class Abandon(NamedTuple):
    """Give up what is posted, after a failure."""


Event = messages.Event | Came | Gone
Action = messages.Action | Ask | Accept | Answer | Merge | Abandon


class Phase(enum.Enum):
    """What a worker waits for in a swap."""

    ASKED = "the answer"
    ACCEPTED = "the model of the partner, who has asked"
    ANSWERED = "the answer's arrival"


class Swap(NamedTuple):
    """A swap in progress.

    Attributes:
        partner: With whom.
        number: By the active worker's count.
        phase: How far it is.
    """

    partner: int
    number: int
    phase: Phase


class State(NamedTuple):
    """What an engine knows.

    Attributes:
        round: One past the newest round that the own trainer has arrived at, or was carried past at a rest.
        heard: The newest round that any worker is known to have arrived at.
        begun: How many swaps this worker has asked for.
        swap: The swap in progress, or None.
        asks: (source, number) of those who wait to be served, the first first.
        exchanging: Whether a global mean or a barrier is in progress.
        life: Rest, failure and the end.
    """

    round: int = 0
    heard: int = -1
    begun: int = 0
    swap: Swap | None = None
    asks: tuple[tuple[int, int], ...] = ()
    exchanging: bool = False
    life: Life = Life()

    @property
    def arrived(self) -> int:
        """The newest round that the own trainer has arrived at, or was carried past."""
        return self.round - 1


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """The machine of one worker.

    Attributes:
        schedule: Who averages with whom.
        worker: This worker.
        clock: What a trainer's call counts: its own steps, or everybody's rounds.
    """

    schedule: PairSchedule
    worker: int
    clock: Clock = "step"

    def target(self, state: State, counter: int) -> int:
        """The round that the trainer's next call arrives at.

        Args:
            state: The engine's state.
            counter: The round of the trainer's previous call, -1 before the first.
        """
        return counter + 1 if self.clock == "step" else max(counter + 1, state.heard)

    def step(self, state: State, event: Event) -> tuple[State, list[Action]]:
        """The state after an event, and what to do, in order."""
        if state.life.over:
            return state, []
        actions: list[Any] = []
        if isinstance(event, messages.Abort):
            state = state._replace(life=self.lifecycle.abort(state.life, event.text, actions))
        elif isinstance(event, messages.Arrive):
            state = self._arrived(state, event.round, actions)
        elif isinstance(event, messages.Retire):
            state = state._replace(life=self.lifecycle.retire(state.life, event))
        elif isinstance(event, messages.Completed):
            assert state.exchanging
            state = state._replace(exchanging=False, life=self.lifecycle.awake(state.life))
        elif isinstance(event, Came):
            state = self._came(state, event, actions)
        elif isinstance(event, Gone):
            state = self._gone(state)
        elif event.message.kind == Kind.ASK:
            state = state._replace(asks=(*state.asks, (event.source, event.message.round)))
        else:
            life = self.lifecycle.receive(state.life, event.source, event.message, actions)
            state = state._replace(life=life)
        return self._settle(state, actions), actions

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which a resting trainer does not go on; itself where it trains, and waits for nobody."""
        if state.exchanging:
            return ()
        if state.life.resting == Rest.NONE:
            return (self.worker,)
        if state.swap is not None:
            return (state.swap.partner,)
        return self.lifecycle.missing(state.life)

    @property
    def num_workers(self) -> int:
        """P."""
        return self.schedule.num_workers

    @functools.cached_property
    def lifecycle(self) -> Lifecycle:
        """The rules of rest, failure and the end."""
        return Lifecycle(self.worker, self.num_workers)

    # what happened

    def _arrived(self, state: State, r: int, actions: list[Any]) -> State:
        state = state._replace(round=r + 1, heard=max(state.heard, r))
        if not self._asks(state):
            return state
        number = state.begun
        partner = self.schedule.partner(self.worker, number)
        actions += [Ask(partner, number, state.heard), Send(partner, Message(Kind.ASK, number))]
        return state._replace(begun=number + 1, swap=Swap(partner, number, Phase.ASKED))

    def _asks(self, state: State) -> bool:
        """Whether this worker begins a swap after its trainer's step."""
        has_partner = self.schedule.is_active(self.worker) and self.num_workers > 1
        return has_partner and state.swap is None and not state.life.aborted

    def _came(self, state: State, event: Came, actions: list[Any]) -> State:
        swap = state.swap
        if swap is None:  # abandoned
            return state
        assert event.number == swap.number, f"swap {event.number} instead of {swap}"
        state = state._replace(heard=max(state.heard, event.round))
        if swap.phase == Phase.ASKED:
            actions.append(Merge(swap.partner, swap.number))
            return state._replace(swap=None)
        assert swap.phase == Phase.ACCEPTED, swap
        actions.append(Answer(swap.partner, swap.number, state.heard))
        return state._replace(swap=swap._replace(phase=Phase.ANSWERED))

    def _gone(self, state: State) -> State:
        assert state.swap is None or state.swap.phase == Phase.ANSWERED, state.swap
        return state._replace(swap=None)

    # what follows from what is known

    def _settle(self, state: State, actions: list[Any]) -> State:
        """Applies the rules until none has more to do; a global mean, a barrier or the end is the last action."""
        life = state.life
        if life.over or state.exchanging:
            return state
        if life.aborted and not life.woken:
            return self._wind_up(state, actions)
        if state.swap is not None:
            return state
        state = state._replace(life=self.lifecycle.gather(life, state.round - 1, actions))
        if state.life.over:
            return state
        if state.life.woken is not None:
            actions.append(self.lifecycle.called_to(state.life))
            newest = state.life.woken.newest
            return state._replace(exchanging=True, round=newest + 1, heard=max(state.heard, newest))
        return self._accept(state, actions)

    def _accept(self, state: State, actions: list[Any]) -> State:
        """Begins the next swap that others have asked for."""
        if not state.asks:
            return state
        (source, number), *asks = state.asks
        actions.append(Accept(source, number))
        return state._replace(swap=Swap(source, number, Phase.ACCEPTED), asks=tuple(asks))

    def _wind_up(self, state: State, actions: list[Any]) -> State:
        """After a failure: nobody waits inside of a swap, so only whoever has promised to wake stays."""
        if state.swap is not None:
            actions.append(Abandon())
        state = state._replace(swap=None, asks=())
        if self.lifecycle.waits_to_wake(state.life):
            return state
        return state._replace(life=self.lifecycle.end(state.life, actions))
