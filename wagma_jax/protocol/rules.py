"""What a worker has published, and what its group has averaged: immutable records and the rules that replace them.

Models are opaque here: arrays in a run, symbols in a model checker. They are never changed in place. The engine and the
trainer swap whole records, under a lock that lives elsewhere, so that no publication and no sum is ever torn.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Merge(enum.Enum):
    """How the trainer's next model comes about from its own model W' and the newest group sum.

    N is the weight of the sum, and n that of W'. Where all contributions weigh the same these are the number of
    members, and 1.
    """

    OWN = "W'"
    """Nothing new has been averaged: W = W'."""
    SUM = "sum / N"
    """The sum contains W': W = sum / N."""
    LATE = "(sum + n W') / (N + n)"
    """The sum contains an older model of this worker."""


class Steps(NamedTuple):
    """The local steps of a worker that were not contributed yet: what weighs its contributions.

    Attributes:
        fresh: In the publication, and in no group sum.
        since_mean: In the publication, and in no global mean.
        unpublished: Of models that rounds of one passed over: in no publication, nor in the numbers before.
    """

    fresh: int = 0
    since_mean: int = 0
    unpublished: int = 0

    def take(self) -> "Steps":
        """After one more local step."""
        return self._replace(unpublished=self.unpublished + 1)

    def publish(self) -> "Steps":
        """After the model of all steps was published."""
        fresh, since_mean, new = self
        return self._replace(fresh=fresh + new, since_mean=since_mean + new, unpublished=0)

    def forget_passed(self) -> "Steps":
        """After a model that was never published has been given up."""
        return self._replace(unpublished=0)

    def contribute(self) -> "Steps":
        """After the publication has entered a group sum."""
        return self._replace(fresh=0)

    def average(self) -> "Steps":
        """After a global mean has taken the place of the publication."""
        return self._replace(fresh=0, since_mean=0)


def group_weights(steps: Sequence[int]) -> tuple[int, ...]:
    """The weights of contributions to a group sum: their fresh steps; all 1 if there are none at all."""
    return tuple(steps) if any(steps) else (1,) * len(steps)


def mean_weights(steps: Sequence[int]) -> tuple[int, ...]:
    """The weights of contributions to a global mean, which only counts them in proportion to each other.

    Workers of equally many steps have weights of 1, so that nothing is rounded that an equal mean does not round.
    """
    common = math.gcd(*steps)
    return tuple(count // common for count in steps) if common else (1,) * len(steps)


class Outbox(NamedTuple):
    """What this worker contributes to the next exchange.

    Attributes:
        version: The round that the model was published for; -1 for W_0, and k for the mean of sync round k.
        model: The model; nobody changes it.
        steps: What weighs it; None where all contributions weigh the same.
    """

    version: int
    model: Any
    steps: Steps | None = None

    def publish(self, version: int, model: Any) -> "Outbox":
        """The outbox after ``model`` has replaced what was published. Versions never decrease."""
        assert version >= self.version, f"version {version} after {self.version}"
        return Outbox(version, model, None if self.steps is None else self.steps.publish())

    def take_step(self) -> "Outbox":
        """The outbox after a local step, whose model is still to be published."""
        return self if self.steps is None else self._replace(steps=self.steps.take())

    def forget_passed(self) -> "Outbox":
        """The outbox after a model that was never published has been given up."""
        return self if self.steps is None else self._replace(steps=self.steps.forget_passed())

    def contribute(self, is_sync: bool) -> tuple["Outbox", int | None]:
        """The outbox after an exchange has read it, and the steps that the contribution counts for.

        A group sum uses them up: whatever is contributed again counts for none. A global mean uses them up when it is
        there.

        Args:
            is_sync: Whether it is the exchange of a sync round.
        """
        if self.steps is None:
            return self, None
        if is_sync:
            return self, self.steps.since_mean
        return self._replace(steps=self.steps.contribute()), self.steps.fresh


class GroupSum(NamedTuple):
    """The result of an ordinary round.

    Attributes:
        round: The round.
        own: The version of this worker's own contribution.
        weight: N, the sum of the weights of all contributions: their number where all weigh the same.
        total: Their sum; where ``is_mean``, already divided by N.
        is_mean: Whether ``total`` is the mean.
        taken: Whether the trainer has merged it.
    """

    round: int
    own: int
    weight: int
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
    assert version >= outbox.version, f"version {version} after {outbox.version}"
    steps = outbox.steps
    return Outbox(version, mean, None if steps is None else steps.average()), Inbox()
