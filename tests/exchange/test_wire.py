"""Sums of the wire have the bits that they must have."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from compilations import AS_USERS_DO
from processes import ROOT, run_ranks


def test_sums_of_one_to_four_members():
    ranks.run("exchange_wire.sums", optimized=True)  # as in earnest: optimizations change how XLA divides


def test_sums_in_steps_of_three_and_four_members():
    ranks.run("exchange_wire.sums_in_steps")


@pytest.mark.long
def test_sums_of_one_to_six_members():
    program = ROOT / "tests" / "programs" / "exchange_wire.py"
    status, output = run_ranks(6, program, timeout=110, environment=AS_USERS_DO)
    assert status == 0, output
