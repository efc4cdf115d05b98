"""One timeline for ranks whose times run apart."""

import numpy as np
import pytest
from ledger.constructed import END, TIMES, consensus, in_own_time, meet, moved, offset, simulate, start, write

from wagma_jax import ledger
from wagma_jax.ledger.entries import GlobalMean, Start
from wagma_jax.ledger.plain_text import alignment_text


def test_times_with_offset_and_drift_come_to_one_timeline(tmp_path):
    computation = np.full((4, 40), 0.01)
    computation[3] = 0.03
    straight = simulate(computation)
    for entries in straight:
        later = entries[-2].time
        entries[-2:] = [
            meet(later, later + 0.5), consensus(later + 1, later + 1, later + 2, later + 2, 39),
            GlobalMean(39, later + 1, later + 2), offset(later + 3), END,
        ]  # fmt: skip
    crooked = [
        list(in_own_time(entries, 1000.0 * rank, 1e-3 * rank, 2e-5 * rank)) for rank, entries in enumerate(straight)
    ]
    expected = ledger.align(ledger.read(write(tmp_path / "straight", *straight)))
    aligned = ledger.align(ledger.read(write(tmp_path / "crooked", *crooked)))
    for one, other in zip(expected, aligned, strict=True):
        for entry, reference in zip(one.segments[0].entries, other.segments[0].entries, strict=True):
            for name in set(TIMES) & set(entry._fields):
                assert getattr(entry, name) == pytest.approx(getattr(reference, name), abs=1e-6)
        assert other.segments[0].start.time == pytest.approx(0.0, abs=1e-6)
        assert other.segments[0].offset.time == pytest.approx(one.segments[0].offset.time, abs=1e-6)
    reference, summary = (ledger.summarize(ledger.read(tmp_path / name)) for name in ("straight", "crooked"))
    np.testing.assert_allclose(summary.waits, reference.waits, atol=1e-6)
    assert summary.alignment.error == pytest.approx(2 * 2e-5 + 3 * 2e-5)  # of ranks 2 and 3
    assert summary.alignment.contradiction < 1e-6  # times are written to within 0.1 microseconds
    assert summary.alignment.measured_twice
    # rank 3's time is fast by 3e-3 of the time between its measurements
    assert summary.alignment.drift == pytest.approx(3e-3 * straight[3][-2].time, rel=1e-4)


def test_a_contradiction_between_times_is_told(tmp_path):
    entries = simulate(np.full((2, 8), 0.01))
    entries[1] = [entry if isinstance(entry, Start) else moved(entry, lambda t: t + 0.5) for entry in entries[1]]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *entries)))
    assert summary.alignment.contradiction == pytest.approx(0.5 - 0.002)
    assert "aligned to within 498 ms at best" in alignment_text(summary.alignment)


def test_segments_follow_each_other_without_a_gap(tmp_path):
    ranks = [[start(rank, time=5.0), meet(6.0, 8.0), start(rank, time=105.0), meet(107.0, 108.0)] for rank in range(2)]
    for own in ledger.align(ledger.read(write(tmp_path / "run", *ranks))):
        assert [part.start.time for part in own.segments] == [0.0, 3.0]
        assert [part.entries for part in own.segments] == [(meet(1.0, 3.0),), (meet(5.0, 6.0),)]
