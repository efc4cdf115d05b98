"""Which worker takes part in which exchange, and when: a pure state machine, (state, event) -> (state, actions).

Every worker has a *trainer*, which computes and arrives at rounds, and an *engine*, which runs this machine, sends its
messages and performs its exchanges. No MPI, threads, clocks or arrays here. The rules and the failures that each
prevents:

- *Activation.* An engine tells its group ARRIVED(r) when its trainer arrives at its current round r. Round r is
  activated at an engine that knows of ``quorum`` arrivals (of all, in a group smaller than that) or of a FORCE(r).
- *Order.* Rounds are executed strictly in order. An engine at which a later round is activated first sends FORCE(r) to
  the group of its current round r: without it the group of the later round would wait for the trainers of this one.
- *Readiness.* An exchange is entered when every member is known to stand at its round. ARRIVED and FORCE say so, and
  READY does for the others. So nobody ever waits inside an exchange, where a wait has no time limit.
- *Sync rounds.* All trainers must arrive: READY goes to worker 0, whose GO starts the exchange. SYNC(k), from whoever
  arrives first, spreads over the hypercube of workers.
- *Tallies.* READY and GO of a sync round carry the trainers' tallies to worker 0, and their sums back.
- *Resting.* The trainer of a worker inside ``consensus``, ``meet`` or ``close`` counts as arrived at every round up to
  the newest that its engine has heard of: the engine serves those who still train. When all rest, worker 0 wakes all at
  once, to their ends or to the global mean of ``consensus`` or the barrier of ``meet``. Before these the engines
  execute all rounds that anybody has arrived at, so that all workers stand at the same round; and nobody leaves them
  before all have entered.
- *Failing.* Whoever fails says ABORT to all, and so does whoever hears it. What was promised before (by ARRIVED, FORCE,
  READY) is kept if all members have promised, since one of them may be inside the exchange already.
- *Clocks.* By ``clock="step"`` a trainer arrives at one round after the other. By ``clock="round"`` it jumps to the
  newest complete round, or to the sync round after it; SYNC(k) completes all rounds before k and calls trainers to k.

Reference: Li et al., TPDS 2021, algorithm 2; readiness, FORCE, resting and the round clock are additions.
"""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Iterable
from typing import Literal, NamedTuple

from wagma_jax.schedule import GroupSchedule

Clock = Literal["step", "round"]


class Kind(enum.IntEnum):
    """What a message says."""

    ARRIVED = 0  # the sender stands at the round, and its trainer has arrived there
    FORCE = 1  # the sender stands at the round, which is to be executed whoever has arrived
    READY = 2  # the sender stands at the round; to its group, or to worker 0 at a sync round
    SYNC = 3  # some trainer has arrived at the sync round
    GO = 4  # from worker 0: all are ready for the sync round
    REST = 5  # to worker 0: the sender's trainer rests, and has last arrived at the round
    WAKE = 6  # from worker 0: all trainers rest alike, and have last arrived at the round
    ABORT = 7  # the sender has failed, or knows of one that has; it promises nothing any more


class Rest(enum.IntEnum):
    """Why a trainer rests."""

    NONE = 0
    CONSENSUS = 1
    MEET = 2
    CLOSE = 3


Tally = tuple[int, ...]
"""Integers that are added up over the workers; a shorter one goes on with zeros."""


class Message(NamedTuple):
    """A control message.

    Attributes:
        kind: What it says.
        round: Of which round.
        rest: Why the trainer rests, or all trainers do.
        tally: The sender's with READY at a sync round and with REST; the sums with GO and WAKE.
        text: Why, for ABORT.
    """

    kind: Kind
    round: int
    rest: Rest = Rest.NONE
    tally: Tally = ()
    text: str = ""


# events


class Arrive(NamedTuple):
    """The trainer has published its model for ``round`` and waits for that round, or is late for it.

    ``tally`` is what it adds to the sums of the round, if that is a sync round.
    """

    round: int
    tally: Tally = ()


class Receive(NamedTuple):
    """A message from another worker."""

    source: int
    message: Message


class Completed(NamedTuple):
    """The exchange that was asked for last is over."""


class Retire(NamedTuple):
    """The trainer rests; ``tally`` is what it adds to the sums of a ``meet``."""

    rest: Rest
    tally: Tally = ()


