"""The machine of rounds: groups exchange models, the first to arrive starts its group, and sync rounds include all.

The rules, and the failure that each prevents:

- *Activation.* An engine tells its group ARRIVED(r) when its trainer arrives at its current round r. Round r is
  activated at an engine that knows of the arrivals that start it (any ``quorum`` of them, or that of the initiator: see
  ``plan``) or of a FORCE(r).
- *Patience.* A trainer may wait for a quorum for a limited time. When it is over its engine sends FORCE(r).
- *Order.* Rounds are executed strictly in order. An engine at which a later round is activated first sends FORCE(r) to
  the group of its current round r. Without it the group of the later round would wait for the trainers of this one.
- *Readiness.* An exchange is entered when every member is known to stand at its round. ARRIVED and FORCE say so, and
  READY does for the others. So nobody ever waits inside of an exchange, where a wait has no time limit.
- *Rounds of one.* Where a worker is alone in its group nothing is exchanged, and no message is sent: the engine passes
  the round once its trainer has arrived at it, or where it would otherwise send FORCE.
- *Sync rounds.* All trainers must arrive. READY goes up the ``tree`` of workers, from each once all below it are ready,
  and worker 0 answers by GO, which is passed down and starts the exchange. READY carries the tallies of all below, and
  GO the sums. SYNC(k), from whoever arrives first, spreads over the hypercube of workers.
- *Resting.* A trainer that rests (see ``lifecycle``) counts as arrived at every round up to the newest that its engine
  has heard of, and when all are woken, up to the newest of all. It adds nothing to the sums of a sync round.
- *Failing.* Who has failed makes no new promises. What was promised before (by ARRIVED, FORCE, READY) is kept if all
  members have promised, since one of them may be inside of the exchange already. READY for a sync round waits for GO,
  or for a final ABORT (see ``lifecycle``).
- *Clocks.* With ``clock="step"`` a trainer arrives at one round after the other. With ``clock="round"`` it jumps to the
  newest complete round, or to the sync round after it; SYNC(k) completes all rounds before k and calls trainers to k.

Reference: Li et al., TPDS 2021, algorithm 2; readiness, FORCE, patience, resting and the round clock are additions.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wagma_jax.choices import Clock
from wagma_jax.protocol import tree
from wagma_jax.protocol.facts import Facts, mask_of, workers_of
from wagma_jax.protocol.lifecycle import Life, Lifecycle
from wagma_jax.protocol.messages import (
    Abort,
    Action,
    Arrive,
    Barrier,
    Completed,
    Event,
    Exchange,
    Expire,
    GlobalMean,
    Kind,
    Message,
    Rest,
    Retire,
    Send,
    Tally,
    added,
)
from wagma_jax.protocol.plan import Plan, Planned, planned_for


class State(NamedTuple):
    """What an engine knows.

    Attributes:
        round: The current round: all before it are complete here.
        arrived: The newest round that the own trainer has arrived at.
        heard: The newest round that any other trainer is known to have arrived at, or that was forced.
        called: The newest sync round that any trainer is known to have arrived at.
        expired: The newest round for whose quorum the own trainer does not wait any more.
        exchanging: Whether an exchange, global mean or barrier is in progress.
        facts: Who has said what about rounds that are not complete, this worker among them.
        tallies: The sums of tallies by sync round: over this worker and all below it in the tree, as far as they are
            ready; over all workers once GO is here.
        life: Rest, failure and the end.
    """

    round: int = 0
    arrived: int = -1
    heard: int = -1
    called: int = -1
    expired: int = -1
    exchanging: bool = False
    facts: Facts = Facts()
    tallies: tuple[tuple[int, Tally], ...] = ()
    life: Life = Life()


_CALM = Life()  # nobody rests, has failed or ends, as far as is known


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
        if self._planned(state.round).is_sync:
            return state.round
        return max(counter + 1, state.round - 1)

    def step(self, state: State, event: Event | Expire) -> tuple[State, list[Action]]:
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
        elif isinstance(event, Expire):
            state = state._replace(expired=max(state.expired, event.round))
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
        planned = self._planned(r)
        return not planned.is_sync and len(planned.members) == 1

    def passed_alone(self, state: State, r: int) -> State | None:
        """The state after the trainer has arrived at round r, if it is alone there and nothing is to be done.

        The same as ``step`` makes of it, in a fraction of the time where nothing else is known or going on.

        Args:
            state: The engine's state.
            r: The trainer's target.

        Returns:
            None where others are to be told, or have to be waited for.
        """
        if not self.is_alone(r):
            return None
        knows_nothing = not state.facts.entries and state.called <= r and state.heard <= r
        if knows_nothing and state.round == r and not state.exchanging and state.life == _CALM:
            return state._replace(round=r + 1, arrived=r)
        after, actions = self.step(state, Arrive(r))
        return None if actions or after.round <= r else after

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which this engine does not go on, as far as it knows; they may be asked in turn."""
        r = state.round
        if state.exchanging:
            return ()
        served = self._served(state, r)
        if state.life.resting != Rest.NONE and not served:
            return self.lifecycle.missing(state.life)
        if self._planned(r).is_sync:
            if state.life.pledged:
                return self.lifecycle.and_first((tree.parent(self.worker),))
            own = () if served else (self.worker,)
            missing = (*own, *workers_of(self._children & ~state.facts.who(r, Kind.READY)))
            return self.lifecycle.and_first(missing)
        initiator = self._planned(r).initiator
        if initiator is not None and not self._activated(state, r):
            return (initiator,)
        standing = self._standing(state, r) if self._activated(state, r) else state.facts.who(r, Kind.ARRIVED)
        return tuple(workers_of(self._planned(r).mask & ~standing))

    def is_patient(self, state: State) -> bool:
        """Whether the trainer has arrived at the current round, and may still wait for its quorum."""
        r = state.round
        return state.arrived == r and state.expired < r and not state.exchanging and not self._planned(r).is_sync

    @functools.cached_property
    def lifecycle(self) -> Lifecycle:
        """The rules of rest, failure and the end."""
        return Lifecycle(self.worker, self.num_workers, self.plan.peers(self.worker))

    # what happened

    def _arrived(self, state: State, event: Arrive) -> State:
        return self._add_tally(state._replace(arrived=max(state.arrived, event.round)), event.round, event.tally)

    def _add_tally(self, state: State, r: int, tally: Tally) -> State:
        if not tally or r < state.round or not self._planned(r).is_sync:
            return state
        return self._with_tally(state, r, added([_tally_of(state, r), tally]))

    def _with_tally(self, state: State, r: int, tally: Tally) -> State:
        return state._replace(tallies=(*(entry for entry in state.tallies if entry[0] != r), (r, tally)))

    def _received(self, state: State, source: int, message: Message, actions: list[Action]) -> State:
        kind, r = message.kind, message.round
        if r < state.round:
            return state
        heard = max(state.heard, r)
        if kind == Kind.SYNC:
            return self._call(state._replace(heard=heard), r, source, actions)
        state = state._replace(heard=heard, facts=state.facts.add(kind, r, source))
        if kind == Kind.GO:
            return self._go(state, message.tally, actions)
        return self._add_tally(state, r, message.tally)

    def _completed(self, state: State) -> State:
        assert state.exchanging
        if self._is_gathered(state):
            return state._replace(exchanging=False, life=self.lifecycle.awake(state.life))
        return self._at(state, state.round + 1)

    def _at(self, state: State, r: int) -> State:
        """The state at a later round, before its exchange; what is known of those before it is forgotten."""
        return state._replace(
            round=r,
            exchanging=False,
            facts=state.facts.since(r),
            tallies=tuple(entry for entry in state.tallies if entry[0] >= r),
        )

    # what follows from what is known

    def _settle(self, state: State, actions: list[Action]) -> State:
        """Applies the rules until none has anything more to do; an exchange or the end is the last action."""
        if state.life.over or state.exchanging:
            return state
        if not state.life.aborted or state.life.woken:
            life = self.lifecycle.gather(state.life, state.arrived, actions)
            state = state if life is state.life else state._replace(life=life)
        state = self._pass_alone(state)
        if state.life.over:
            return state
        if self._is_gathered(state):
            return self._enter(state, self.lifecycle.called_to(state.life), actions)
        if state.life.aborted and not state.life.woken:
            return self._wind_up(state, actions)
        return self._sync_round(state, actions) if self._planned(state.round).is_sync else self._round(state, actions)

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
        if self._planned(r).is_sync:
            if state.facts.who(r, Kind.GO):
                return self._enter(state, self._sync_exchange(state), actions)
            waits = state.life.pledged and not state.life.final
        else:
            standing = self._standing(state, r)
            promised = bool(standing >> self.worker & 1)
            if promised and self._all_ready(state, r):
                return self._enter(state, Exchange(r, self._planned(r).members), actions)
            missing = self._planned(r).mask & ~standing
            waits = promised and not missing & mask_of(state.life.aborted)
        if waits or self.lifecycle.waits_to_wake(state.life):
            return state
        return state._replace(life=self.lifecycle.end(state.life, actions))

    def _enter(self, state: State, action: Exchange | GlobalMean | Barrier, actions: list[Action]) -> State:
        actions.append(action)
        return state._replace(exchanging=True)

    def _round(self, state: State, actions: list[Action]) -> State:
        r = state.round
        if self._served(state, r):
            state = self._say(state, Kind.ARRIVED, r, self._planned(r).peers, actions)
        if not self._activated(state, r):
            if state.expired < r and not self._later_activated(state):
                return state
            state = self._say(state, Kind.FORCE, r, self._planned(r).peers, actions)
        if not self._standing(state, r) >> self.worker & 1:
            state = self._say(state, Kind.READY, r, self._planned(r).peers, actions)
        if not self._all_ready(state, r):
            return state
        return self._enter(state, Exchange(r, self._planned(r).members), actions)

    def _sync_round(self, state: State, actions: list[Action]) -> State:
        k = state.round
        if not self._served(state, k):
            return state
        state = self._call(state, k, self.worker, actions)
        is_waiting = state.life.pledged or state.facts.who(k, Kind.GO)
        if not is_waiting and not self._children & ~state.facts.who(k, Kind.READY):
            state = self._ready_below(state, actions)
        return self._enter(state, self._sync_exchange(state), actions) if state.facts.who(k, Kind.GO) else state

    def _ready_below(self, state: State, actions: list[Action]) -> State:
        """All here and below are ready for the current round: tells the parent; at worker 0 the round begins."""
        k = state.round
        tally = _tally_of(state, k)
        if self.worker == 0:
            return self._go(state._replace(facts=state.facts.add(Kind.GO, k, 0)), tally, actions)
        state = self._say(state, Kind.READY, k, (tree.parent(self.worker),), actions, tally)
        return state._replace(life=state.life._replace(pledged=True))

    def _go(self, state: State, tally: Tally, actions: list[Action]) -> State:
        """The current round begins, with the sums over all workers: passes GO on."""
        children = tree.children(self.worker, self.num_workers)
        actions.extend(Send(child, Message(Kind.GO, state.round, tally=tally)) for child in children)
        state = state._replace(life=state.life._replace(pledged=False))
        return self._with_tally(state, state.round, tally)

    def _sync_exchange(self, state: State) -> Exchange:
        """The exchange of the current round, with the sums that came with GO."""
        return Exchange(state.round, self._planned(state.round).members, _tally_of(state, state.round))

    def _served(self, state: State, r: int) -> bool:
        """Whether the trainer counts as arrived at round r."""
        life = state.life
        heard = state.heard if life.woken is None else max(state.heard, life.woken.newest)
        return state.arrived >= r or (life.resting != Rest.NONE and heard >= r)

    def _activated(self, state: State, r: int) -> bool:
        if not state.facts.entries:
            return False
        planned, arrivals = self._planned(r), state.facts.who(r, Kind.ARRIVED)
        initiator = planned.initiator
        called = arrivals.bit_count() >= planned.quorum if initiator is None else arrivals >> initiator & 1
        return bool(called or state.facts.who(r, Kind.FORCE))

    def _later_activated(self, state: State) -> bool:
        if self.clock == "round" and state.called > state.round:
            return True
        later = state.facts.rounds_after(state.round)
        return bool(later) and any(not self._planned(r).is_sync and self._activated(state, r) for r in later)

    def _all_ready(self, state: State, r: int) -> bool:
        return not self._planned(r).mask & ~self._standing(state, r) & ~(1 << self.worker)

    def _standing(self, state: State, r: int) -> int:
        return state.facts.who(r, Kind.ARRIVED, Kind.FORCE, Kind.READY)

    # messages

    def _call(self, state: State, k: int, source: int, actions: list[Action]) -> State:
        """Passes SYNC(k) on, once, to the neighbours in the hypercube but the one it came from."""
        if k <= state.called:
            return state
        told = [worker for worker in tree.neighbours(self.worker, self.num_workers) if worker != source]
        actions.extend(Send(worker, Message(Kind.SYNC, k)) for worker in told)
        return state._replace(called=k)

    def _say(
        self, state: State, kind: Kind, r: int, dests: Iterable[int], actions: list[Action], tally: Tally = ()
    ) -> State:
        """Sends a message, once, and knows it as well."""
        if state.facts.who(r, kind) >> self.worker & 1:
            return state
        actions.extend(Send(dest, Message(kind, r, tally=tally)) for dest in dests)
        return state._replace(facts=state.facts.add(kind, r, self.worker))

    @functools.cached_property
    def _planned(self) -> Callable[[int], Planned]:
        return planned_for(self.plan, self.worker)

    @functools.cached_property
    def _children(self) -> int:
        """The set of the children in the tree."""
        return mask_of(tree.children(self.worker, self.num_workers))


def _tally_of(state: State, r: int) -> Tally:
    return next((tally for of, tally in state.tallies if of == r), ())
