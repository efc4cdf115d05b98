"""The machine of rounds: groups exchange models, the first to arrive starts its group, and sync rounds include all.

The rules, and the failure that each prevents:

- *Activation.* An engine tells its group ARRIVED(r) when its trainer arrives at its current round r. Round r is
  activated at an engine that knows of the arrivals that start it (any ``quorum`` of them, or that of the initiator: see
  ``plan``) or of a FORCE(r).
- *Order.* Rounds are executed strictly in order. An engine at which a later round is activated first sends FORCE(r) to
  the group of its current round r. Without it the group of the later round would wait for the trainers of this one.
- *Readiness.* An exchange is entered when every member is known to stand at its round. ARRIVED and FORCE say so, and
  READY does for the others. So nobody ever waits inside of an exchange, where a wait has no time limit.
- *Rounds of one.* Where a worker is alone in its group nothing is exchanged, and no message is sent: the engine passes
  the round once its trainer has arrived at it, or where it would otherwise send FORCE.
- *Sync rounds.* All trainers must arrive: READY goes to worker 0, whose GO starts the exchange. SYNC(k), from whoever
  arrives first, spreads over the hypercube of workers. READY carries the trainer's tally, and GO the sums.
- *Resting.* A trainer that rests (see ``lifecycle``) counts as arrived at every round up to the newest that its engine
  has heard of, and when all are woken, up to the newest of all. It adds nothing to the sums of a sync round.
- *Failing.* Who has failed makes no new promises. What was promised before (by ARRIVED, FORCE, READY) is kept if all
  members have promised, since one of them may be inside of the exchange already.
- *Clocks.* With ``clock="step"`` a trainer arrives at one round after the other. With ``clock="round"`` it jumps to the
  newest complete round, or to the sync round after it; SYNC(k) completes all rounds before k and calls trainers to k.

Reference: Li et al., TPDS 2021, algorithm 2; readiness, FORCE, resting and the round clock are additions.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Literal, NamedTuple

from wagma_jax.protocol.lifecycle import Life, Lifecycle
from wagma_jax.protocol.messages import (
    Abort,
    Action,
    Arrive,
    Barrier,
    Completed,
    Event,
    Exchange,
    GlobalMean,
    Kind,
    Message,
    Rest,
    Retire,
    Send,
    Tally,
    added,
)
from wagma_jax.protocol.plan import Plan, Step

Clock = Literal["step", "round"]


class State(NamedTuple):
    """What an engine knows.

    Attributes:
        round: The current round: all before it are complete here.
        arrived: The newest round that the own trainer has arrived at.
        heard: The newest round that any other trainer is known to have arrived at, or that was forced.
        called: The newest sync round that any trainer is known to have arrived at.
        exchanging: Whether an exchange, global mean or barrier is in progress.
        facts: (kind, round, sender) of messages about rounds that are not complete, the own ones among them.
        tallies: (round, sender, tally) of sync rounds that are not complete; worker 0 sends the sums.
        life: Rest, failure and the end.
    """

    round: int = 0
    arrived: int = -1
    heard: int = -1
    called: int = -1
    exchanging: bool = False
    facts: frozenset[tuple[Kind, int, int]] = frozenset()
    tallies: frozenset[tuple[int, int, Tally]] = frozenset()
    life: Life = Life()


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The machine of one worker.

    Attributes:
        plan: Who takes part in which round, and whose arrivals start it.
        worker: This worker.
        clock: What a trainer's call counts: its own steps, or everybody's rounds.
    """

    plan: Plan
    worker: int
    clock: Clock = "step"

    @property
    def num_workers(self) -> int:
        """P."""
        return self.plan.num_workers

    def target(self, state: State, counter: int) -> int:
        """The round that the trainer's next call arrives at.

        With ``clock="round"`` the call jumps to the newest complete round. If a sync round is next, it goes there:
        somebody arrives at it within a step of its own, and would have to wait for another step of this worker's. It
        never jumps past an open sync round.

        Args:
            state: The engine's state.
            counter: The round of the trainer's previous call, -1 before the first.
        """
        if self.clock == "step":
            return counter + 1
        if self.plan.is_sync(state.round):
            return state.round
        return max(counter + 1, state.round - 1)

    def step(self, state: State, event: Event) -> tuple[State, list[Action]]:
        """The state after an event, and what to do, in order."""
        if state.life.over:
            return state, []
        actions: list[Action] = []
        if isinstance(event, Abort):
            state = state._replace(life=self.lifecycle.abort(state.life, event.text, actions))
        elif isinstance(event, Arrive):
            state = self._arrived(state, event)
        elif isinstance(event, Retire):
            state = state._replace(life=self.lifecycle.retire(state.life, event))
        elif isinstance(event, Completed):
            state = self._completed(state)
        elif event.message.kind in (Kind.REST, Kind.WAKE, Kind.ABORT):
            life = self.lifecycle.receive(state.life, event.source, event.message, actions)
            state = state._replace(life=life)
        else:
            state = self._received(state, event.source, event.message, actions)
        return self._settle(state, actions), actions

    def is_alone(self, r: int) -> bool:
        """Whether nothing is exchanged in round r, in which this worker is alone."""
        return len(self._planned(r).members) == 1 and not self.plan.is_sync(r)

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which this engine does not go on; whoever waits for worker 0 alone may ask it."""
        r = state.round
        if state.exchanging:
            return ()
        if state.life.resting != Rest.NONE and not self._served(state, r):
            return self.lifecycle.missing(state.life)
        if self.plan.is_sync(r):
            if not self._served(state, r):
                return (self.worker,)
            if self.worker != 0:
                return (0,)
            ready = self._known(state, (Kind.READY,), r)
            return tuple(worker for worker in self._everyone if worker not in ready)
        initiator = self._planned(r).initiator
        if initiator is not None and not self._activated(state, r):
            return (initiator,)
        standing = self._standing(state, r) if self._activated(state, r) else self._known(state, (Kind.ARRIVED,), r)
        return tuple(worker for worker in self._group(r) if worker not in standing)

    @functools.cached_property
    def lifecycle(self) -> Lifecycle:
        """The rules of rest, failure and the end."""
        return Lifecycle(self.worker, self.num_workers)

    # what happened

    def _arrived(self, state: State, event: Arrive) -> State:
        state = state._replace(arrived=max(state.arrived, event.round))
        return self._add_tally(state, event.round, self.worker, event.tally)

    def _add_tally(self, state: State, r: int, sender: int, tally: Tally) -> State:
        if not tally or r < state.round or not self.plan.is_sync(r):
            return state
        return state._replace(tallies=state.tallies | {(r, sender, tally)})

    def _received(self, state: State, source: int, message: Message, actions: list[Action]) -> State:
        kind, r = message.kind, message.round
        if r < state.round:
            return state
        state = state._replace(heard=max(state.heard, r))
        if kind == Kind.SYNC:
            return self._call(state, r, source, actions)
        state = self._add_tally(state, r, source, message.tally)
        return state._replace(facts=state.facts | {(kind, r, source)})

    def _completed(self, state: State) -> State:
        assert state.exchanging
        if self._is_gathered(state):
            return state._replace(exchanging=False, life=self.lifecycle.awake(state.life))
        return self._at(state, state.round + 1)._replace(exchanging=False)

    def _at(self, state: State, r: int) -> State:
        """The state at a later round; what is known of those before it is forgotten."""
        return state._replace(
            round=r,
            facts=frozenset(fact for fact in state.facts if fact[1] >= r),
            tallies=frozenset(entry for entry in state.tallies if entry[0] >= r),
        )

    # what follows from what is known

    def _settle(self, state: State, actions: list[Action]) -> State:
        """Applies the rules until none has anything more to do; an exchange or the end is the last action."""
        if state.life.over or state.exchanging:
            return state
        if not state.life.aborted or state.life.woken:
            state = state._replace(life=self.lifecycle.gather(state.life, state.arrived, actions))
        state = self._pass_alone(state)
        if state.life.over:
            return state
        if self._is_gathered(state):
            return self._enter(state, self.lifecycle.called_to(state.life), actions)
        if state.life.aborted and not state.life.woken:
            return self._wind_up(state, actions)
        return self._sync_round(state, actions) if self.plan.is_sync(state.round) else self._round(state, actions)

    def _pass_alone(self, state: State) -> State:
        """Passes the rounds in which this worker is alone, as far as its trainer has come, or others call."""
        r = state.round
        while self.is_alone(r):
            here = state._replace(round=r)
            if not self._served(here, r) and not self._later_activated(here):
                break
            r += 1
        return state if r == state.round else self._at(state, r)

    def _is_gathered(self, state: State) -> bool:
        """Whether the engine enters, or is in, what all are woken to: it has executed what others have arrived at."""
        return state.life.woken is not None and state.round > state.life.woken.newest

    def _wind_up(self, state: State, actions: list[Action]) -> State:
        """After a failure: enters what it has promised if all others have promised it too, and ends.

        A peer may have entered already; and since messages of one sender arrive in order, all members learn the
        same of each other: a promise before the ABORT, or an ABORT without one.
        """
        r = state.round
        if self.plan.is_sync(r):
            promised, given = (Kind.READY, r, self.worker) in state.facts, bool(self._known(state, (Kind.GO,), r))
            waits = promised and not given and 0 not in state.life.aborted
            if promised and given:
                return self._enter(state, self._sync_exchange(state), actions)
        else:
            standing = self._standing(state, r)
            promised = self.worker in standing
            if promised and self._all_ready(state, r):
                return self._enter(state, Exchange(r, self._group(r)), actions)
            missing = set(self._peers(r)) - standing
            waits = promised and not missing & state.life.aborted
        if waits or self.lifecycle.waits_to_wake(state.life):
            return state
        return state._replace(life=self.lifecycle.end(state.life, actions))

    def _enter(self, state: State, action: Exchange | GlobalMean | Barrier, actions: list[Action]) -> State:
        actions.append(action)
        return state._replace(exchanging=True)

    def _round(self, state: State, actions: list[Action]) -> State:
        r = state.round
        if self._served(state, r):
            state = self._say(state, Kind.ARRIVED, r, self._peers(r), actions)
        if not self._activated(state, r) and self._later_activated(state):
            state = self._say(state, Kind.FORCE, r, self._peers(r), actions)
        if not self._activated(state, r):
            return state
        if self.worker not in self._standing(state, r):
            state = self._say(state, Kind.READY, r, self._peers(r), actions)
        if not self._all_ready(state, r):
            return state
        return self._enter(state, Exchange(r, self._group(r)), actions)

    def _sync_round(self, state: State, actions: list[Action]) -> State:
        k = state.round
        if not self._served(state, k):
            return state
        state = self._call(state, k, self.worker, actions)
        own = added(tally for r, sender, tally in state.tallies if (r, sender) == (k, self.worker))
        state = self._say(state, Kind.READY, k, () if self.worker == 0 else (0,), actions, own)
        if self.worker == 0:
            if not self._known(state, (Kind.READY,), k).issuperset(self._everyone):
                return state
            state = self._say(state, Kind.GO, k, self._everyone[1:], actions, self._sync_exchange(state).tally)
        elif not self._known(state, (Kind.GO,), k):
            return state
        return self._enter(state, self._sync_exchange(state), actions)

    def _sync_exchange(self, state: State) -> Exchange:
        """The exchange of the current round; worker 0 adds up the tallies, and the others have its sums."""
        k, is_first = state.round, self.worker == 0
        tallies = [tally for r, sender, tally in state.tallies if r == k and (is_first or sender == 0)]
        return Exchange(k, self._everyone, added(tallies))

    def _served(self, state: State, r: int) -> bool:
        """Whether the trainer counts as arrived at round r."""
        life = state.life
        heard = state.heard if life.woken is None else max(state.heard, life.woken.newest)
        return state.arrived >= r or (life.resting != Rest.NONE and heard >= r)

    def _activated(self, state: State, r: int) -> bool:
        planned, arrivals = self._planned(r), self._known(state, (Kind.ARRIVED,), r)
        called = len(arrivals) >= planned.quorum if planned.initiator is None else planned.initiator in arrivals
        return called or bool(self._known(state, (Kind.FORCE,), r))

    def _later_activated(self, state: State) -> bool:
        if self.clock == "round" and state.called > state.round:
            return True
        later = {r for kind, r, _ in state.facts if r > state.round and not self.plan.is_sync(r)}
        return any(self._activated(state, r) for r in later)

    def _all_ready(self, state: State, r: int) -> bool:
        return self._standing(state, r).issuperset(self._peers(r))

    def _standing(self, state: State, r: int) -> set[int]:
        return self._known(state, (Kind.ARRIVED, Kind.FORCE, Kind.READY), r)

    # messages

    def _call(self, state: State, k: int, source: int, actions: list[Action]) -> State:
        """Passes SYNC(k) on, once, to the neighbours in the hypercube but the one it came from."""
        if k <= state.called:
            return state
        neighbours = (self.worker ^ (1 << i) for i in range(self.num_workers.bit_length()))
        told = [worker for worker in neighbours if worker < self.num_workers and worker != source]
        actions.extend(Send(worker, Message(Kind.SYNC, k)) for worker in told)
        return state._replace(called=k)

    def _say(
        self, state: State, kind: Kind, r: int, dests: Iterable[int], actions: list[Action], tally: Tally = ()
    ) -> State:
        """Sends a message, once, and knows it as well."""
        fact = (kind, r, self.worker)
        if fact in state.facts:
            return state
        actions.extend(Send(dest, Message(kind, r, tally=tally)) for dest in dests)
        return state._replace(facts=state.facts | {fact})

    def _known(self, state: State, kinds: tuple[Kind, ...], r: int) -> set[int]:
        return {worker for kind, of, worker in state.facts if of == r and kind in kinds}

    def _planned(self, r: int) -> Step:
        return self.plan.step(self.worker, r)

    def _group(self, r: int) -> tuple[int, ...]:
        return self._planned(r).members

    def _peers(self, r: int) -> tuple[int, ...]:
        return tuple(worker for worker in self._group(r) if worker != self.worker)

    @property
    def _everyone(self) -> tuple[int, ...]:
        return tuple(range(self.num_workers))
