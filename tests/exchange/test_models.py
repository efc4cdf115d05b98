"""The store of models: whose memory is used for what. Alone, without processes."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

from wagma_jax.exchange.history import Exchanged
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.models import Models
from wagma_jax.exchange.staging import Staging
from wagma_jax.protocol.rules import Outbox
from wagma_jax.schedule import GroupSchedule

SYNC_PERIOD = 4


@pytest.fixture(autouse=True)
def settings():
    with own_settings():
        yield


class Rank:
    """A store without an engine. It has leaves that all rounds average, and others that only sync rounds do."""

    def __init__(self, dtype=np.float32):
        tree = {"w": np.zeros(100, dtype), "s": np.zeros(50, dtype)}
        self.staging = Staging(tree, lambda path, leaf: "sync" if path[0].key == "s" else "mean")
        self.first = self.model(0)
        self.store = Models(GroupSchedule(2, 2, SYNC_PERIOD), self.staging, Outbox(-1, self.first))

    def model(self, value):
        return tuple(jnp.full(layout.size, value, buffer) for layout, buffer in zip(*self.kinds(), strict=True))

    def kinds(self):
        layouts = self.staging.layouts
        return layouts, [jnp.uint16 if layout.dtype == jnp.bfloat16 else layout.dtype for layout in layouts]

    def exchange(self, t):
        """What was contributed to round t, and its result, which is in other memory here."""
        own = self.store.contribute(t)
        total = tuple(2 * buffer.astype(jnp.float32) for buffer in own.buffers)
        self.store.put(Exchanged(t, (0, 1), (own.version, t)), own, self.store.finish(t, total, own.buffers), ())
        self.store.end_reading()
        return own, total


def test_a_former_publication_is_memory_unless_it_is_read():
    rank = Rank()
    store, ordinary = rank.store, rank.staging.ordinary
    reading = store.contribute(0)
    assert reading.memory is None
    with pytest.raises(AssertionError, match="one exchange at a time"):
        store.contribute(0)
    assert not store.has_memory(1)
    store.publish(0, rank.model(1), None)
    assert store.memory(1) is None
    store.end_reading()
    assert store.has_memory(1)
    memory = store.memory(1)
    assert memory is not None
    assert memory[0] is ordinary(rank.first)[0]
    assert store.memory(1) is None


def test_an_untaken_sum_is_memory_for_the_next_and_a_taken_one_is_the_trainers():
    rank = Rank()
    store = rank.store
    store.publish(0, rank.model(1), None)
    _, total = rank.exchange(0)
    late, second = rank.exchange(1)
    assert late.memory is not None
    assert late.memory[0] is total[0]
    taken = store.collect(1)
    assert taken.result is not None
    assert taken.result.total[0] is second[0]
    assert store.contribute(2).memory is None, "the trainer has it"
    store.end_reading()
    assert store.memory(1) is None
    store.recycle(second)
    assert store.has_memory(1)


def test_what_sync_rounds_alone_exchange_is_shared_by_publications_and_outlives_them():
    rank = Rank()
    store, staging = rank.store, rank.staging
    for t in range(2):
        store.publish(t, staging.ordinary(rank.model(t)), None)
        assert staging.rest(store.outbox.model)[0] is staging.rest(rank.first)[0]
    assert store.memory(2) is None
    assert store.has_memory(2)  # with the next whole publication
    store.publish(SYNC_PERIOD - 1, rank.model(2), None)
    own, _ = rank.exchange(SYNC_PERIOD - 1)
    assert own.memory is not None
    assert staging.rest(own.memory)[0] is staging.rest(rank.first)[0]


def test_sums_of_narrow_models_are_made_in_memory_of_their_own():
    rank = Rank(jnp.bfloat16)
    store, staging = rank.store, rank.staging
    store.publish(0, rank.model(1), None)
    assert not store.has_memory(1)
    own, total = rank.exchange(0)
    assert own.memory is None
    assert store.collect(0).result is not None
    store.recycle(total)
    store.publish(SYNC_PERIOD - 1, rank.model(2), None)
    assert store.has_memory(1)
    assert not store.has_memory(2)
    _, total = rank.exchange(SYNC_PERIOD - 1)
    assert store.has_memory(2), "the mean is made of the sum, whose memory is free then"
    memory = store.memory(2)
    assert memory is not None
    assert staging.rest(memory)[0] is staging.rest(total)[0]
