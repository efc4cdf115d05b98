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
- *Resting.* The trainer of a worker inside ``consensus`` or ``close`` counts as arrived at every round up to the newest
  that its engine has heard of: the engine serves those who still train. When all rest, worker 0 wakes all at once: into
  the exchange of ``consensus``, which nobody leaves before all have entered, or to their ends.
- *Failing.* Whoever fails says ABORT to all, and so does whoever hears it. What was promised before (by ARRIVED, FORCE,
  READY) is kept if all members have promised, since one of them may be inside the exchange already.
- *Clocks.* By ``clock="step"`` a trainer arrives at one round after the other. By ``clock="round"`` it jumps to the
  newest complete round, or to the sync round after it; SYNC(k) completes all rounds before k and calls trainers to k.

Reference: Li et al., TPDS 2021, algorithm 2; readiness, FORCE, resting and the round clock are additions.
"""

import dataclasses
import enum
import functools
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
    REST = 5  # to worker 0: the sender's trainer rests; the round field holds the Rest
    WAKE = 6  # from worker 0: all trainers rest alike; the round field holds the Rest
    ABORT = 7  # the sender has failed, or knows of one that has; it promises nothing any more


class Rest(enum.IntEnum):
    """Why a trainer rests."""

    NONE = 0
    CONSENSUS = 1
    CLOSE = 2


class Message(NamedTuple):
    """A control message.

    Attributes:
        kind: What it says.
        round: Of which round (or which Rest).
        text: Why, for ABORT.
    """

    kind: Kind
    round: int
    text: str = ""


# events


class Arrive(NamedTuple):
    """The trainer has published its model for ``round`` and waits for that round, or is late for it."""

    round: int


class Receive(NamedTuple):
    """A message from another worker."""

    source: int
    message: Message


class Completed(NamedTuple):
    """The exchange that was asked for last is over."""


class Retire(NamedTuple):
    """The trainer rests."""

    rest: Rest


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
    """Exchange models with the group. No event but Completed is handed in before it is over."""

    round: int
    group: tuple[int, ...]


class Consensus(NamedTuple):
    """Exchange the models handed to ``consensus`` among all. No event but Completed is handed in before it is over."""


class Shutdown(NamedTuple):
    """The engine ends: all workers have closed, or it has failed and nobody counts on it any more."""


class Fail(NamedTuple):
    """The run has failed for the reason given; the engine goes on until nobody counts on it."""

    text: str


Action = Send | Exchange | Consensus | Shutdown | Fail


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
        rested: (worker, Rest) that worker 0 has heard of.
        woken: The rest from which all are to be woken.
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
    rested: frozenset[tuple[int, Rest]] = frozenset()
    woken: Rest = Rest.NONE
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
            state = state._replace(arrived=max(state.arrived, event.round))
        elif isinstance(event, Retire):
            assert state.resting == Rest.NONE, "a trainer rests once at a time"
            state = state._replace(resting=event.rest)
        elif isinstance(event, Completed):
            state = self._completed(state)
        else:
            state = self._received(state, event.source, event.message, actions)
        return self._settle(state, actions), actions

    def waits_for(self, state: State) -> tuple[int, ...]:
        """The workers without which this engine does not go on; whoever waits for worker 0 alone may ask it."""
        r = state.round
        if state.woken != Rest.NONE or state.exchanging:
            return ()
        if state.resting != Rest.NONE and not self._served(state, r):
            if self.worker != 0:
                return (0,)
            rested = {worker for worker, _ in state.rested}
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

    def _received(self, state: State, source: int, message: Message, actions: list[Action]) -> State:
        kind, r, _ = message
        if kind == Kind.ABORT:
            if self.worker not in state.aborted:
                actions.append(Fail(message.text))
                state = self._abort(state, message.text, actions)
            return state._replace(aborted=state.aborted | {source})
        if kind == Kind.REST:
            return state._replace(rested=state.rested | {(source, Rest(r))})
        if kind == Kind.WAKE:
            return state._replace(woken=Rest(r))
        if r < state.round:
            return state
        state = state._replace(heard=max(state.heard, r))
        if kind == Kind.SYNC:
            return self._call(state, r, source, actions)
        return state._replace(facts=state.facts | {(kind, r, source)})

    def _completed(self, state: State) -> State:
        assert state.exchanging
        if state.woken == Rest.CONSENSUS:
            return state._replace(exchanging=False, resting=Rest.NONE, woken=Rest.NONE, rested=frozenset())
        r = state.round + 1
        return state._replace(
            exchanging=False,
            round=r,
            facts=frozenset(fact for fact in state.facts if fact[1] >= r),
        )

    # what follows from what is known

    def _settle(self, state: State, actions: list[Action]) -> State:
        """Applies the rules until none has anything more to do; an exchange or the end is the last action."""
        if state.over or state.exchanging:
            return state
        if not state.aborted:
            state = self._rest(state, actions)
        if state.aborted:
            return self._wind_up(state, actions)
        if state.over or state.exchanging:
            return state
        return self._sync_round(state, actions) if self.schedule.is_sync(state.round) else self._round(state, actions)

    def _rest(self, state: State, actions: list[Action]) -> State:
        if state.resting != Rest.NONE:
            state = self._tell_rest(state, actions)
        if self.worker == 0 and len(state.rested) == self.schedule.num_workers and state.woken == Rest.NONE:
            kinds = {rest for _, rest in state.rested}
            if len(kinds) > 1:
                text = _unlike(state.rested)
                actions.append(Fail(text))
                return self._abort(state, text, actions)
            (rest,) = kinds
            actions.extend(Send(worker, Message(Kind.WAKE, rest)) for worker in self._others)
            state = state._replace(woken=rest)
        if state.woken == Rest.CONSENSUS:
            return self._enter(state, Consensus(), actions)
        if state.woken == Rest.CLOSE:
            return self._end(state, actions)
        return state

    def _tell_rest(self, state: State, actions: list[Action]) -> State:
        entry = (self.worker, state.resting)
        if entry in state.rested:
            return state
        if self.worker != 0:
            actions.append(Send(0, Message(Kind.REST, state.resting)))
        return state._replace(rested=state.rested | {entry})

    def _abort(self, state: State, text: str, actions: list[Action]) -> State:
        actions.extend(Send(worker, Message(Kind.ABORT, 0, text)) for worker in self._others)
        return state._replace(aborted=state.aborted | {self.worker})

    def _wind_up(self, state: State, actions: list[Action]) -> State:
        """After a failure: enters what it has promised if all others have promised it too, and ends.

        A peer may have entered already; and since messages of one sender arrive in order, all members learn the
        same of each other: a promise before the ABORT, or an ABORT without one.
        """
        r = state.round
        if self.schedule.is_sync(r):
            promised, given = (Kind.READY, r, self.worker) in state.facts, bool(self._known(state, (Kind.GO,), r))
            waits = promised and not given and 0 not in state.aborted
            if promised and given:
                return self._enter(state, Exchange(r, self._everyone), actions)
        else:
            standing = self._standing(state, r)
            promised = self.worker in standing
            if promised and self._all_ready(state, r):
                return self._enter(state, Exchange(r, self._group(r)), actions)
            missing = set(self._peers(r)) - standing
            waits = promised and not missing & state.aborted
        if waits:
            return state
        if (self.worker, state.resting) in state.rested:
            if state.woken == Rest.CONSENSUS:
                return self._enter(state, Consensus(), actions)
            if 0 not in state.aborted and state.woken == Rest.NONE:
                return state
        return self._end(state, actions)

    def _enter(self, state: State, exchange: Exchange | Consensus, actions: list[Action]) -> State:
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
        state = self._say(state, Kind.READY, k, () if self.worker == 0 else (0,), actions)
        if self.worker == 0:
            if not self._known(state, (Kind.READY,), k).issuperset(self._everyone):
                return state
            state = self._say(state, Kind.GO, k, self._others, actions)
        elif not self._known(state, (Kind.GO,), k):
            return state
        return self._enter(state, Exchange(k, self._everyone), actions)

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

    def _say(self, state: State, kind: Kind, r: int, dests: Iterable[int], actions: list[Action]) -> State:
        """Sends a message, once, and knows it as well."""
        fact = (kind, r, self.worker)
        if fact in state.facts:
            return state
        actions.extend(Send(dest, Message(kind, r)) for dest in dests)
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


def _unlike(rested: Iterable[tuple[int, Rest]]) -> str:
    calls = "; ".join(
        f"rank {worker} called {'consensus' if rest == Rest.CONSENSUS else 'close'}()"
        for worker, rest in sorted(rested)
    )
    return f"consensus() must be called equally often by all ranks, and then close(): {calls}"
