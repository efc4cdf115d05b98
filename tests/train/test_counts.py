"""What workers count adds up, and makes the rows of the metrics file."""

import math

import pytest

from train.counts import Counts, Distance, Rows, total

ONE = Counts(
    steps=2, units=16, sums={"loss": (6.0, 2.0)}, late=1, staleness=3,
    seconds=1.0, waited=0.25, worked=0.5, data_wait=0.5,
    distance=Distance(9, 4.0, 1), notes={"lost": frozenset({1})},
)  # fmt: skip
OTHER = Counts(
    steps=1, units=8, sums={"loss": (1.0, 1.0), "more": (1.0, 4.0)}, seconds=3.0, waited=0.75,
    distance=Distance(9, 12.0, 1), notes={"lost": frozenset({5})},
)  # fmt: skip


def test_counts_add_up():
    whole = ONE + OTHER
    assert whole == OTHER + ONE == total([Counts(), ONE, OTHER])
    assert (whole.steps, whole.units, whole.late, whole.staleness) == (3, 24, 1, 3)
    assert (whole.seconds, whole.waited, whole.worked, whole.data_wait) == (4.0, 1.0, 0.5, 0.5)
    assert whole.distance == Distance(9, 16.0, 2)
    assert whole.notes == {"lost": frozenset({1, 5})}
    assert whole.means() == {"loss": pytest.approx(7 / 3), "more": 0.25}
    assert (Counts() + Counts()).waited is None  # where nothing tells


def test_only_the_newest_distance_counts():
    assert (Counts(distance=Distance(3, 1.0, 2)) + Counts(distance=Distance(5, 7.0, 1))).distance == Distance(5, 7.0, 1)


def test_a_row():
    rows = Rows(num_workers=2, units=100, seconds=10.0)
    row = rows.row(20, [ONE, OTHER], "rows")
    assert row == {
        "step": 20,
        "examples": 124,
        "seconds": 13.0,  # of the process that took longest
        "loss": pytest.approx(7 / 3),
        "more": 0.25,
        "consensus_distance": pytest.approx(math.sqrt(8.0)),
        "examples_per_second": 24 / 2.0,  # both took 2 seconds on average
        "data_wait_fraction": 0.125,
        "late_fraction": pytest.approx(1 / 3),
        "wait_fraction": 0.25,
    }
    assert "12 rows/s" in rows.status
    # no sync round since, or one that a worker has not reported: nothing was measured
    again = rows.row(30, [Counts(steps=1, units=8, seconds=1.0), ONE], "rows")
    assert again["consensus_distance"] is None
    assert (again["examples"], again["seconds"]) == (148, 14.0)
    assert rows.row(40, [Counts(), Counts()], "rows")["examples_per_second"] == 0  # jumped over
