"""What is published and what is merged, by hand."""

import pytest

from wagma_jax.protocol.rules import GroupSum, Inbox, Merge, Outbox, global_mean


def test_the_newest_sum_is_taken_once_and_tells_whether_it_holds_the_own_model():
    inbox = Inbox().put(GroupSum(3, own=2, weight=2, total="sum of round 3"))
    after, merge, taken = inbox.collect(version=3)
    assert (merge, taken.total) == (Merge.LATE, "sum of round 3")
    assert after.collect(version=4) == (after, Merge.OWN, None)
    assert inbox.collect(version=2)[1] == Merge.SUM
    newer = inbox.put(GroupSum(4, own=3, weight=2, total="sum of round 4"))
    assert newer.collect(version=3)[1:] == (Merge.SUM, newer.newest)


def test_a_sum_that_is_not_taken_is_overwritten_by_the_next_for_which_a_trainer_waits():
    inbox = Inbox().put(GroupSum(3, own=2, weight=2, total="sum of round 3"))
    taken = inbox.collect(version=3)[0]
    assert taken.reuse() == (taken, None)
    replaced, memory = inbox.reuse()
    assert (replaced.is_replaced, memory) == (True, "sum of round 3")
    with pytest.raises(AssertionError, match="wait for the exchange"):
        replaced.collect(version=4)
    assert replaced.put(GroupSum(4, own=2, weight=2, total="")).collect(version=3)[1] == Merge.LATE


def test_versions_never_decrease():
    outbox = Outbox(-1, "W_0").publish(3, "W'")
    with pytest.raises(AssertionError):
        outbox.publish(2, "older")
    assert global_mean(outbox, Inbox(), 4, "mean") == (Outbox(4, "mean"), Inbox())
