"""Processes that a rank starts: they never speak MPI, and their end is not the rank's."""

import os
import sys
from pathlib import Path

import pytest
from processes import ROOT, run_all, run_ranks

from wagma_jax import lineage

ROOT_USER = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
RANK = {"PMIX_NAMESPACE": "prterun-1@1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1"}


def test_a_childs_variables_tell_of_its_rank():
    environment = dict(RANK)
    assert lineage.parent(environment) is None
    lineage.mark(environment)
    assert environment["MPI4PY_RC_INITIALIZE"] == "false"
    assert lineage.parent(environment) is None, "this process is the rank itself"
    environment[lineage.MARK] = environment[lineage.MARK].replace(str(os.getpid()), "17")
    assert lineage.parent(environment) == 17
    # a rank of another run, which a child of this one has started
    assert lineage.parent(environment | {"PMIX_NAMESPACE": "prterun-2@1"}) is None
    lineage.forget(environment)
    assert environment == RANK
    alone = {}
    lineage.mark(alone)
    assert alone == {}, "no launcher has started this process: what it starts may be ranks"


@pytest.mark.long
def test_ranks_that_a_rank_has_started_by_mpirun_are_ranks():
    """They have the variables of the rank of another run, by which mpi4py would neither begin nor end MPI."""
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed")
    environment = {lineage.MARK: "1 PMIX_RANK=7", lineage.MPI4PY: "false"}
    after = "import wagma_jax.exchange; from mpi4py import MPI"
    before = "from mpi4py import MPI; import wagma_jax.exchange"
    for script in (after, before):
        check = f"{script}; print('of', MPI.COMM_WORLD.size, 'marked', 'WAGMA_RANK' in __import__('os').environ)"
        command = [Path(sys.executable).parent / "mpirun", "-n", "2", "--map-by", ":OVERSUBSCRIBE", sys.executable]
        ((status, output),) = run_all([[*command, "-c", check]], timeout=100, environment=environment | ROOT_USER)
        assert status == 0, output
        assert output.count("of 2 marked True") == 2


def test_a_rank_is_one_before_it_has_an_exchange():
    """So that what it starts before is no rank."""
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed")
    check = "from mpi4py import MPI; import os, wagma_jax; print('marked', 'WAGMA_RANK' in os.environ)"
    command = [Path(sys.executable).parent / "mpirun", "-n", "1", sys.executable, "-c", check]
    ((status, output),) = run_all([command], timeout=100, environment=ROOT_USER)
    assert (status, output.strip()) == (0, "marked True")


def test_the_users_setting_of_mpi4py_stays():
    environment = RANK | {"MPI4PY_RC_INITIALIZE": "true"}
    lineage.mark(environment)
    lineage.forget(environment)
    assert environment == RANK | {"MPI4PY_RC_INITIALIZE": "true"}


def test_children_of_ranks():
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed")
    status, output = run_ranks(2, ROOT / "tests" / "programs" / "exchange_children.py", timeout=100)
    assert status == 0, output
    for rank in range(2):
        lines = [line.removeprefix(f"[{rank}] ") for line in output.splitlines() if line.startswith(f"[{rank}] ")]
        refusals = [line for line in lines if "which is no rank: exchange in the rank itself" in line]
        assert [line.split("()")[0] for line in refusals] == ["average", "pool [4, 9] GroupExchange"][: rank + 1]
        assert rank == 0 or refusals[1].endswith(" False"), "the child of the pool has not initialized MPI"
        assert "ZeroDivisionError: of the child" in lines
        ends = [line for line in lines if line.split()[0] in ("exit", "average", "fail", "leaves", "alone", "went")]
        alone = ["alone None"] if rank == 1 else []
        assert ends == ["exit 3", "average 4", "fail 1", "leaves 0", *alone, "went on to 5"], output
