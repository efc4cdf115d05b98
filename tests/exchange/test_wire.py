"""Sums of the wire have the bits that they must have."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from processes import ROOT, run_ranks


def test_sums_of_one_to_four_members():
    ranks.run("exchange_wire.sums", optimized=True)  # as in earnest: optimizations change how XLA divides


@pytest.mark.long
def test_sums_of_one_to_six_members():
    program = ROOT / "tests" / "programs" / "exchange_wire.py"
    optimized = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    status, output = run_ranks(6, program, timeout=110, environment=optimized)
    assert status == 0, output
