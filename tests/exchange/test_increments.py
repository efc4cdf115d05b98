"""The store of increments: whose memory is used for what."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

from wagma_jax.exchange.history import Exchanged
from wagma_jax.exchange.increments import Increments
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.standing import Standing


class Rank:
    """A store without an engine: another worker hands in the same."""

    def __init__(self, tree, sync_period=4, policy=None):
        self.staging = Staging(tree, policy)
        first = self.staging.pack(self.staging.check(tree))
        is_sync = lambda t: (t + 1) % sync_period == 0
        self.store = Increments(is_sync, self.staging, Standing(-1, -1, -1), self.staging.rest(first))

    def hand_in(self, t, tree):
        self.store.publish(t, self.staging.pack(self.staging.check(tree)), None)

    def exchange(self, t):
        """The buffers that were read, and the memory that was there for the result."""
        own = self.store.contribute(t)
        result = tuple(2 * buffer.astype(jnp.float32) for buffer in own.buffers)
        result = self.store.finish(t, result, own.buffers)
        self.store.put(Exchanged(t, (0, 1), (own.version, t)), own, result, ())
        self.store.end_reading()
        return own, result


@pytest.fixture(autouse=True)
def settings():
    with own_settings():
        yield


def tree(value):
    return {"w": np.full(100, value, np.float32)}


def test_on_time_a_contribution_is_memory_for_the_next_result():
    rank = Rank(tree(0))
    rank.hand_in(0, tree(1))
    assert rank.store.contribute(0).memory is None
    rank = Rank(tree(0))
    last = None
    for t in range(3):
        rank.hand_in(t, tree(1))
        own, result = rank.exchange(t)
        assert (own.memory is None) == (last is None)
        assert last is None or own.memory[0] is last[0]
        last = own.buffers
        assert rank.store.collect(t).total[0] is result[0]  # nothing is copied
        assert rank.store.untaken.total is None


def test_late_results_add_up_in_the_first_ones_memory_and_zeros_are_made_once():
    rank = Rank(tree(0), sync_period=9)
    rank.hand_in(0, tree(1))
    rank.exchange(0)
    where = rank.store.untaken.total[0].unsafe_buffer_pointer()
    zeros = []
    for t in (1, 2):
        own, result = rank.exchange(t)
        zeros.append(own.buffers[0])
        np.testing.assert_array_equal(own.buffers[0], 0)
        assert own.version == 0
        if t == 1:
            assert own.memory is not None  # round 0's contribution
            spent = result
        else:
            assert own.memory[0] is spent[0]
    assert zeros[0] is zeros[1]
    assert rank.store.untaken.total[0].unsafe_buffer_pointer() == where
    for t in (1, 2):
        rank.hand_in(t, tree(t))
    np.testing.assert_array_equal(rank.store.pending.total[0][:100], 3)
    taken = rank.store.collect(2)
    np.testing.assert_array_equal(taken.total[0][:100], 2)
    assert taken.newest == 2
    assert rank.store.collect(2).total is None


def test_statistics_replace_each_other_and_have_a_mean_at_sync_rounds():
    policy = lambda path, leaf: "sync" if path[0].key == "s" else "mean"
    rank = Rank(tree(0) | {"s": np.zeros(3, np.float16)}, sync_period=2, policy=policy)
    for t in range(4):
        rank.hand_in(t, tree(1) | {"s": np.full(3, t, np.float16)})
        own, _ = rank.exchange(t)
        assert len(own.buffers) == 1 + t % 2
        taken = rank.store.collect(t)
        if t % 2:
            np.testing.assert_array_equal(taken.rest[0][:3], 2 * t)
            assert taken.rest[0].dtype == np.float16
            assert rank.store.contribute(t).buffers[0] is taken.rest[0]  # should it rest now
            rank.store.end_reading()
        else:
            assert taken.rest is None


def test_what_is_saved_comes_back():
    rank = Rank({"w": jnp.ones(50, jnp.bfloat16)})
    rank.hand_in(0, {"w": jnp.full(50, 0.5, jnp.bfloat16)})
    rank.exchange(0)
    rank.hand_in(1, {"w": jnp.full(50, 0.25, jnp.bfloat16)})
    saved = rank.store.saved()
    assert [array.dtype for arrays in saved.values() for array in arrays] == [np.uint16, np.float32]
    store = Increments(lambda t: False, rank.staging, Standing(0, -1, 1, None, saved), ())
    again = store.saved()
    for name in ("pending", "untaken"):
        np.testing.assert_array_equal(again[name], saved[name])
    assert (store.pending.version, store.untaken.newest) == (1, 0)
    with pytest.raises(ValueError, match="state must be of the same params"):
        Increments(lambda t: False, Rank(tree(0)).staging, Standing(0, -1, 1, None, saved), ())
