"""Several processes train together: joined from Slurm's environment, by mpirun or by options, with the same numbers."""

import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, free_port, run_all

from tests.train import runs
from train.transports import joining, launchers
from train.transports.group import Group

OPTIONS = [
    "--workers", "4", "--steps", "12", "--batch-size", "4", "--late-probability", "0.3", "--optimizer", "adam",
    "--log-every", "3", "--eval-every", "6", "--checkpoint-every", "6", "--sync-period", "3",
]  # fmt: skip


def compare(out, alone):
    rows, expected = runs.numbers(out), runs.numbers(alone)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if "loss" in row:
            for name in ("loss", "consensus_distance"):
                assert row[name] == pytest.approx(other[name], rel=1e-4)
            assert row["late_fraction"] == other["late_fraction"]
        else:
            assert row["eval"]["error"] == pytest.approx(other["eval"]["error"], rel=1e-4)
    assert runs.summary(out)["drawn"] == runs.summary(alone)["drawn"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    runs.command_line(*OPTIONS, "--out", out)
    return out


def as_if_killed_before_the_last_checkpoint(out):
    shutil.rmtree(out / "checkpoints" / "12")
    (out / "summary.json").unlink()


def slurm(process, port):
    """What srun sets; the port is that of the job's number in JAX."""
    job = port - (65535 - 2**12 + 1)
    return {
        "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process),
    }  # fmt: skip


def free_slurm_port():
    for _ in range(100):
        port = free_port()
        if port > 65535 - 2**12:
            return port
    for port in range(65535, 65535 - 2**12, -1):
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.fail("no port is free")


def test_two_processes_under_slurm_give_the_numbers_of_one(alone, tmp_path):
    out, port = tmp_path / "run", free_slurm_port()
    command = [*runs.COMMAND, *OPTIONS, "--out", out]
    results = run_all(
        [["env", *(f"{k}={v}" for k, v in slurm(i, port).items()), *command] for i in range(2)], timeout=200
    )
    for status, output in results:
        assert status == 0, output
    assert "error" in results[0][1]
    assert "error" not in results[1][1]  # the first prints
    compare(out, alone)
    summary = runs.summary(out)
    assert (summary["processes"], summary["devices"], summary["workers"]) == (2, 4, 4)
    # one process goes on with what two have saved
    as_if_killed_before_the_last_checkpoint(out)
    _, rows = runs.command_line("--resume", out)
    assert rows[-1]["step"] == 12
    assert len([row for row in rows if row["step"] > 6]) == 3
    compare(out, alone)


def test_two_processes_under_mpirun_resume_the_run_of_one(alone, tmp_path):
    pytest.importorskip("mpi4py", reason="the extra mpi is not installed")
    out = shutil.copytree(alone, tmp_path / "run")
    as_if_killed_before_the_last_checkpoint(out)
    mpirun = [Path(sys.executable).parent / "mpirun", "-n", "2", "--map-by", ":OVERSUBSCRIBE"]
    environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # mpirun suggests a process per worker; here two processes share one program
    resumed = f"--resume {out} --transport xla"
    # and with fewer workers they begin with the consensus
    fewer = f"--resume {tmp_path / 'fewer'} --transport xla --workers 2 --steps 13"
    shutil.copytree(alone, tmp_path / "fewer")
    command = [*mpirun, sys.executable, ROOT / "tests/programs/train_twice.py", resumed, fewer]
    ((status, output),) = run_all([command], environment=environment, timeout=200)
    assert status == 0, output
    assert "going on from step 6" in output
    compare(out, alone)
    assert "starting again from the consensus of 4 workers at step 12" in " ".join(output.split())
    moved = runs.consensus(tmp_path / "fewer" / "consensus") - runs.consensus(alone / "consensus")
    assert 0 < np.abs(moved).max() < 0.2


def test_what_is_wrong_on_one_process_ends_all_of_them(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    common = [*runs.COMMAND, *OPTIONS, "--coordinator", address, "--processes", "2", "--out", tmp_path / "run"]
    results = run_all([[*common, "--process-id", i, "--seed", i] for i in range(2)], timeout=200)
    for status, output in results:
        assert status == 1, output
        assert "process 1 differs from process 0: --seed: 1; start all processes with the same options" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, (2, "slurm", False)),
        (
            {
                "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            },
            (2, "slurm", True),
        ),
        (  # mpirun inside of a job of Slurm, whose variables are those of its daemons
            {
                "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "OMPI_COMM_WORLD_SIZE": "16",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
            },
            (16, "mpi4py", False),
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, (4, "mpi4py", True)),
        ({"PMI_SIZE": "3"}, (3, "mpi4py", False)),
    ],
)  # fmt: skip
def test_what_the_launchers_tell(environment, expected):
    found = launchers.launched(environment)
    assert (None if found is None else tuple(found)) == expected


def test_one_process_needs_nobody():
    assert joining.initialize(environment={}) == 1
    assert joining.initialize(environment={"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}) == 1
    assert joining.initialize(environment={"OMPI_COMM_WORLD_SIZE": "1"}) == 1
    group = Group()
    assert (group.is_first, group.from_first("text"), group.everyone(3)) == (True, "text", [3])
    with pytest.raises(ValueError, match=r"^wrong$"):
        group.agreed(lambda: int("wrong") if False else (_ for _ in ()).throw(ValueError("wrong")))
    group.check_same({"a": 1})
