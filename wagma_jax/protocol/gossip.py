"""The machine of gossip: in each round a worker pushes its model to some workers and mixes it with those of others.

A push is posted and never waited for; its receives are posted as well. So nobody blocks inside of a round, and a round
can be abandoned. What the rules prevent:

- *Pushes say it all.* Pushes between two workers stay in order, so which round one belongs to is known from its place,
  and that its sender has come so far, from its coming. No round needs a control message.
- *Order.* The receives of what counts in a round are posted where the round begins, none before. Pushes of later rounds
  wait at their senders, who hold them anyway: a fast worker cannot fill the memory of a slow one.
- *Ahead.* D-PSGD pushes the model of a round as soon as it is known, before its trainer arrives (``early``). With
  ``lag=1`` what is pushed in a round counts in the next one. Either way pushes travel while trainers compute.
- *Rest.* An engine whose trainer rests (see ``lifecycle``) takes part in every round that it hears of, by zero steps:
  it mixes as well. So the mean stays what it is, and nobody waits for a trainer that rests. It hears by pushes alone,
  at times through others. An early push does not say that a trainer has arrived at its round, only that one has at
  the round before. Otherwise engines alone could go on for ever.
- *Drained.* All who are woken execute the rounds up to the newest arrival of any, and stand at the same round then.
  They enter a global mean or a barrier, or end, once all that was pushed to them has come: nothing is on its way while
  all stand still. What has come counts after a barrier. A global mean includes it where models do not, and outdates it.
- *Failure.* Nobody has promised anything but to wake. Whoever has been woken goes on until it has entered what all are
  woken to: all have been woken then, and none leaves before.

References: Lian et al., NeurIPS 2017 (arXiv:1705.09056), algorithm 1; Assran et al., ICML 2019 (arXiv:1811.10792),
algorithms 1 and 2. Rest and failure are additions. What is pushed and how it is mixed: ``mixing``.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

from wagma_jax.gossip import GossipSchedule
from wagma_jax.protocol import messages
from wagma_jax.protocol.lifecycle import Life, Lifecycle
from wagma_jax.protocol.messages import Rest

# events


class Begin(NamedTuple):
    """The engine runs."""


class Pulled(NamedTuple):
    """A push that counts in the current round has come from ``source``."""

    source: int


class Heard(NamedTuple):
    """A push is on its way from ``source`` that was not asked for yet."""

    source: int


# actions


class Push(NamedTuple):
    """Post the sends of this worker's share of a round."""

    round: int
    dests: tuple[int, ...]


class Pull(NamedTuple):
    """Post the receives of all that counts in a round."""

    round: int
    sources: tuple[int, ...]


class Mix(NamedTuple):
    """Complete a round: all that counts in it is here.

    Attributes:
        round: The round.
        sources: From whom it has come, in the order of the schedule.
        stepped: Whether the trainer's step is in it; it rests otherwise.
    """

    round: int
    sources: tuple[int, ...]
    stepped: bool


Event = messages.Event | Begin | Pulled | Heard
Action = messages.Action | Push | Pull | Mix


class State(NamedTuple):
    """What an engine knows.

    Attributes:
        round: The current round: all before it are complete here.
        arrived: The newest round that the own trainer has arrived at.
        heard: The newest round that another trainer is known to have arrived at.
        since: Pushes of rounds before this one do not count: nothing was on its way when it began.
        pushed: The newest round of which this worker has pushed its share.
        pulling: Whether the receives of the current round are posted.
        pulled: From whom a push that counts in the current round has come.
        exchanging: Whether a global mean or a barrier is in progress.
        life: Rest, failure and the end.
    """

    round: int = 0
    arrived: int = -1
    heard: int = -1
    since: int = 0
    pushed: int = -1
    pulling: bool = False
    pulled: frozenset[int] = frozenset()
    exchanging: bool = False
    life: Life = Life()


