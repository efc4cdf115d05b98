"""GroupExchange between real processes, of every number of workers that the program knows."""

import os
import sys
from pathlib import Path

import pytest
from processes import ROOT, run_all

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
WAGMA = Path(sys.executable).parent / "wagma"
PROGRAM = ROOT / "tests" / "programs" / "exchange_rounds.py"


def test_rounds_of_two_to_eight_workers():
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [WAGMA, "launch", "-n", "8", "--", sys.executable, PROGRAM]
    ((status, output),) = run_all([command], environment=environment, timeout=280)
    assert status == 0, output
    for workers in (2, 3, 4, 5, 6, 8):
        assert f"{workers} workers ok" in output