class Abort(NamedTuple):
    """This worker has failed: by an exception in its trainer or its engine."""

    text: str


Event = Arrive | Receive | Completed | Retire | Abort

# actions


class Send(NamedTuple):
    """Send a message."""

    dest: int
    message: Message


class Exchange(NamedTuple):
    """Exchange models with the group. No event but Completed is handed in before it is over.

    ``tally``: the sums of a sync round.
    """

    round: int
    group: tuple[int, ...]
    tally: Tally = ()


class GlobalMean(NamedTuple):
    """Exchange the models handed to ``consensus`` among all. No event but Completed is handed in before it is over."""


class Barrier(NamedTuple):
    """Wait until all have entered: the end of ``meet``. No event but Completed is handed in before it is over.

    ``tally``: the sums of the meeting.
    """

    tally: Tally = ()


class Shutdown(NamedTuple):
    """The engine ends: all workers have closed, or it has failed and nobody counts on it any more."""


class Fail(NamedTuple):
    """The run has failed for the reason given; the engine goes on until nobody counts on it."""

    text: str


Action = Send | Exchange | GlobalMean | Barrier | Shutdown | Fail


class Resting(NamedTuple):
    """What worker 0 knows of a trainer that rests: why, its newest arrival and its tally."""

    worker: int
    rest: Rest
    arrived: int
    tally: Tally = ()


class Woken(NamedTuple):
    """How all are woken: from which rest, at the round after which newest one, and the sums of their tallies."""

    rest: Rest
    newest: int
    tally: Tally = ()


