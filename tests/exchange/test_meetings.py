"""Tallies, meetings and states between real processes."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_tallies_add_up(num_ranks):
    ranks.run("exchange_meetings.tallies", num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "sync_period", "clock"), [(2, 5, "round"), (3, 5, "step"), (3, None, "round"), (4, None, "step")]
)
def test_nobody_leaves_a_meeting_before_all_have_come(num_ranks, sync_period, clock):
    ranks.run("exchange_meetings.meetings", sync_period, clock, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "sync_period", "stops"),
    [
        (2, None, (4, 7)),
        (4, 5, (7,)),
        pytest.param(3, 5, (4,), marks=pytest.mark.long),
        pytest.param(4, None, (3, 8), marks=pytest.mark.long),
        pytest.param(4, 5, (5, 7), marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_from_its_state_with_the_same_bits(num_ranks, sync_period, stops):
    ranks.run("exchange_meetings.interrupted", sync_period, stops, num_ranks=num_ranks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_that_was_not_taken_is_merged_when_the_run_goes_on(dtype):
    ranks.run("exchange_meetings.untaken", dtype, num_ranks=3)


def test_where_states_can_be_had_and_what_is_none():
    ranks.run("exchange_meetings.states", num_ranks=2)
