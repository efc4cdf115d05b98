"""Calls that end by an exception, ranks that do not come, and sums that nobody has taken."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.mark.parametrize("body", ["left", "errors", "constructor", "untaken", "far_behind", "nonfinite", "deferred"])
def test_calls(body):
    ranks.run(f"exchange_calls.{body}", num_ranks=2)


def test_the_end_has_a_limit(tmp_path):
    ranks.run("exchange_calls.closing", str(tmp_path), num_ranks=2)
