"""Rest, waking, failure and the end of a worker: what is the same for every machine.

- *Rest.* A trainer inside of ``consensus``, ``meet`` or ``close`` rests, while its engine serves those who still train.
  Each engine tells worker 0, by REST, and when all rest alike, worker 0 wakes all, by WAKE: to the global mean of
  ``consensus`` or the barrier of ``meet``, which nobody leaves before all have entered, or to their ends.
- *The same round.* WAKE says at which round anybody's trainer has arrived last. A machine of rounds executes all up to
  that one before it wakes, so that afterwards all workers stand at the same round.
- *Failure.* Whoever fails says ABORT to all, and so does whoever hears it. Who rests has promised to wake: it waits for
  WAKE, or for an ABORT of worker 0, which says that there will be no WAKE. Whoever has been woken goes through with it
  although it has failed, since others may be inside already.

Everything here is a function of ``Life``, the part of a machine's state that it concerns.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

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
    """A trainer that rests, as worker 0 knows it.

    Attributes:
        worker: Whose.
        rest: Why.
        arrived: The newest round that it has arrived at.
        tally: What it adds to the sums of a meeting.
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
        rested: The trainers that rest: on worker 0 all that it has heard of, elsewhere the own one once it was told.
        woken: How all are woken, once that is known.
        aborted: The workers, this one among them, that promise nothing any more.
        over: Whether the engine has ended.
    """

    resting: Rest = Rest.NONE
    tally: Tally = ()
    rested: frozenset[Resting] = frozenset()
    woken: Woken | None = None
    aborted: frozenset[int] = frozenset()
    over: bool = False


@dataclasses.dataclass(frozen=True)
class Lifecycle:
    """The rules of one worker's life.

    Attributes:
        worker: This worker.
        num_workers: How many there are.
    """

    worker: int
    num_workers: int

    def retire(self, life: Life, event: Retire) -> Life:
        """The own trainer begins to rest."""
        assert life.resting == Rest.NONE, "a trainer rests once at a time"
        return life._replace(resting=event.rest, tally=event.tally)

    def abort(self, life: Life, text: str, actions: list[Action]) -> Life:
        """This worker has failed, or has heard that another one has."""
        actions.extend(Send(worker, Message(Kind.ABORT, 0, text=text)) for worker in self._others)
        return life._replace(aborted=life.aborted | {self.worker})

    def receive(self, life: Life, source: int, message: Message, actions: list[Action]) -> Life:
        """A message of the kinds REST, WAKE or ABORT."""
        if message.kind == Kind.REST:
            resting = Resting(source, message.rest, message.round, message.tally)
            return life._replace(rested=life.rested | {resting})
        if message.kind == Kind.WAKE:
            return life._replace(woken=Woken(message.rest, message.round, message.tally))
        assert message.kind == Kind.ABORT, message
        if self.worker not in life.aborted:
            actions.append(Fail(message.text))
            life = self.abort(life, message.text, actions)
        return life._replace(aborted=life.aborted | {source})

    def gather(self, life: Life, arrived: int, actions: list[Action]) -> Life:
        """Tells worker 0 that the own trainer rests; worker 0 wakes all when all do, and everyone ends if that is why.

        Args:
            life: Of an engine that has not failed, or has been woken.
            arrived: The newest round that the own trainer has arrived at.
            actions: Where actions are added.
        """
        if life.resting != Rest.NONE:
            own = Resting(self.worker, life.resting, arrived, life.tally)
            if own not in life.rested:
                life = life._replace(rested=life.rested | {own})
                if self.worker != 0:
                    actions.append(Send(0, Message(Kind.REST, arrived, own.rest, own.tally)))
        if self.worker == 0 and len(life.rested) == self.num_workers and life.woken is None:
            life = self._wake(life, actions)
        if life.woken is not None and life.woken.rest == Rest.CLOSE:
            life = self.end(life, actions)
        return life

    def _wake(self, life: Life, actions: list[Action]) -> Life:
        kinds = {resting.rest for resting in life.rested}
        if len(kinds) > 1:
            text = _unlike(life.rested)
            actions.append(Fail(text))
            return self.abort(life, text, actions)
        (rest,) = kinds
        newest = max(resting.arrived for resting in life.rested)
        tally = added(resting.tally for resting in life.rested)
        actions.extend(Send(worker, Message(Kind.WAKE, newest, rest, tally)) for worker in self._others)
        return life._replace(woken=Woken(rest, newest, tally))

    def called_to(self, life: Life) -> GlobalMean | Barrier:
        """What a woken engine enters once it stands where all do."""
        assert life.woken is not None
        assert life.woken.rest in (Rest.CONSENSUS, Rest.MEET)
        return GlobalMean() if life.woken.rest == Rest.CONSENSUS else Barrier(life.woken.tally)

    def awake(self, life: Life) -> Life:
        """What it has entered is over: the own trainer goes on."""
        return life._replace(resting=Rest.NONE, tally=(), woken=None, rested=frozenset())

    def waits_to_wake(self, life: Life) -> bool:
        """Whether an engine that has failed must wait for worker 0, who may have woken the others."""
        told = any(resting.worker == self.worker for resting in life.rested)
        return told and life.woken is None and 0 not in life.aborted

    def missing(self, life: Life) -> tuple[int, ...]:
        """For whom a resting engine waits: whoever waits for worker 0 alone may ask it."""
        if life.woken is not None:
            return ()
        if self.worker != 0:
            return (0,)
        rested = {resting.worker for resting in life.rested}
        return tuple(worker for worker in range(self.num_workers) if worker not in rested)

    def end(self, life: Life, actions: list[Action]) -> Life:
        """Nobody counts on this engine any more."""
        actions.append(Shutdown())
        return life._replace(over=True)

    @property
    def _others(self) -> list[int]:
        return [worker for worker in range(self.num_workers) if worker != self.worker]


def _unlike(rested: Iterable[Resting]) -> str:
    calls = "; ".join(f"rank {resting.worker} called {resting.rest.name.lower()}()" for resting in sorted(rested))
    return (
        "consensus() and meet() must be called equally often and in the same order by all ranks, and then close(): "
        f"{calls}"
    )
