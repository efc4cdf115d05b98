"""Order statistics, by hand and by simulation."""

import math

import numpy as np
import pytest

from benchmarks.samples import Summary, ratios, summarize


def test_summary_by_hand():
    assert summarize([3.0]) == Summary(1, 3, 3, 3, 3, 3, 3)
    one = summarize([9, 1, 8, 2, 7, 3, 6, 4, 5, 10])
    assert one[:4] == (10, 5.5, 3.25, 7.75)
    assert one.p95 == pytest.approx(9.55)
    # P(Binomial(10, 1/2) <= 1) = 11/1024, P(<= 2) = 56/1024: leave out one value on either side
    assert (one.low, one.high) == (2, 9)
    assert summarize(range(6))[-2:] == (0, 5)  # 1/64 on either side
    assert summarize(range(100))[-2:] == (39, 60)  # the 40th and the 61st, as in tables
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_interval_of_the_median_covers():
    samples = np.random.default_rng(0).exponential(size=(400, 15))
    hits = [one.low <= math.log(2) <= one.high for one in map(summarize, samples)]
    assert np.mean(hits) > 0.93


def test_ratios_are_taken_within_a_pass():
    drift = [1, 10, 100]
    assert ratios([2 * d for d in drift], drift)[:4] == (3, 2, 2, 2)
    assert ratios([2, 20], drift).n == 2  # dropped after two passes
