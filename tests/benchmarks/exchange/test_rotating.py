"""Delays, and the bound that they set."""

import numpy as np
import pytest

from benchmarks.exchange.rotating import bound_seconds, draw_delays


def test_delays_hit_one_worker_a_round_and_are_reproducible():
    delays = draw_delays(1000, 4, 0.15, (0, 1))
    assert delays.shape == (1000, 4)
    assert ((delays > 0).sum(1) == 1).all()
    assert delays.max() == 0.15
    assert np.abs((delays > 0).mean(0) - 0.25).max() < 0.05
    np.testing.assert_array_equal(delays, draw_delays(1000, 4, 0.15, (0, 1)))
    assert (delays != draw_delays(1000, 4, 0.15, (0, 2))).any()


def test_bound_by_hand():
    delays = np.array([[5, 0], [0, 5], [0, 5], [5, 0], [5, 0]])
    assert bound_seconds(delays, 1, 1) == 5 * 6  # Allreduce: all wait for the late one
    assert bound_seconds(delays, 1, 2) == (2 + 5) + (2 + 5) + (1 + 5)
    assert bound_seconds(delays, 1, 5) == 5 + 15
    assert bound_seconds(np.zeros((30, 4)), 0.1, 10) == pytest.approx(3)
