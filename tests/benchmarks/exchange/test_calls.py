"""Rates and waits of a few calls, by hand."""

import pytest

from benchmarks.exchange.calls import Call, rates_between_syncs, waits


def calls():
    ends = [0.0, 1.0, 2.0, 9.0, 10.0, 12.0, 30.0, 31.0]
    return [Call(end, i in (0, 3, 6), 0.1 * i, 0, i % 2 == 0) for i, end in enumerate(ends)]


def test_rates_between_syncs_leave_out_the_waits_at_syncs():
    assert rates_between_syncs(calls()) == [1.0, 2 / 3]  # the last period is not complete
    assert rates_between_syncs(calls()[:3]) == []


def test_waits_are_those_of_ordinary_rounds():
    assert waits(calls()) == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.7])
    assert waits(calls(), until=10) == pytest.approx([0.1, 0.2, 0.4])
    assert waits(calls(), with_late=True) == pytest.approx([0.2, 0.4])
