"""Failures that are handled end nobody: the same processes go on with new exchanges."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.mark.parametrize(
    "body",
    [
        "around",
        "consensus_against_close",
        "asleep",
        "computing",
        "holding_the_lock",
        "short_of_a_quorum",
        "never_meeting",
        "never_closing",
        "alternately",
    ],
)
def test_a_failure_is_handled(body):
    ranks.run(f"exchange_failures.{body}", num_ranks=3)


def test_many_exchanges_leave_nothing_behind():
    ranks.run("exchange_leaks.leaks", 6, num_ranks=2)


@pytest.mark.long
def test_very_many_exchanges_leave_nothing_behind():
    ranks.run("exchange_leaks.leaks", 40, num_ranks=2, timeout=200)
