"""The models of one worker: what it has published, and what its group has averaged."""

from typing import NamedTuple

from wagma_jax.exchange.history import Exchanged, History
from wagma_jax.exchange.pool import Pool, Signature, sum_signature
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.protocol.messages import Tally
from wagma_jax.protocol.rules import GroupSum, Inbox, Merge, Outbox, global_mean
from wagma_jax.schedule import GroupSchedule


class Contribution(NamedTuple):
    """What this worker brings to an exchange.

    Attributes:
        version: The round that it was published for.
        buffers: What is exchanged: all buffers, or those of ordinary rounds.
        is_mean: Whether the result is wanted as the mean; else as the sum.
        memory: Where the result goes; None if there is no memory.
        steps: The steps that it counts for; None where all contributions weigh the same.
    """

    version: int
    buffers: Buffers
    is_mean: bool
    memory: Buffers | None
    steps: int | None = None


class Taken(NamedTuple):
    """What the trainer finds after its round.

    Attributes:
        exchanged: In the round that it called for; None if that is too long ago.
        merge: How its next model is made; None for the mean of a sync round.
        result: The sum to be merged; None for Merge.OWN.
        buffers: The publication: the mean after a sync round, else the model that was passed in.
        tally: The sums of the workers' tallies, of a sync round.
        weight: That of the publication in a late merge; None where all contributions weigh the same.
    """

    exchanged: Exchanged | None
    merge: Merge | None
    result: GroupSum | None
    buffers: Buffers
    tally: Tally
    weight: int | None = None


