"""GroupExchange between real processes, of every number of workers that the program knows."""

import os

import pytest
from processes import ROOT, run_ranks

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
PROGRAM = ROOT / "tests" / "programs" / "exchange_rounds.py"


def test_rounds_of_two_to_eight_workers():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    status, output = run_ranks(8, PROGRAM, timeout=280, environment={"PYTHONPATH": path})
    assert status == 0, output
    for workers in (2, 3, 4, 5, 6, 8):
        assert f"{workers} workers ok" in output


def test_sums_of_the_wire():
    program = ROOT / "tests" / "programs" / "exchange_wire.py"
    # as it is compiled in earnest: XLA's optimizations change how it divides
    optimized = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    status, output = run_ranks(6, program, timeout=110, environment=optimized)
    assert status == 0, output
    assert "all sums and means are right" in output