@dataclasses.dataclass(frozen=True)
class Gossip:
    """The machine of one worker.

    Attributes:
        schedule: Who sends to whom.
        worker: This worker.
        early: Whether a worker's share of a round is known before its trainer has arrived.
        lag: Rounds after which a push counts: 0 or 1.
    """

    schedule: GossipSchedule
    worker: int
    early: bool = False
    lag: int = 0

    def start(self, first_round: int, have_come: bool = False) -> State:
        """The state of an engine that has not begun.

        Args:
            first_round: The round to begin with.
            have_come: Whether what counts in it has come: of a run that goes on where all stood still.
        """
        before = first_round - 1
        state = State(first_round, before, before, first_round, before)
        if not have_come:
            return state
        assert self.lag, "nothing that was pushed before is needed"
        state = state._replace(since=before, pulling=True)
        return state._replace(pulled=frozenset(self.counting(state)))

    def target(self, state: State, counter: int) -> int:
        """The round that the trainer's next call arrives at: a trainer takes every round.

        Args:
            state: The engine's state.
            counter: The round of the trainer's previous call, -1 before the first.
        """
        del state
        return counter + 1

    def step(self, state: State, event: Event) -> tuple[State, list[Any]]:
        """The state after an event, and what to do, in order."""
        if state.life.over:
            return state, []
        actions: list[Any] = []
        if isinstance(event, messages.Receive):
            state = state._replace(life=self.lifecycle.receive(state.life, event.source, event.message, actions))
        elif isinstance(event, messages.Abort):
            state = state._replace(life=self.lifecycle.abort(state.life, event.text, actions))
        elif isinstance(event, messages.Retire):
            state = state._replace(life=self.lifecycle.retire(state.life, event))
        elif isinstance(event, messages.Arrive):
            assert event.round == state.round, f"a trainer arrives at round {event.round} instead of {state.round}"
            state = state._replace(arrived=event.round)
        elif isinstance(event, messages.Completed):
            state = self._completed(state)
        elif isinstance(event, Pulled):
            assert event.source in self.counting(state), f"nothing from {event.source} counts in round {state.round}"
            state = self._hear(state, state.round - self.lag)._replace(pulled=state.pulled | {event.source})
        elif isinstance(event, Heard):
            later = itertools.count(state.round - self.lag + 1)  # those before are asked for
            pushed = next(t for t in later if event.source in self.schedule.receives_from(self.worker, t))
            state = self._hear(state, pushed)
        return self._settle(state, actions), actions

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which this engine does not go on; whoever waits for worker 0 alone may ask it."""
        if state.exchanging:
            return ()
        if self._is_served(state) or self._is_gathered(state):
            return tuple(source for source in self.counting(state) if source not in state.pulled)
        if state.life.resting == Rest.NONE:
            return (self.worker,)
        # others may wait for this one, which does not know, since those have not arrived by which it would hear
        return tuple(sorted({*self.lifecycle.missing(state.life), *self._sources}))

    def listens_to(self, state: State) -> tuple[int, ...]:
        """Whose next push tells an engine at rest that somebody has arrived at its round: see ``Heard``."""
        life = state.life
        idle = life.over or life.aborted or life.woken is not None or state.exchanging
        return () if life.resting == Rest.NONE or idle or self._is_served(state) else self._sources

    def counting(self, state: State) -> tuple[int, ...]:
        """From whom pushes count in the current round, in the order of the schedule."""
        pushed = state.round - self.lag
        return self.schedule.receives_from(self.worker, pushed) if pushed >= state.since else ()

    @functools.cached_property
    def lifecycle(self) -> "Lingering":
        """The rules of rest, failure and the end."""
        return Lingering(self.worker, self.num_workers)

    @property
    def num_workers(self) -> int:
        """P."""
        return self.schedule.num_workers

    # what happened

    def _hear(self, state: State, pushed: int) -> State:
        """Another worker has pushed its share of a round."""
        return state._replace(heard=max(state.heard, pushed - self.early))

    def _completed(self, state: State) -> State:
        assert state.exchanging
        assert state.life.woken is not None
        is_mean = state.life.woken.rest == Rest.CONSENSUS
        before = state.round - 1
        state = state._replace(exchanging=False, arrived=before, life=self.lifecycle.awake(state.life))
        if is_mean:  # what was pushed before it is outdated
            state = state._replace(since=state.round, pushed=before)
            if self._is_ahead:
                state = state._replace(pulling=False, pulled=frozenset())
        return state

    # what follows from what is known

    def _settle(self, state: State, actions: list[Any]) -> State:
        """Applies the rules until none has anything more to do; a global mean, barrier or end is the last action."""
        if state.life.over or state.exchanging:
            return state
        if not state.life.aborted or state.life.woken:
            state = state._replace(life=self.lifecycle.gather(state.life, state.arrived, actions))
        if state.life.aborted and not state.life.woken:
            return self._wind_up(state, actions)
        state = self._post(state, actions)
        while self._is_complete(state):
            actions.append(Mix(state.round, self.counting(state), state.arrived >= state.round))
            state = state._replace(round=state.round + 1, pulling=False, pulled=frozenset())
            state = self._post(state, actions)
        if self._is_gathered(state) and self._is_drained(state):
            return self._enter(state, actions)
        return state

    def _post(self, state: State, actions: list[Any]) -> State:
        """Posts what may be posted in the current round."""
        if not state.pulling:
            if sources := self.counting(state):
                actions.append(Pull(state.round, sources))
            state = state._replace(pulling=True)
        if state.pushed < state.round and (self.early or self._is_served(state)):
            actions.append(Push(state.round, self.schedule.sends_to(self.worker, state.round)))
            state = state._replace(pushed=state.round)
        return state

    def _is_served(self, state: State) -> bool:
        """Whether the trainer counts as arrived at the current round."""
        life = state.life
        heard = state.heard if life.woken is None else max(state.heard, life.woken.newest)
        return state.arrived >= state.round or (life.resting != Rest.NONE and heard >= state.round)

    def _is_complete(self, state: State) -> bool:
        return self._is_served(state) and state.pulled.issuperset(self.counting(state))

    def _is_gathered(self, state: State) -> bool:
        """Whether all are woken, and this engine stands where all will."""
        return state.life.woken is not None and state.round > state.life.woken.newest

    def _is_drained(self, state: State) -> bool:
        """Whether all that the others have pushed to an engine that is gathered has come."""
        return not self._is_ahead or state.pulled.issuperset(self.counting(state))

    def _enter(self, state: State, actions: list[Any]) -> State:
        assert state.life.woken is not None
        if state.life.woken.rest == Rest.CLOSE:
            return state._replace(life=self.lifecycle.leave(state.life, actions))
        actions.append(self.lifecycle.called_to(state.life))
        return state._replace(exchanging=True)

    def _wind_up(self, state: State, actions: list[Any]) -> State:
        """After a failure: ends, but for whoever has promised to wake."""
        if self.lifecycle.waits_to_wake(state.life):
            return state
        return state._replace(life=self.lifecycle.leave(state.life, actions))

    @functools.cached_property
    def _sources(self) -> tuple[int, ...]:
        """Whoever pushes to this worker at some round."""
        rounds = range(self.schedule.period)
        return tuple(sorted({source for t in rounds for source in self.schedule.receives_from(self.worker, t)}))

    @property
    def _is_ahead(self) -> bool:
        """Whether pushes that count in a round are sent before any trainer has arrived there."""
        return self.early or self.lag > 0


class Lingering(Lifecycle):
    """A life that does not end before its machine says so: what is on the way has to come first."""

    def end(self, life: Life, actions: list[Any]) -> Life:
        """Not yet."""
        del actions
        return life

    def leave(self, life: Life, actions: list[Any]) -> Life:
        """Nobody counts on this engine any more, and nothing is on its way to it."""
        return super().end(life, actions)
