"""Rest, waking, failure and the end of a worker: what is the same for every machine.

- *Rest.* A trainer inside of ``consensus``, ``meet`` or ``close`` rests, while its engine serves those who still train.
  Once all below it in the ``tree`` rest as well, an engine tells its parent, by REST. When all rest alike, worker 0
  wakes all, by WAKE, which is passed down the tree: to the global mean of ``consensus`` or the barrier of ``meet``,
  which nobody leaves before all have entered, or to their ends.
- *The same round.* WAKE says at which round anybody's trainer has arrived last. A machine of rounds executes all up to
  that one before it wakes, so that afterwards all workers stand at the same round.
- *Failure.* Whoever fails says ABORT, and so does whoever hears it: to its neighbours in the hypercube, by whom all
  hear of it, and to its peers, who want to know whether this one keeps a promise of its own.
- *Promises.* REST and the READY of a sync round promise in the name of all below. Who has sent one waits for its
  answer, WAKE or GO, since others may have got theirs. It gives up once it knows that there is none: an engine that
  fails before it has promised says so with its ABORT, which is ``final`` then, and whoever learns it passes it on, by a
  second ABORT if need be. Whoever has been woken goes through with it although it has failed, since others may be
  inside already.

Why a final ABORT cannot be about something that has passed: nobody completes a sync round, a global mean or a barrier
before all have entered it. So while one waits for an answer, nobody can have failed after what the answer starts.

Everything here is a function of ``Life``, the part of a machine's state that it concerns.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

from wagma_jax.protocol import tree
from wagma_jax.protocol.messages import (
    Action,
    Barrier,
    Fail,
    GlobalMean,
    Kind,
    Message,
    Rest,
    Retire,
    Send,
    Shutdown,
    Tally,
    added,
)


class Resting(NamedTuple):
    """A trainer that rests, with all below it in the tree: what its engine tells its parent.

    Attributes:
        worker: Whose.
        rest: Why.
        arrived: The newest round that any of them has arrived at.
        tally: What they add to the sums of a meeting.
    """

    worker: int
    rest: Rest
    arrived: int
    tally: Tally


class Woken(NamedTuple):
    """How all are woken.

    Attributes:
        rest: From what.
        newest: The newest round that any trainer has arrived at: it is executed before.
        tally: The sums of a meeting.
    """

    rest: Rest
    newest: int
    tally: Tally


class Life(NamedTuple):
    """Where an engine is between its start and its end.

    Attributes:
        resting: Why the own trainer rests.
        tally: What the own trainer has brought to its rest.
        rested: The own trainer, if it rests, and the children that have told so.
        told: Whether the parent has been told that all here and below rest.
        woken: How all are woken, once that is known.
        pledged: Whether the parent has been told that all here and below are ready for a sync round that has not begun.
        aborted: The workers, this one among them, that have said to this one that they promise nothing any more.
        final: Whether nobody will be woken, and no sync round executed; the neighbours know it as well.
        over: Whether the engine has ended.
    """

    resting: Rest = Rest.NONE
    tally: Tally = ()
    rested: frozenset[Resting] = frozenset()
    told: bool = False
    woken: Woken | None = None
    pledged: bool = False
    aborted: frozenset[int] = frozenset()
    final: bool = False
    over: bool = False


@dataclasses.dataclass(frozen=True)
class Lifecycle:
    """The rules of one worker's life.

    Attributes:
        worker: This worker.
        num_workers: How many there are.
        peers: Those whose machines may wait for a promise of this one's own, and must hear of its failure from itself;
            None: all.
    """

    worker: int
    num_workers: int
    peers: tuple[int, ...] | None = None

    def retire(self, life: Life, event: Retire) -> Life:
        """The own trainer begins to rest."""
        assert life.resting == Rest.NONE, "a trainer rests once at a time"
        return life._replace(resting=event.rest, tally=event.tally)

    def abort(self, life: Life, text: str, actions: list[Action]) -> Life:
        """This worker has failed, or has heard that another one has; it says so once."""
        if self.worker in life.aborted:
            return life
        promised = life.told or life.pledged or life.woken is not None
        final = life.final or not promised
        message = Message(Kind.ABORT, 0, text=text, final=final)
        actions.extend(Send(worker, message) for worker in self.listeners)
        return life._replace(aborted=life.aborted | {self.worker}, final=final)

    def receive(self, life: Life, source: int, message: Message, actions: list[Action]) -> Life:
        """A message of the kinds REST, WAKE or ABORT."""
        if message.kind == Kind.REST:
            resting = Resting(source, message.rest, message.round, message.tally)
            return life._replace(rested=life.rested | {resting})
        if message.kind == Kind.WAKE:
            return self._woken(life, Woken(message.rest, message.round, message.tally), actions)
        assert message.kind == Kind.ABORT, message
        life = life._replace(aborted=life.aborted | {source})
        if self.worker in life.aborted:
            return self._give_up(life, message.text, actions) if message.final else life
        actions.append(Fail(message.text))
        return self.abort(life._replace(final=message.final), message.text, actions)

    def gather(self, life: Life, arrived: int, actions: list[Action]) -> Life:
        """Tells the parent that all here and below rest; worker 0 wakes all, and everyone ends if that is why.

        Args:
            life: Of an engine that has not failed, or has been woken.
            arrived: The newest round that the own trainer has arrived at.
            actions: Where actions are added.
        """
        if life.resting != Rest.NONE and not life.told and life.woken is None:
            own = Resting(self.worker, life.resting, arrived, life.tally)
            life = life._replace(rested=life.rested | {own})
            if len(life.rested) == 1 + len(self._children):
                life = self._tell(life, actions)
        if life.woken is not None and life.woken.rest == Rest.CLOSE:
            life = self.end(life, actions)
        return life

    def _tell(self, life: Life, actions: list[Action]) -> Life:
        """All here and below rest."""
        if len({resting.rest for resting in life.rested}) > 1:
            text = _unlike(life.rested)
            actions.append(Fail(text))
            return self.abort(life, text, actions)
        if self.worker == 0:
            return self._wake(life, actions)
        below = self._summary(life)
        message = Message(Kind.REST, below.newest, below.rest, below.tally)
        actions.append(Send(tree.parent(self.worker), message))
        return life._replace(told=True)

    def _wake(self, life: Life, actions: list[Action]) -> Life:
        """Worker 0 wakes all."""
        return self._woken(life, self._summary(life), actions)

    def _summary(self, life: Life) -> Woken:
        newest = max(resting.arrived for resting in life.rested)
        return Woken(life.resting, newest, added(resting.tally for resting in life.rested))

    def _woken(self, life: Life, woken: Woken, actions: list[Action]) -> Life:
        message = Message(Kind.WAKE, woken.newest, woken.rest, woken.tally)
        actions.extend(Send(child, message) for child in self._children)
        return life._replace(woken=woken)

    def called_to(self, life: Life) -> GlobalMean | Barrier:
        """What a woken engine enters once it stands where all do."""
        assert life.woken is not None
        assert life.woken.rest in (Rest.CONSENSUS, Rest.MEET)
        return GlobalMean() if life.woken.rest == Rest.CONSENSUS else Barrier(life.woken.tally)

    def awake(self, life: Life) -> Life:
        """What it has entered is over: the own trainer goes on."""
        return life._replace(resting=Rest.NONE, tally=(), woken=None, rested=frozenset(), told=False)

    def waits_to_wake(self, life: Life) -> bool:
        """Whether an engine that has failed must wait for its parent, by whom others may be woken."""
        return life.told and life.woken is None and not life.final

    def missing(self, life: Life) -> tuple[int, ...]:
        """For whom a meeting waits, as far as this engine knows; they may be asked in turn. Itself, if it trains on."""
        if life.woken is not None:
            return ()
        if life.told:
            return self.and_first((tree.parent(self.worker),))
        rested = {resting.worker for resting in life.rested}
        own = (self.worker,) if life.resting == Rest.NONE else ()
        return self.and_first(own + tuple(child for child in self._children if child not in rested))

    def and_first(self, workers: tuple[int, ...]) -> tuple[int, ...]:
        """These, and worker 0: if it is asked who is missing, and those in turn, everybody is found."""
        return workers if self.worker == 0 or 0 in workers else (*workers, 0)

    def end(self, life: Life, actions: list[Action]) -> Life:
        """Nobody counts on this engine any more."""
        if life.aborted and life.woken is None:
            life = self._give_up(life, "", actions)
        actions.append(Shutdown())
        return life._replace(over=True)

    def _give_up(self, life: Life, text: str, actions: list[Action]) -> Life:
        """An engine that has failed knows that nobody will be woken: it says so, unless it has."""
        if not life.final:
            message = Message(Kind.ABORT, 0, text=text, final=True)
            actions.extend(Send(worker, message) for worker in self._neighbours)
        return life._replace(final=True)

    @functools.cached_property
    def listeners(self) -> list[int]:
        """Whom this worker tells that it has failed."""
        peers = range(self.num_workers) if self.peers is None else self.peers
        return sorted({*self._neighbours, *peers} - {self.worker})

    @functools.cached_property
    def _children(self) -> tuple[int, ...]:
        return tree.children(self.worker, self.num_workers)

    @functools.cached_property
    def _neighbours(self) -> tuple[int, ...]:
        return tree.neighbours(self.worker, self.num_workers)


def _unlike(rested: Iterable[Resting]) -> str:
    calls = "; ".join(f"rank {resting.worker} called {resting.rest.name.lower()}()" for resting in sorted(rested))
    return (
        "consensus() and meet() must be called equally often and in the same order by all ranks, and then close(): "
        f"{calls}"
    )
