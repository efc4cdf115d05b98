"""The numbers of a run, worked by hand."""

import re

import numpy as np
from ledger.constructed import call, exchange, meet, simulate, start, write

from wagma_jax import ledger
from wagma_jax.ledger.summary import age_bins


def test_waits_staleness_and_computation_by_hand(two):
    summary = ledger.summarize(two)
    np.testing.assert_allclose(summary.waits, [[0, 0.55], [0.2, 0]])
    assert summary.staleness.tolist() == [[3, 0], [2, 1]]
    assert (summary.rounds, summary.syncs, summary.lost, summary.incomplete) == (3, 0, 0, ())
    zero, one = summary.ranks
    assert (zero.rank, zero.calls, one.rank, one.calls) == (0, 3, 1, 3)
    np.testing.assert_allclose([zero.mean, zero.median, zero.longest], [1.5, 1.5, 2.0])  # 1.4 to 2.4, 3.0 to 5.0
    np.testing.assert_allclose([one.mean, one.median, one.longest], [1.65, 1.65, 3.0])  # 1.3 to 4.3, 4.5 to 4.8
    np.testing.assert_allclose([zero.late_fraction, one.late_fraction], [0, 1 / 3])
    np.testing.assert_allclose([zero.waited, zero.caused, one.waited, one.caused], [0.55, 0.2, 0.2, 0.55])
    np.testing.assert_allclose([zero.exchanging, one.exchanging], [1.3 - 0.55, 0.8 - 0.2])
    np.testing.assert_allclose([zero.copying, one.copying], [0.2, 0.3])
    assert summary.seconds == 5.6


def test_a_meeting_is_rest_and_neither_a_step_nor_a_wait(tmp_path):
    rounds = [exchange(t, [0, 1], [t, t], *times) for t, times in enumerate([(1.0, 1.1), (2.0, 2.1), (9.0, 9.1)])]
    calls = [call(t, when, when, when + 0.1, when + 0.1) for t, when in enumerate([1.0, 2.0, 9.0])]
    ranks = [
        [start(rank), *rounds, *calls[:2], meet(enter, 6.0), calls[2], meet(9.5, 9.75)]
        for rank, enter in enumerate([2.5, 5.5])
    ]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    zero, one = summary.ranks
    np.testing.assert_allclose([zero.resting, one.resting], [3.5 + 0.25, 0.5 + 0.25])
    np.testing.assert_allclose([zero.mean, zero.longest, one.mean, one.longest], 0.9)  # 1.1 to 2.0 alone
    assert not summary.waits.any()
    np.testing.assert_allclose([zero.exchanging, one.exchanging], 0.3)
    assert summary.seconds == 9.75
    assert summary.slow == ()


def test_slow_ranks(tmp_path):
    random = np.random.default_rng(1)
    computation = 0.01 * random.uniform(0.9, 1.1, (4, 60))
    even = ledger.summarize(ledger.read(write(tmp_path / "even", *simulate(computation, sync_period=None))))
    assert (even.slow, even.waited_for) == ((), None)
    assert "none stands out" in ledger.text(even)
    computation[2] *= 4
    slow = ledger.summarize(ledger.read(write(tmp_path / "slow", *simulate(computation))))
    assert (slow.slow, slow.waited_for) == ((2,), 2)
    assert slow.ranks[2].late_fraction > 0.8
    assert re.search(
        r"rank 2 computes for [34]\d\.\d ms a step \(median\), (3\.[89]|4\.\d) times as long", ledger.text(slow)
    )
    computation[2] /= 4
    computation[1, ::6] = 0.2
    at_times = ledger.summarize(ledger.read(write(tmp_path / "times", *simulate(computation))))
    assert at_times.slow == ()
    assert "rank 1 is slow at times" in ledger.text(at_times)


def test_entries_that_were_lost_are_told(tmp_path):
    entries = simulate(np.full((2, 12), 0.01))
    entries[1] = [entry for entry in entries[1] if getattr(entry, "round", None) not in (3, 4)]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *entries)))
    assert summary.lost == 2
    assert "2 lines of rounds missing" in ledger.text(summary)


def test_bins_of_staleness():
    assert age_bins(1) == [(0, 1)]
    assert age_bins(9) == [*((age, age + 1) for age in range(8)), (8, 9)]
    assert age_bins(40)[8:] == [(8, 16), (16, 32), (32, 40)]