class State(NamedTuple):
    """What an engine knows.

    Attributes:
        round: The current round: all before it are complete here.
        arrived: The newest round that the own trainer has arrived at.
        heard: The newest round that any other trainer is known to have arrived at, or that was forced.
        called: The newest sync round that any trainer is known to have arrived at.
        resting: Why the own trainer rests.
        exchanging: Whether an exchange is in progress.
        facts: (kind, round, sender) of messages about rounds that are not complete, the own ones among them.
        tallies: (round, sender, tally) of sync rounds that are not complete; worker 0 sends the sums.
        restful: The tally with which the own trainer rests.
        rested: The trainers that rest: what worker 0 has heard, and the own one if worker 0 was told.
        woken: How all are woken, once that is known.
        aborted: The workers, this one among them, that promise nothing any more.
        over: Whether the engine has ended.
    """

    round: int = 0
    arrived: int = -1
    heard: int = -1
    called: int = -1
    resting: Rest = Rest.NONE
    exchanging: bool = False
    facts: frozenset[tuple[Kind, int, int]] = frozenset()
    tallies: frozenset[tuple[int, int, Tally]] = frozenset()
    restful: Tally = ()
    rested: frozenset[Resting] = frozenset()
    woken: Woken | None = None
    aborted: frozenset[int] = frozenset()
    over: bool = False


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The machine of one worker.

    Attributes:
        schedule: Who averages with whom.
        worker: This worker.
        quorum: How many arrivals start an exchange; at least 1.
        clock: What a trainer's call counts: its own steps, or everybody's rounds.
    """

    schedule: GroupSchedule
    worker: int
    quorum: int = 1
    clock: Clock = "step"

    def target(self, state: State, counter: int) -> int:
        """The round that the trainer's next call arrives at.

        Args:
            state: The engine's state. With ``clock="round"`` the call jumps to the newest complete round, or to the
                sync round if that is next: somebody arrives there within a step of its own, and would have to wait for
                another step of this worker's. It never jumps past an open sync round.
            counter: The round of the trainer's previous call, -1 before the first.
        """
        if self.clock == "step":
            return counter + 1
        if self.schedule.is_sync(state.round):
            return state.round
        return max(counter + 1, state.round - 1)

    def step(self, state: State, event: Event) -> tuple[State, list[Action]]:
        """The state after an event, and what to do, in order."""
        if state.over:
            return state, []
        actions: list[Action] = []
        if isinstance(event, Abort):
            state = self._abort(state, event.text, actions)
        elif isinstance(event, Arrive):
            state = self._arrived(state, event)
        elif isinstance(event, Retire):
            assert state.resting == Rest.NONE, "a trainer rests once at a time"
            state = state._replace(resting=event.rest, restful=event.tally)
        elif isinstance(event, Completed):
            state = self._completed(state)
        else:
            state = self._received(state, event.source, event.message, actions)
        return self._settle(state, actions), actions

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which this engine does not go on; whoever waits for worker 0 alone may ask it."""
        r = state.round
        if state.exchanging:
            return ()
        if state.resting != Rest.NONE and not self._served(state, r):
            if self.worker != 0:
                return (0,)
            rested = {resting.worker for resting in state.rested}
            return tuple(worker for worker in self._everyone if worker not in rested)
        if self.schedule.is_sync(r):
            if not self._served(state, r):
                return (self.worker,)
            if self.worker != 0:
                return (0,)
            ready = self._known(state, (Kind.READY,), r)
            return tuple(worker for worker in self._everyone if worker not in ready)
        standing = self._standing(state, r) if self._activated(state, r) else self._known(state, (Kind.ARRIVED,), r)
        return tuple(peer for peer in self._group(r) if peer not in standing)

    # what happened

    def _arrived(self, state: State, event: Arrive) -> State:
        state = state._replace(arrived=max(state.arrived, event.round))
        return self._add_tally(state, event.round, self.worker, event.tally)

    def _add_tally(self, state: State, r: int, sender: int, tally: Tally) -> State:
        if not tally or r < state.round or not self.schedule.is_sync(r):
            return state
        return state._replace(tallies=state.tallies | {(r, sender, tally)})

    def _received(self, state: State, source: int, message: Message, actions: list[Action]) -> State:
        kind, r = message.kind, message.round
        if kind == Kind.ABORT:
            if self.worker not in state.aborted:
                actions.append(Fail(message.text))
                state = self._abort(state, message.text, actions)
            return state._replace(aborted=state.aborted | {source})
        if kind == Kind.REST:
            return state._replace(rested=state.rested | {Resting(source, message.rest, r, message.tally)})
        if kind == Kind.WAKE:
            return self._woken(state, Woken(message.rest, r, message.tally))
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
            return state._replace(exchanging=False, resting=Rest.NONE, restful=(), woken=None, rested=frozenset())
        r = state.round + 1
        return state._replace(
            exchanging=False,
            round=r,
            facts=frozenset(fact for fact in state.facts if fact[1] >= r),
            tallies=frozenset(entry for entry in state.tallies if entry[0] >= r),
        )

    # what follows from what is known

    def _settle(self, state: State, actions: list[Action]) -> State:
        """Applies the rules until none has anything more to do; an exchange or the end is the last action."""
        if state.over or state.exchanging:
            return state
        if not state.aborted or state.woken:
            state = self._rest(state, actions)
        if state.aborted and not state.woken:
            return self._wind_up(state, actions)
        if state.over or state.exchanging:
            return state
        return self._sync_round(state, actions) if self.schedule.is_sync(state.round) else self._round(state, actions)

    def _rest(self, state: State, actions: list[Action]) -> State:
        if state.resting != Rest.NONE:
            state = self._tell_rest(state, actions)
        if self.worker == 0 and len(state.rested) == self.schedule.num_workers and state.woken is None:
            kinds = {resting.rest for resting in state.rested}
            if len(kinds) > 1:
                text = _unlike(state.rested)
                actions.append(Fail(text))
                return self._abort(state, text, actions)
            (rest,) = kinds
            newest = max(resting.arrived for resting in state.rested)
            woken = Woken(rest, newest, added(resting.tally for resting in state.rested))
            actions.extend(Send(worker, Message(Kind.WAKE, newest, rest, woken.tally)) for worker in self._others)
            state = self._woken(state, woken)
        if state.woken is not None and state.woken.rest == Rest.CLOSE:
            return self._end(state, actions)
        if self._is_gathered(state):
            assert state.woken is not None
            mean = state.woken.rest == Rest.CONSENSUS
            return self._enter(state, GlobalMean() if mean else Barrier(state.woken.tally), actions)
        return state

    def _tell_rest(self, state: State, actions: list[Action]) -> State:
        entry = self._own_rest(state)
        if entry in state.rested:
            return state
        if self.worker != 0:
            actions.append(Send(0, Message(Kind.REST, entry.arrived, entry.rest, entry.tally)))
        return state._replace(rested=state.rested | {entry})

    def _own_rest(self, state: State) -> Resting:
        return Resting(self.worker, state.resting, state.arrived, state.restful)

    def _woken(self, state: State, woken: Woken) -> State:
        """Before it wakes, the engine executes the rounds that anybody has arrived at: all stand at the same one."""
        return state._replace(woken=woken, heard=max(state.heard, woken.newest))

    def _is_gathered(self, state: State) -> bool:
        """Whether the engine enters, or is in, what all are woken to."""
        return state.woken is not None and state.round > state.woken.newest

    def _abort(self, state: State, text: str, actions: list[Action]) -> State:
        actions.extend(Send(worker, Message(Kind.ABORT, 0, text=text)) for worker in self._others)
        return state._replace(aborted=state.aborted | {self.worker})

    def _wind_up(self, state: State, actions: list[Action]) -> State:
        """After a failure: enters what it has promised if all others have promised it too, and ends.

        A peer may have entered already; and since messages of one sender arrive in order, all members learn the
        same of each other: a promise before the ABORT, or an ABORT without one. If worker 0 wakes all who rest, all
        get to know it, and go through with it before they wind up.
        """
        r = state.round
        if self.schedule.is_sync(r):
            promised, given = (Kind.READY, r, self.worker) in state.facts, bool(self._known(state, (Kind.GO,), r))
            waits = promised and not given and 0 not in state.aborted
            if promised and given:
                return self._enter(state, self._sync_exchange(state), actions)
        else:
            standing = self._standing(state, r)
            promised = self.worker in standing
            if promised and self._all_ready(state, r):
                return self._enter(state, Exchange(r, self._group(r)), actions)
            missing = set(self._peers(r)) - standing
            waits = promised and not missing & state.aborted
        if waits:
            return state
        if self._own_rest(state) in state.rested and 0 not in state.aborted:
            return state
        return self._end(state, actions)

    def _enter(self, state: State, exchange: Exchange | GlobalMean | Barrier, actions: list[Action]) -> State:
        actions.append(exchange)
        return state._replace(exchanging=True)

    def _end(self, state: State, actions: list[Action]) -> State:
        actions.append(Shutdown())
        return state._replace(over=True)

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
            state = self._say(state, Kind.GO, k, self._others, actions, self._sync_exchange(state).tally)
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
        return state.arrived >= r or (state.resting != Rest.NONE and state.heard >= r)

    def _activated(self, state: State, r: int) -> bool:
        arrivals = self._known(state, (Kind.ARRIVED,), r)
        return len(arrivals) >= min(self.quorum, len(self._group(r))) or bool(self._known(state, (Kind.FORCE,), r))

    def _later_activated(self, state: State) -> bool:
        if self.clock == "round" and state.called > state.round:
            return True
        later = {r for kind, r, _ in state.facts if r > state.round and not self.schedule.is_sync(r)}
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
        neighbours = (self.worker ^ (1 << i) for i in range(self.schedule.num_workers.bit_length()))
        told = [worker for worker in neighbours if worker < self.schedule.num_workers and worker != source]
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

    def _group(self, r: int) -> tuple[int, ...]:
        return _group_of(self.schedule, self.worker, r)

    def _peers(self, r: int) -> tuple[int, ...]:
        return tuple(worker for worker in self._group(r) if worker != self.worker)

    @property
    def _everyone(self) -> tuple[int, ...]:
        return tuple(range(self.schedule.num_workers))

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple(worker for worker in self._everyone if worker != self.worker)


@functools.lru_cache(maxsize=256)
def _group_of(schedule: GroupSchedule, worker: int, r: int) -> tuple[int, ...]:
    return schedule.group_of(worker, r)


def added(tallies: Iterable[Tally]) -> Tally:
    """The sums of tallies by position; shorter ones go on with zeros."""
    return tuple(map(sum, itertools.zip_longest(*tallies, fillvalue=0)))


def _unlike(rested: Iterable[Resting]) -> str:
    calls = "; ".join(f"rank {resting.worker} called {resting.rest.name.lower()}()" for resting in sorted(rested))
    return (
        "consensus() and meet() must be called equally often and in the same order by all ranks, and then close(): "
        f"{calls}"
    )
