"""What engines tell each other, the events that happen to a machine, and the actions that it asks for."""

import enum
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

Tally = tuple[int, ...]
"""Integers that are added up over the workers; a shorter tally goes on with zeros."""


class Kind(enum.IntEnum):
    """What a message says."""

    ARRIVED = 0  # the sender stands at the round, and its trainer has arrived there
    FORCE = 1  # the sender stands at the round, which is to be executed whoever has arrived
    READY = 2  # the sender stands at the round; at a sync round to its parent: so do all below it in the tree
    SYNC = 3  # some trainer has arrived at the sync round
    GO = 4  # from the parent: all are ready for the sync round
    REST = 5  # to the parent: the sender's trainer rests and so do all below it; the newest round that any arrived at
    WAKE = 6  # from the parent: all trainers rest alike, and the newest arrival of any was at the round
    ABORT = 7  # the sender has failed, or knows of one that has; it promises nothing any more
    ASK = 8  # to a passive worker: the sender's model of its swap of this number, in the place of a round, is coming


class Rest(enum.IntEnum):
    """Why a trainer rests: inside of which call."""

    NONE = 0
    CONSENSUS = 1
    MEET = 2
    CLOSE = 3


class Message(NamedTuple):
    """A control message.

    Attributes:
        kind: What it says.
        round: Of which round; with ASK, of which swap.
        rest: With REST and WAKE: why the trainer rests, or all trainers do.
        tally: With READY (at a sync round) and REST the sums over the sender and all below it, with GO and WAKE those
            over all workers.
        text: With ABORT: why.
        final: With ABORT: the sender knows that nobody will be woken, and that no sync round will be executed.
    """

    kind: Kind
    round: int
    rest: Rest = Rest.NONE
    tally: Tally = ()
    text: str = ""
    final: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain numbers, for ``pickle``: by the names of its classes it would take five times as long."""
        if self[2:] == _DEFAULTS:
            return _message, (int(self.kind), self.round)
        return _message, (int(self.kind), self.round, int(self.rest), self.tally, self.text, self.final)


_DEFAULTS = Message(Kind.ARRIVED, 0)[2:]
_KINDS, _RESTS = tuple(Kind), tuple(Rest)  # by their values


def _message(kind: int, round_: int, rest: int = 0, *others: Any) -> Message:
    return Message(_KINDS[kind], round_, _RESTS[rest], *others)


def added(tallies: Iterable[Tally]) -> Tally:
    """The sums of tallies by position."""
    return tuple(map(sum, itertools.zip_longest(*tallies, fillvalue=0)))


# events


class Arrive(NamedTuple):
    """The trainer has published its model for ``round`` and waits for that round, or is late for it.

    Attributes:
        round: The round.
        tally: What the trainer adds to the sums of the round, if it is a sync round.
    """

    round: int
    tally: Tally = ()


class Receive(NamedTuple):
    """A message from another worker."""

    source: int
    message: Message


class Completed(NamedTuple):
    """The exchange, global mean or barrier that was asked for last is over."""


class Retire(NamedTuple):
    """The trainer rests.

    Attributes:
        rest: Why.
        tally: What the trainer adds to the sums of a meeting.
    """

    rest: Rest
    tally: Tally = ()


class Expire(NamedTuple):
    """The trainer has waited for the quorum of ``round`` for as long as it may; of rounds with a quorum alone."""

    round: int


class Abort(NamedTuple):
    """This worker has failed: by an exception in its trainer or its engine."""

    text: str


Event = Arrive | Receive | Completed | Retire | Abort

# actions. After Exchange, GlobalMean or Barrier no event but Completed is handed in before it is over.


class Send(NamedTuple):
    """Send a message."""

    dest: int
    message: Message


class Exchange(NamedTuple):
    """Exchange models with the group.

    Attributes:
        round: The round.
        group: The members, this worker among them.
        tally: The sums of a sync round.
    """

    round: int
    group: tuple[int, ...]
    tally: Tally = ()


class GlobalMean(NamedTuple):
    """Exchange the models handed to ``consensus`` among all."""


class Barrier(NamedTuple):
    """Wait until all engines have entered: the end of a meeting.

    Attributes:
        tally: The sums of the meeting.
    """

    tally: Tally = ()


class Shutdown(NamedTuple):
    """The engine ends: all workers have closed, or it has failed and nobody counts on it any more."""


class Fail(NamedTuple):
    """The run has failed for the reason given; the engine goes on until nobody counts on it."""

    text: str


Action = Send | Exchange | GlobalMean | Barrier | Shutdown | Fail