class Models:
    """What the trainer and the engine of a worker hand to each other. They guard it with a lock.

    Args:
        schedule: Who averages with whom.
        staging: Knows which buffers ordinary rounds exchange.
        published: What this worker has published at first.
        inbox: What its group has averaged before, if it has not taken that.

    Attributes:
        outbox: What it has published.
        inbox: What its group has averaged.
        history: What was exchanged.
    """

    def __init__(self, schedule: GroupSchedule, staging: Staging, published: Outbox, inbox: Inbox | None = None):
        self.outbox = published
        self.inbox = inbox or Inbox()
        self._is_sync = schedule.is_sync
        self._ordinary = staging.ordinary
        self._staging = staging
        self._read: Buffers = ()  # by the exchange in progress
        self._spent: Buffers = ()  # a sum of which a mean was made, in the engine's thread
        self._whole = sum_signature(staging.layouts)
        self._of_ordinary = sum_signature(layout for layout in staging.layouts if layout.ordinary)
        self._pool = Pool(1, self._whole)
        self._pool.hold(published.model)
        self._pool.hold(_total(self.inbox))
        self.history = History()
        self._tally: Tally = ()  # the sums of the newest sync round

    def part(self, model: Buffers, t: int) -> Buffers:
        """Those buffers of a model that round t exchanges."""
        if not self._staging.has_rest or not self.is_whole(model) or self._is_sync(t):
            return model
        return self._ordinary(model)

    def is_whole(self, model: Buffers) -> bool:
        """Whether these are all buffers of a model, not only those of ordinary rounds."""
        return len(model) == len(self._staging.layouts)

    def put_rest(self, rest: Buffers) -> None:
        """Replaces those buffers of the publication that only sync rounds exchange, which are newer."""
        completed = self._staging.completed(self._ordinary(self.outbox.model), rest)
        self._post(self.outbox._replace(model=completed))

    def has_memory(self, size: int) -> bool:
        """Whether there is memory for a result of ``size`` buffers, once something new is published."""
        wanted = self._signature(size)
        retiring = self.outbox.model if wanted is self._whole else self._ordinary(self.outbox.model)
        return self._pool.has(wanted, retiring)

    def publish(self, t: int, model: Buffers, memory: Buffers | None) -> None:
        """Publishes W' for round t; ``memory`` is for its result, None where there is enough."""
        if memory is not None:
            self._pool.put(memory)
        if not self.is_whole(model):  # the others stay
            model = self._staging.completed(model, self._staging.rest(self.outbox.model))
        self._post(self.outbox.take_step().publish(t, model))

    def pass_over(self) -> None:
        """Notes a step whose model a round of one passes over, unpublished."""
        self.outbox = self.outbox.take_step()

    def forget_passed(self) -> None:
        """Steps that were passed over are lost: a global mean has replaced their model."""
        self.outbox = self.outbox.forget_passed()

    def publish_passed(self, version: int, model: Buffers) -> None:
        """Publishes the model of the newest step that was passed over."""
        self._post(self.outbox.publish(version, model))

    def contribute(self, t: int) -> Contribution:
        """What this worker brings to round t, which begins. It is read until ``end_reading``."""
        version, is_sync = self.outbox.version, self._is_sync(t)
        buffers = self.part(self.outbox.model, t)
        assert not self._read, "one exchange at a time"
        self._read = buffers
        self._pool.hold(buffers)
        self.outbox, steps = self.outbox.contribute(is_sync)
        is_mean = is_sync or version == t
        memory = None
        if not is_mean:
            self.inbox, memory = self.inbox.reuse()
            self._pool.spend(memory or ())
        memory = self.memory(len(buffers)) if memory is None else memory
        return Contribution(version, buffers, is_mean, memory, steps)

    def memory(self, size: int) -> Buffers | None:
        """Memory for a result of ``size`` buffers, None if there is none."""
        return self._pool.withdraw(self._signature(size))

    def put(self, exchanged: Exchanged, contribution: Contribution, result: Buffers, tally: Tally) -> None:
        """The result of a round."""
        t = exchanged.round
        self.history.note(exchanged)
        if self._is_sync(t):
            self.put_mean(t, result)
            self._tally = tally
        else:
            total = GroupSum(t, contribution.version, exchanged.weight, result, is_mean=contribution.is_mean)
            self._receive(self.inbox.put(total))

    def put_mean(self, version: int, mean: Buffers) -> None:
        """A global mean."""
        outbox, inbox = global_mean(self.outbox, self.inbox, version, mean)
        self._post(outbox)
        self._receive(inbox)

    def finish(self, t: int, result: Buffers, like: Buffers) -> Buffers:
        """What is kept of the result of round t: of a mean, that in the dtypes of ``like``. As ``narrow``."""
        return self.narrow(result, like) if self._staging.widens and self._is_sync(t) else result

    def narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        """A mean in the dtypes of ``like``. For the engine's thread, inside of an exchange, without the lock."""
        if self._staging.widens:
            self._spent = totals
        return self._staging.narrow(totals, like)

    def end_reading(self) -> None:
        """The exchange is over."""
        self._pool.put(self._spent)
        self._pool.release(self._read)
        self._spent = self._read = ()

    def is_ready(self, t: int) -> bool:
        """Whether the trainer can take something after its round t; else once the exchange in progress is over."""
        return not self.inbox.is_replaced or self._is_sync(t)

    def collect(self, t: int) -> Taken:
        """What the trainer takes after its round t, once it is ready."""
        exchanged = self.history.get(t)
        if self._is_sync(t):
            return Taken(exchanged, None, None, self.outbox.model, self._tally)
        self.inbox, merge, result = self.inbox.collect(self.outbox.version)
        if result is not None:
            self._pool.spend(result.total)
        steps = self.outbox.steps
        weight = None if steps is None or merge != Merge.LATE else steps.fresh
        assert weight is None or weight > 0, "W' is new"
        return Taken(exchanged, merge, result, self.outbox.model, (), weight)

    def recycle(self, total: Buffers) -> None:
        """Takes back the memory of a sum that ``collect`` has handed out."""
        self._pool.put(total)

    def clear(self) -> None:
        """Frees everything."""
        self.outbox, self.inbox = Outbox(self.outbox.version, ()), Inbox()
        self._read = self._spent = ()
        self._pool.clear()

    def _signature(self, size: int) -> Signature:
        """Of a result of ``size`` buffers."""
        return self._whole if size == len(self._whole) else self._of_ordinary

    def _post(self, outbox: Outbox) -> None:
        """Replaces the outbox. This worker uses what is published."""
        before, self.outbox = self.outbox.model, outbox
        self._pool.hold(outbox.model)
        self._pool.release(before)

    def _receive(self, inbox: Inbox) -> None:
        """Replaces the inbox. This worker uses the newest sum until it is taken."""
        before, self.inbox = _total(self.inbox), inbox
        self._pool.hold(_total(inbox))
        self._pool.release(before)


def _total(inbox: Inbox) -> Buffers:
    newest = inbox.newest
    return () if newest is None or newest.taken else newest.total
