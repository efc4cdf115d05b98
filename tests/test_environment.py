"""The environment that make sets up: mpi4jax built against the Open MPI of the same environment."""

import sys
from pathlib import Path

import pytest
from processes import run_all

PROGRAMS = Path(__file__).parent / "programs"


def test_two_mpi_processes_exchange_jax_arrays():
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    mpirun = Path(sys.executable).parent / "mpirun"
    environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # both ranks would write it
    command = [mpirun, "-n", "2", "--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    ((status, output),) = run_all(
        [[*command, sys.executable, PROGRAMS / "mpi_allreduce.py"]], environment=environment, timeout=120
    )
    assert status == 0, output
    for rank in range(2):
        assert f"rank {rank} of 2 ok" in output
