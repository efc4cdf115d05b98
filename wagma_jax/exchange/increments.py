"""The increments of one worker: what it has handed in, and what rounds have made of all workers'.

It has the methods of ``models.Models``, by which the engine of rounds uses either.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wagma_jax.exchange.history import Exchanged, History
from wagma_jax.exchange.models import Contribution
from wagma_jax.exchange.pool import Pool, Signature, model_signature, sum_signature
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.standing import Standing
from wagma_jax.exchange.storage import Buffers, stored, sum_dtype, values
from wagma_jax.protocol.increments import Pending, Untaken
from wagma_jax.protocol.messages import Tally


class Added(NamedTuple):
    """What the trainer finds after its round.

    Attributes:
        exchanged: In the round that it called for; None if that is too long ago.
        total: The sum of the results that it has not taken before, buffers of ordinary rounds in the dtypes of sums;
            None for zeros. The trainer's from now on.
        rest: The means of what only sync rounds exchange, after one; else None. They stay the store's.
        newest: The newest round in the total.
        tally: The sums of the workers' tallies, of a sync round.
    """

    exchanged: Exchanged | None
    total: Buffers | None
    rest: Buffers | None
    newest: int
    tally: Tally


class Increments:
    """What the trainer and the engine of a worker hand to each other. They guard it with a lock.

    A contribution is divided by the number of workers on its way, so that results are means. Leaves that only sync
    rounds exchange are no increments: the newest values are contributed, and replaced by their mean.

    Args:
        is_sync: Whether all have to arrive at a round.
        staging: Knows which buffers ordinary rounds exchange.
        standing: Where the worker stands, and what was saved of the store.
        rest: The first values of what only sync rounds exchange.

    Raises:
        ValueError: What was saved is of other parameters.

    Attributes:
        pending: What it has handed in, and not contributed.
        untaken: Results that the trainer has not taken.
        history: What was exchanged.
    """

    def __init__(self, is_sync: Callable[[int], bool], staging: Staging, standing: Standing, rest: Buffers):
        self.history = History()
        self._is_sync = is_sync
        self._staging = staging
        self._rest = rest
        self._means: Buffers = ()  # of the newest sync round, until the trainer takes them
        self._zeros: Buffers | None = None  # contributed by a worker that has nothing else
        self._reading: Buffers = ()  # by the exchange in progress
        self._tally: Tally = ()
        here = jax.sharding.SingleDeviceSharding(staging.device)
        self._add_up = jax.jit(added, donate_argnums=0, in_shardings=here, out_shardings=here)
        ordinary = [layout for layout in staging.layouts if layout.ordinary]
        self._handed, self._of_ordinary = model_signature(ordinary), sum_signature(ordinary)
        self._whole = sum_signature(staging.layouts)
        self._pool = Pool(1, self._whole)
        self._pool.hold(rest)
        saved = standing.kept
        self.pending = Pending(standing.version, self._restored(saved.get("pending"), self._handed))
        self.untaken = Untaken(standing.round, self._restored(saved.get("untaken"), self._of_ordinary))

    def warm_up(self) -> None:
        """Compiles everything beforehand."""
        for kind in (self._handed, self._of_ordinary):
            self._add_up(self._new_zeros(kind), self._new_zeros(kind))
        self._staging.copy(self._rest)
        totals = tuple(other.astype(sum_dtype(other.dtype)) for other in self._staging.copy(self._rest))
        self._staging.narrow(totals, self._rest)

    def part(self, handed: Buffers, t: int) -> Buffers:
        """Those buffers that round t exchanges."""
        return handed if self._is_sync(t) else self._staging.ordinary(handed)

    def is_whole(self, handed: Buffers) -> bool:
        """Whether these are all buffers, not only those of ordinary rounds: always."""
        del handed
        return True

    def has_memory(self, size: int) -> bool:
        """Whether there is memory for a result of ``size`` buffers, once something new is handed in."""
        return self._pool.has(self._signature(size), self._rest)

    def publish(self, t: int, handed: Buffers, memory: Buffers | None) -> None:
        """Hands in an increment for round t; ``memory`` is for its result, None where there is enough."""
        if memory is not None:
            self.recycle(memory)
        self._pool.hold(handed)
        self._pool.release(self._rest)
        self._rest = self._staging.rest(handed)
        self.pending = self.pending.hand_in(t, self._staging.ordinary(handed), self._add)

    def contribute(self, t: int) -> Contribution:
        """What this worker brings to round t, which begins. It is read until ``end_reading``."""
        assert not self._reading, "one exchange at a time"
        self.pending, total = self.pending.contribute()
        rest = self._rest if self._is_sync(t) else ()
        self._pool.hold(rest)
        self._reading = (*(total or ()), *rest)
        ordinary = self.zeros() if total is None else total
        buffers = self._staging.completed(ordinary, rest) if self._is_sync(t) else ordinary
        return Contribution(self.pending.version, buffers, is_mean=True, memory=self.memory(len(buffers)))

    def memory(self, size: int) -> Buffers | None:
        """Memory for a result of ``size`` buffers, None if there is none."""
        return self._pool.withdraw(self._signature(size))

    def put(self, exchanged: Exchanged, contribution: Contribution, result: Buffers, tally: Tally) -> None:
        """The result of a round."""
        del contribution
        self.history.note(exchanged)
        t = exchanged.round
        self._pool.hold(result)
        if self._is_sync(t):
            self._pool.release(self._means)
            result, self._means, self._tally = self._staging.ordinary(result), self._staging.rest(result), tally
        self.untaken = self.untaken.put(t, result, self._add)

    def finish(self, t: int, result: Buffers, like: Buffers) -> Buffers:
        """What is kept of the result of round t: of means that replace values, those in the dtypes of ``like``."""
        if not self._is_sync(t):
            return result
        staging = self._staging
        rest = staging.narrow(staging.rest(result), staging.rest(like))
        return staging.completed(staging.ordinary(result), rest)

    def put_mean(self, version: int, mean: Buffers) -> None:
        """A global mean of models. What is pending, and what is not taken, is not in it, and stays."""
        del version
        rest = self._staging.copy(self._staging.rest(mean))
        self._pool.hold(rest)
        self._pool.release(self._rest)
        self._rest = rest

    def narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        """A mean in the dtypes of ``like``. For the engine's thread, inside of an exchange, without the lock."""
        return self._staging.narrow(totals, like)

    def zeros(self) -> Buffers:
        """An increment of nothing, which nobody changes."""
        if self._zeros is None:
            self._zeros = self._new_zeros(self._handed)
        return self._zeros

    def end_reading(self) -> None:
        """The exchange is over."""
        self._pool.release(self._reading)
        self._reading = ()

    def is_ready(self, t: int) -> bool:
        """Whether the trainer can take something after its round t: always."""
        del t
        return True

    def collect(self, t: int) -> Added:
        """What the trainer takes after its round t."""
        exchanged, is_sync = self.history.get(t), self._is_sync(t)
        self.untaken, total = self.untaken.collect()
        self._pool.spend(total or ())
        if not is_sync:
            return Added(exchanged, total, None, self.untaken.newest, ())
        means, self._means = self._means, ()
        self._pool.release(self._rest)
        self._rest = means
        return Added(exchanged, total, means, self.untaken.newest, self._tally)

    def recycle(self, memory: Buffers) -> None:
        """Takes memory for results that nobody refers to any more, unless there is enough."""
        self._pool.put(memory)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as flat NumPy arrays; nothing where everything was contributed and taken."""
        sums = {"pending": self.pending.total, "untaken": self.untaken.total}
        return {name: [np.array(x) for x in total] for name, total in sums.items() if total is not None}

    def clear(self) -> None:
        """Frees everything."""
        self.pending, self.untaken = Pending(self.pending.version), Untaken(self.untaken.newest)
        self._rest = self._means = self._reading = ()
        self._zeros = None
        self._pool.clear()

    def _add(self, total: Buffers, other: Buffers) -> Buffers:
        """Their sum, in the memory of the first. The second is used no more."""
        self._pool.spend(total)
        result = jax.block_until_ready(self._add_up(total, other))
        self._pool.hold(result)
        self._pool.release(other)
        return result

    def _signature(self, size: int) -> Signature:
        """Of a result of ``size`` buffers."""
        return self._whole if size == len(self._whole) else self._of_ordinary

    def _new_zeros(self, kind: Signature) -> Buffers:
        return jax.device_put(tuple(np.zeros(size, dtype) for size, dtype in kind), self._staging.device)

    def _restored(self, saved: Sequence[Any] | None, kind: Signature) -> Buffers | None:
        """Buffers from what ``saved`` has returned, which are held."""
        if saved is None:
            return None
        expected = list(kind)
        came = [(np.size(array), np.asarray(array).dtype) for array in saved]
        if expected != came:
            raise ValueError(f"state must be of the same params, expected sums of {expected}, got {came}: pass those")
        restored = jax.block_until_ready(self._staging.copy(tuple(jnp.asarray(array) for array in saved)))
        self._pool.hold(restored)
        return restored


def added(total: Buffers, other: Buffers) -> Buffers:
    """The sum of two increments, or of two results."""
    return tuple(stored(values(a) + values(b)) for a, b in zip(total, other, strict=True))
