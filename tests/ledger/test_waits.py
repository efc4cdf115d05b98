"""Who waited for whom at sync rounds, from the arrivals of all ranks."""

import numpy as np
import pytest
from ledger.constructed import END, call, consensus, exchange, meet, offset, start, write

from wagma_jax import ledger
from wagma_jax.ledger.waits import sync_waits


def test_waits_at_a_sync_are_shared_among_those_who_are_missing():
    ready = np.array([0.0, 1.0, 3.0, 7.0])
    waits = sync_waits(ready, np.full(4, 8.0))
    # in the first second three are missing, then two for 2 s, then one for 4 s
    expected = [[0, 1 / 3, 1 / 3 + 1, 1 / 3 + 1 + 4], [0, 0, 1, 1 + 4], [0, 0, 0, 4], [0, 0, 0, 0]]
    np.testing.assert_allclose(waits, expected)
    # by times that are not aligned well, rank 0 went on before the last arrived: it has waited 5 s and no more
    taken = np.array([5.0, 8.0, 8.0, 8.0])
    np.testing.assert_allclose(sync_waits(ready, taken).sum(1), [5, 6, 4, 0])
    # who rests has arrived, and does not wait
    ready, taken = np.array([0.0, -np.inf, 3.0, 2.0]), np.array([4.0, -np.inf, 4.0, -np.inf])
    expected = np.zeros((4, 4))
    expected[0, 2], expected[0, 3] = 1 + 1, 1
    np.testing.assert_allclose(sync_waits(ready, taken), expected)


def test_the_waits_of_a_sync_round_come_from_arrivals(tmp_path):
    sync = {"num_workers": 3, "group_size": 1, "sync_period": 2}
    everyone = [0, 1, 2]
    ranks = []
    for rank, ready in enumerate([2.0, 4.0, 7.0]):
        ranks.append([
            start(rank, **sync),
            exchange(0, [rank], [0], 1.0, 1.1), call(0, 1.0, 1.0, 1.1, 1.1),
            exchange(1, everyone, [1, 1, 1], 7.0, 7.5),
            call(1, ready, ready, 7.5, 7.5, {0: 5.0} if rank else {1: 3.5, 2: 1.5}, "mean"),
            offset(9.0), END,
        ])  # fmt: skip
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    np.testing.assert_allclose(summary.waits, [[0, 1, 1 + 3], [0, 0, 3], [0, 0, 0]])
    assert summary.waited_for == 2
    assert "rank 2 was waited for most, in 88% of the time waited" in ledger.text(summary)


def waits_of(folder, *trainers):
    """Waits of three ranks that sync at every round; rank 1 makes no call for round 1, which is over at 5.5."""
    sync = {"num_workers": 3, "group_size": 1, "sync_period": 1}
    rounds = exchange(0, [0, 1, 2], [0, 0, 0], 1.0, 1.5), exchange(1, [0, 1, 2], [1, 0, 1], 5.0, 5.5)
    first = call(0, 1.0, 1.0, 1.5, 1.5, merge="mean")
    ranks = [[start(rank, **sync), *rounds, first, *trainer] for rank, trainer in enumerate(trainers)]
    return ledger.summarize(ledger.read(write(folder, *ranks)))


@pytest.mark.parametrize("rest", [lambda *span: consensus(span[0], *span, span[1], 1), meet])
def test_a_rank_that_rests_counts_as_arrived(tmp_path, rest):
    zero = call(1, 2.0, 2.0, 5.5, 5.5, {}, "mean"), rest(6.0, 7.0)
    two = call(1, 5.0, 5.0, 5.5, 5.5, {}, "mean"), rest(6.0, 7.0)
    summary = waits_of(tmp_path / "rests", zero, [rest(3.0, 7.0)], two)
    np.testing.assert_allclose(summary.waits, [[0, 0.5, 0.5 + 2], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose([own.resting for own in summary.ranks], [1, 4, 1])
    # it has rested before, and computed for longer since then
    summary = waits_of(tmp_path / "twice", zero, [rest(1.6, 1.8), rest(4.0, 7.0)], two)
    np.testing.assert_allclose(summary.waits, [[0, 1, 1 + 1], [0, 0, 0], [0, 0, 0]])
    # it rests again when the round is over
    summary = waits_of(tmp_path / "later", zero, [rest(3.0, 7.0), rest(8.0, 9.0)], two)
    np.testing.assert_allclose(summary.waits, [[0, 0.5, 0.5 + 2], [0, 0, 0], [0, 0, 0]])
    # it has closed instead: since when is not known
    summary = waits_of(tmp_path / "close", zero, [], two)
    np.testing.assert_allclose(summary.waits, [[0, 0, 3], [0, 0, 0], [0, 0, 0]])


def test_time_in_a_meeting_is_not_waited_in_the_next_round(tmp_path):
    """All meet between two sync rounds; the last comes 4 s after the first, and only then all compute and sync."""
    arrivals = zip((2.0, 4.0, 6.0), (7.0, 6.5, 8.0), strict=True)
    trainers = [(meet(enter, 6.1), call(1, ready, ready, 8.5, 8.5, {}, "mean")) for enter, ready in arrivals]
    sync = {"num_workers": 3, "group_size": 1, "sync_period": 1}
    rounds = exchange(0, [0, 1, 2], [0, 0, 0], 1.0, 1.5), exchange(1, [0, 1, 2], [1, 1, 1], 8.0, 8.5)
    first = call(0, 1.0, 1.0, 1.5, 1.5, merge="mean")
    ranks = [[start(rank, **sync), *rounds, first, *trainer] for rank, trainer in enumerate(trainers)]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    np.testing.assert_allclose(summary.waits, [[0, 0, 1], [0.25, 0, 0.25 + 1], [0, 0, 0]])
    np.testing.assert_allclose([own.resting for own in summary.ranks], [4.1, 2.1, 0.1])
    np.testing.assert_allclose([own.exchanging for own in summary.ranks], 0.5 + 0.5)
    assert [own.copying for own in summary.ranks] == [0, 0, 0]
    assert np.isnan([own.mean for own in summary.ranks]).all()  # no call follows another: a meeting is no computation
    assert summary.waited_for == 2  # all the same
