"""Runs that were resumed: rounds that were done again count once."""

import numpy as np
import pytest
from ledger.constructed import END, call, consensus, exchange, in_own_time, meet, offset, simulate, start, write

from wagma_jax import ledger
from wagma_jax.ledger import Segment


def test_rounds_that_were_done_again_count_once(tmp_path):
    computation = np.full((2, 30), 0.01)
    computation[1, 15:] = 0.5  # is done again without
    first, second = simulate(computation), simulate(np.full((2, 15), 0.01), first_round=15)
    broken = [entries[:-2] for entries in first]
    late = [list(in_own_time(entries, 5000.0 + rank, 0, 1e-6)) for rank, entries in enumerate(second)]
    folder = write(tmp_path / "run", *([*a, '{"kind":"call","rou', *b] for a, b in zip(broken, late, strict=True)))
    ledgers = ledger.read(folder)
    assert [len(own.segments) for own in ledgers] == [2, 2]
    assert [len(part.rounds) for part in ledgers[0].segments] == [30, 15]  # as written
    assert [len(part.rounds) for part in ledgers[0].kept()] == [15, 15]
    summary = ledger.summarize(ledgers)
    assert (summary.rounds, summary.resumed, summary.lost, summary.incomplete) == (30, (15,), 0, ())
    assert summary.ranks[1].calls == 30
    assert summary.ranks[1].longest == pytest.approx(0.01)
    words = ledger.text(summary)
    assert "Resumed at round 15" in words
    assert "measured at the start only" in words
    segments = ledger.align(ledgers)[0].segments
    end = max(r.leave for own in ledger.align(ledgers) for r in own.segments[0].calls)
    assert segments[1].start.time >= end
    assert summary.seconds < 3


def test_meetings_and_means_go_with_their_rounds(tmp_path):
    first = meet(0.1, 0.2)  # before any call
    calls = [call(t, t + 1.0, t + 1.0, t + 1.1, t + 1.1) for t in range(4)]
    after_1, after_3 = meet(2.2, 2.3), meet(4.2, 4.3)
    mean_of_1, mean_of_3 = consensus(2.5, 2.5, 2.6, 2.6, 1), consensus(4.5, 4.5, 4.6, 4.6, 3)
    last = meet(4.8, 4.9)
    trainer = (first, calls[0], calls[1], after_1, mean_of_1, calls[2], calls[3], after_3, mean_of_3, last)
    segment = Segment(start(0), trainer)
    assert segment.before(4) == segment
    assert segment.before(2).entries == trainer[:5]
    assert segment.before(1).entries == trainer[:2]
    # by round clock a rank that rests is carried past rounds that it makes no call for
    carried = (calls[0], consensus(1.5, 1.5, 5.0, 5.0, 7), meet(6.0, 7.0))
    assert Segment(start(0, clock="round"), carried).before(7).entries == carried[:1]

    rounds = [exchange(t, [0, 1], [t, t], t + 1.0, t + 1.05) for t in range(4)]
    ranks = [
        [
            start(rank), *rounds, *trainer[:4], *trainer[5:8],
            start(rank, first_round=2), *rounds[2:], *calls[2:], meet(4.2, 4.9), offset(5.0), END,
        ]
        for rank in range(2)
    ]  # fmt: skip
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    assert summary.rounds == 4
    assert [own.calls for own in summary.ranks] == [4, 4]
    np.testing.assert_allclose([own.resting for own in summary.ranks], 0.1 + 0.1 + 0.7)
