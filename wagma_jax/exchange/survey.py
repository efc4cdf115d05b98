"""Who has come to a step that all ranks take together: found out when it is late, without asking everybody.

Those who wait tell their neighbours in the hypercube whom they know to have come, and pass on what they hear. Who is
cut off from that by those who have not come is asked directly, if they are not too many.
"""

from typing import NamedTuple

from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.protocol import tree
from wagma_jax.protocol.facts import mask_of, workers_of

MOST_ASKED = 16  # ranks that one rank asks directly, or names


class Come(NamedTuple):
    """Who has come, as far as the sender knows.

    Attributes:
        step: Where to.
        ranks: The set of those, as a bit mask.
        asks: Whether the receiver is to say whether it has come.
    """

    step: int
    ranks: int
    asks: bool = False


class Survey:
    """What one rank knows of who has come.

    Args:
        mailbox: For such messages and others.
        rank: Of this process.
        size: The number of ranks.
    """

    def __init__(self, mailbox: Mailbox, rank: int, size: int):
        self._mailbox = mailbox
        self._rank = rank
        self._size = size
        self._neighbours = tree.neighbours(rank, size)
        self._known: dict[int, int] = {}  # who has come, by step
        self._told: dict[int, int] = {}  # what the neighbours were told last

    def begin(self, step: int) -> None:
        """Begins to find out who has come to the step at which this rank is; those who hear of it take part."""
        self._known.setdefault(step, 0)
        self.tell(step)

    def receive(self, source: int, come: Come, here: int) -> None:
        """A message of another rank; this one is at the step ``here``."""
        self._known[come.step] = self._known.get(come.step, 0) | come.ranks
        if come.asks and come.step <= here:
            self._mailbox.send(source, Come(come.step, 1 << self._rank))

    def tell(self, here: int) -> None:
        """Tells the neighbours what this rank has learnt since it last told them; it is at the step ``here``."""
        for step in self._known:
            if step <= here:
                self._known[step] |= 1 << self._rank
            if self._known[step] != self._told.get(step):
                self._told[step] = self._known[step]
                self._mailbox.send_to(self._neighbours, Come(step, self._known[step]))

    def ask(self, step: int) -> None:
        """Asks some of those directly of whom nothing was heard."""
        self._mailbox.send_to(self.missing(step)[:MOST_ASKED], Come(step, self._known[step], asks=True))

    def missing(self, step: int) -> list[int]:
        """Who has not come, as far as this rank knows."""
        return workers_of(mask_of(range(self._size)) & ~self._known[step])
