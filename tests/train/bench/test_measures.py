"""What is measured of a run, against numbers counted by hand."""

import math

import pytest

from train.bench import measures
from train.bench.measures import Point
from train.bench.statistics import Difference, Spread, difference, spread
from train.task import Score

ACCURACY, ERROR = Score("accuracy", "%"), Score("error", higher=False)
CURVE = (Point(1.0, 100, 0.25), Point(3.0, 200, 0.75), Point(5.0, 300, 0.5))


def summary(**changes):
    return {
        "wall_seconds": 10.0, "examples": 600, "examples_per_second": 60.0, "wait_seconds": [4.0, 2.0],
        "work_seconds": [5.0, 8.0], "local_steps": [100, 50], "late_fraction": 0.25, "max_staleness": 3,
        "eval": {"accuracy": 0.5},
    } | changes  # fmt: skip


def test_a_run_in_numbers():
    rows = [
        {"step": 5, "loss": 1.0},
        {"step": 10, "seconds": 4.0, "examples": 300, "eval": {"accuracy": 0.25}},
        {"step": 20, "seconds": 10.0, "examples": 600, "eval": {"accuracy": None}},
    ]
    one = measures.measure(summary(), rows, ACCURACY)
    assert (one.seconds, one.examples, one.throughput, one.late, one.staleness) == (10.0, 600, 60.0, 0.25, 3)
    assert (one.waited, one.worked, one.score) == (3.0, 6.5, 0.5)
    assert one.curve == (Point(4.0, 300, 0.25), Point(10.0, 600, None))
    # in its 10 seconds worker 0 could have taken 200 steps at its pace, and worker 1 62.5
    assert one.goodput == pytest.approx(150 / 262.5)
    assert measures.pace(summary()) == pytest.approx(100 / 5 + 50 / 8)


def test_what_one_program_cannot_tell():
    one = measures.measure(summary(wait_seconds=[None] * 2, work_seconds=[None] * 2), [], ACCURACY)
    assert (one.waited, one.worked, one.goodput, one.curve) == (None, None, None, ())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.2, Point(1.0, 100, 0.2)),  # at the first evaluation already
        (0.5, Point(2.0, 150, 0.5)),  # between two
        (0.75, Point(3.0, 200, 0.75)),
        (0.8, None),
    ],
)
def test_when_a_score_is_reached(target, expected):
    assert measures.reached(CURVE, ACCURACY, target) == expected


def test_lower_scores_may_be_better():
    falling = tuple(point._replace(score=1 - point.score) for point in CURVE)
    assert measures.reached(falling, ERROR, 0.5) == Point(2.0, 150, 0.5)
    assert measures.reached(falling, ERROR, 0.2) is None


def test_scores_that_are_no_numbers_are_no_beginning_of_a_line():
    curve = (Point(1.0, 100, None), Point(2.0, 200, math.nan), Point(4.0, 300, 0.5))
    assert measures.reached(curve, ACCURACY, 0.4) == Point(4.0, 300, 0.4)
    assert measures.reached((), ACCURACY, 0.4) is None


def test_the_worst_score():
    assert measures.worst([0.5, 0.25, 0.75], ACCURACY) == 0.25
    assert measures.worst([0.5, 0.25, 0.75], ERROR) == 0.75
    assert measures.worst([0.5, None], ERROR) is None
    assert measures.worst([], ERROR) is None


def test_spreads():
    assert spread([3.0, None, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert spread([None]) is None


def test_paired_differences():
    found = difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # 1, 2, 3: t(0.975, 2) = 4.3027, deviation 1
    half = 4.302653 / 3**0.5
    assert found == pytest.approx((2.0, 2 - half, 2 + half))
    assert found.within_noise(False)
    assert not Difference(0.01, 0.002, 0.018).within_noise(True)
    assert Difference(0.004, 0.002, 0.006).within_noise(True)  # less than half a point
    assert not Difference(0.004, 0.002, 0.006).within_noise(False)
    assert difference([1.0], [0.5]) == (0.5, None, None)
    assert difference([1.0], [0.5]).within_noise(True) is None
    assert difference([], []) is None
