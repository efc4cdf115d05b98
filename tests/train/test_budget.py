"""When runs end and which share is done."""

import pytest

from train.budget import Budget, Length, Pace


def test_steps_or_epochs_say_how_long():
    assert Length(None, None, 32, 100).total_steps() == 300
    assert Length(7, None, 32, None).total_steps() == 7
    assert Length(None, 0.1, 21, 1437).total_steps() == 7  # 143.7 units
    assert Length(None, 0.4, 24, 1437).total_steps(first_step=18, first_unit=288) == 18 + 12
    assert Length(None, 0.001, 24, 100).total_steps() == 1


def test_the_share_that_is_done():
    assert Length(10, None, 1, None).share_done(4, 999) == 0.4
    assert Length(None, 2.0, 1, 50).share_done(4, 25) == 0.25
    assert Length(None, 2.0, 1, 50).share_done(4, 250) == 1.0
    resumed = Budget(total_steps=30, first_step=10, first_share=0.5)
    assert [resumed.share(step, 0) for step in (10, 20, 30, 40)] == [0.5, 0.75, 1.0, 1.0]
    assert Budget(total_steps=30).share(15, 0) == 0.5
    by_units = Budget(total_steps=30, first_step=10, first_share=0.2, units=100)
    assert [by_units.share(999, units) for units in (0, 50, 100, 130)] == pytest.approx([0.2, 0.6, 1, 1])


def test_the_end():
    assert [Budget(5).ended(step, 0) for step in (4, 5, 6)] == [False, True, True]
    assert [Budget(5, units=100).ended(9, units) for units in (99, 100)] == [False, True]
    assert Budget(total_steps=30, first_step=10, units=100).shown_steps(0, 50) == 20
    assert Budget(total_steps=30).shown_steps(40, 0) == 30
    with pytest.raises(ValueError, match="raise --steps"):
        Budget(total_steps=3, first_step=4)


def test_between_meetings_the_pace_tells():
    pace = Pace(units=100, steps=10, per_round=8)
    assert pace.at(12) == 116
    pace.meet(20, 40)  # slower than it was thought
    assert (pace.units, pace.at(20), pace.at(25)) == (140, 140, 160)
    pace.meet(20, 5)  # twice at the same place
    assert (pace.units, pace.at(25)) == (145, 165)
