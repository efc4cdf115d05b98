"""What a worker has published, and what its group has averaged: immutable records and the rules that replace them.

Models are opaque here: arrays in a run, symbols in a model checker. They are never changed in place. The engine and the
trainer swap whole records, under a lock that lives elsewhere, so that no publication and no sum is ever torn.
"""

import enum
from typing import Any, NamedTuple


class Merge(enum.Enum):
    """How the trainer's next model comes about from its own model W' and the newest group sum over n members."""

    OWN = "W'"
    """Nothing new has been averaged: W = W'."""
    SUM = "sum / n"
    """The sum contains W': W = sum / n."""
    LATE = "(sum + W') / (n + 1)"
    """The sum contains an older model of this worker."""


class Outbox(NamedTuple):
    """What this worker contributes to the next exchange.

    Attributes:
        version: The round that the model was published for; -1 for W_0, and k for the mean of sync round k.
        model: The model; nobody changes it.
    """

    version: int
    model: Any

    def publish(self, version: int, model: Any) -> "Outbox":
        """The outbox after ``model`` has replaced what was published. Versions never decrease."""
        assert version >= self.version, f"version {version} after {self.version}"
        return Outbox(version, model)


class GroupSum(NamedTuple):
    """The result of an ordinary round.

    Attributes:
        round: The round.
        own: The version of this worker's own contribution.
        size: n, the number of contributions.
        total: Their sum; where ``is_mean``, already divided by n.
        is_mean: Whether ``total`` is the mean.
        taken: Whether the trainer has merged it.
    """

    round: int
    own: int
    size: int
    total: Any
    is_mean: bool = False
    taken: bool = False


class Inbox(NamedTuple):
    """The newest group sum, which the trainer takes at most once.

    Attributes:
        newest: The sum of the newest ordinary round that this worker took part in since the last global mean.
        is_replaced: Whether an exchange is writing its sum to the memory of one that was not taken. A trainer that
            arrives meanwhile waits for it, since nobody waits for a trainer inside of an exchange; it would have
            nothing to merge otherwise, although rounds have passed.
    """

    newest: GroupSum | None = None
    is_replaced: bool = False

    def reuse(self) -> tuple["Inbox", Any]:
        """The memory of the newest sum, for an exchange that begins; None if it was taken, or is none.

        Returns:
            The inbox until ``put``, and the memory.
        """
        if self.newest is None or self.newest.taken:
            return self, None
        return self._replace(newest=None, is_replaced=True), self.newest.total

    def put(self, result: GroupSum) -> "Inbox":
        """The inbox after another round: the newest sum replaces the one before."""
        assert self.newest is None or result.round > self.newest.round
        return Inbox(result)

    def collect(self, version: int) -> tuple["Inbox", Merge, GroupSum | None]:
        """Takes the newest sum.

        Args:
            version: The version of the trainer's current publication, W'.

        Returns:
            The inbox after it, the rule that makes the next model, and the sum that the rule wants (None for
            ``Merge.OWN``).
        """
        assert not self.is_replaced, "the trainer has to wait for the exchange"
        newest = self.newest
        if newest is None or newest.taken:
            return self, Merge.OWN, None
        # the total goes with the sum that is handed out: its memory is the trainer's now
        after = Inbox(newest._replace(total=None, taken=True))
        return after, Merge.SUM if newest.own == version else Merge.LATE, newest


def global_mean(outbox: Outbox, inbox: Inbox, version: int, mean: Any) -> tuple[Outbox, Inbox]:
    """Outbox and inbox after a global mean, which replaces the publication and outdates every sum.

    Otherwise a late worker would contribute its model from before the mean, and a trainer that wakes late would find
    a later sum in the place of the mean.
    """
    return outbox.publish(version, mean), Inbox()
