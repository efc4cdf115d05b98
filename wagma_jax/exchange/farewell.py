"""The end of all engines together: nobody leaves before whatever was sent to anybody has been received.

A non-blocking consensus along the tree. Each engine that has ended counts the messages that it has sent and received;
the differences are added up on the way to rank 0. While their sum is not zero something is on its way, and all count
again. An engine sends nothing more once it has counted, but answers to messages that it had not counted as received: so
a sum of zero says that there is nothing left. Each rank exchanges two messages a count with each neighbour in the tree.
Reference: counting as in Mattern, "Algorithms for distributed termination detection", 1987; for the same end by
synchronous sends and a barrier see Hoefler, Siebert, Lumsdaine, PPoPP 2010.
"""

from typing import NamedTuple

from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.protocol import tree


class Count(NamedTuple):
    """To the parent: messages sent minus messages received, by all here and below."""

    on_their_way: int


class Verdict(NamedTuple):
    """From the parent: whether nothing is on its way any more. Otherwise all count again."""

    over: bool


class Farewell:
    """One engine's part.

    Args:
        mailbox: The engine's.
        rank: Of this process.
        size: The number of ranks.

    Attributes:
        over: Whether nothing is on its way to anybody.
    """

    def __init__(self, mailbox: Mailbox, rank: int, size: int):
        self.over = False
        self._mailbox = mailbox
        self._rank = rank
        self._children = tree.children(rank, size)
        self._below: dict[int, int] = {}  # what the children have counted
        self._ended = False  # whether the engine has
        self._told = False  # whether the parent knows
        self._own = 0  # the messages of this consensus itself, sent minus received

    def begin(self) -> None:
        """The engine has ended: from here on it only answers."""
        self._ended = True
        self._tell()

    def receive(self, source: int, message: Count | Verdict) -> None:
        """A message of another rank's farewell."""
        self._own -= 1
        if isinstance(message, Count):
            self._below[source] = message.on_their_way
            self._tell()
        else:
            self._pass_on(message)

    def missing(self) -> list[int]:
        """The ranks that this one waits for."""
        if self.over:
            return []
        if self._told:
            return [tree.parent(self._rank)]
        return [child for child in self._children if child not in self._below]

    def _tell(self) -> None:
        if self._told or not self._ended or len(self._below) < len(self._children):
            return
        on_their_way = self._mailbox.sent - self._mailbox.received - self._own + sum(self._below.values())
        if self._rank:
            self._told = True
            self._send(tree.parent(self._rank), Count(on_their_way))
        else:
            self._pass_on(Verdict(on_their_way == 0))

    def _pass_on(self, verdict: Verdict) -> None:
        self._below, self._told, self.over = {}, False, verdict.over
        for child in self._children:
            self._send(child, verdict)
        if not self.over:
            self._tell()

    def _send(self, dest: int, message: Count | Verdict) -> None:
        self._own += 1
        self._mailbox.send(dest, message)
