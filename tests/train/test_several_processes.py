"""Several processes train together: joined from Slurm's environment, by mpirun or by options, with the same numbers."""

import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, free_port, run_all

from tests.train import runs, toy
from train.errors import GaveUpError
from train.transports import joining, launchers, meeting
from train.transports.group import Group
from wagma_jax import announcing

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


def slurm(process):
    """What srun sets."""
    return {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process),
    }  # fmt: skip


def test_two_processes_under_slurm_give_the_numbers_of_one(alone, tmp_path):
    out = tmp_path / "run"
    command = [*runs.COMMAND, *OPTIONS, "--out", out]
    results = run_all(
        [["env", *(f"{k}={v}" for k, v in slurm(i).items()), *command] for i in range(2)],
        timeout=200,
        environment={"http_proxy": "http://127.0.0.1:9"},  # leads nowhere
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
    assert output.count("making the folder of a checkpoint") == 1
    saved = runs.consensus(tmp_path / "fewer" / "checkpoints" / "13")  # what all processes have written together
    np.testing.assert_allclose(saved, runs.consensus(tmp_path / "fewer" / "consensus"), rtol=1e-6)


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
        (  # an interactive shell: a step of one task in an allocation of four
            {
                "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1",
            },
            None,
        ),
    ],
)  # fmt: skip
def test_what_the_launchers_tell(environment, expected):
    found = launchers.launched(environment)
    assert (None if found is None else tuple(found)) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[007-015],b", "n007"),
        ("n[7,9]", "n7"),
        ("r1-n[1-2].x,b", "r1-n1.x"),
        ("h-1", "h-1"),
    ],
)
def test_the_first_host_of_a_step(nodes, first):
    environment = slurm(1) | {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_NODES": "2"}
    step = launchers.slurm_step(environment)
    assert step[1:] == (1, 1, first)
    assert launchers.slurm_step(environment | {"SLURM_STEP_NUM_NODES": "1"}).host == "127.0.0.1"


def test_runs_on_one_host_meet_their_own(monkeypatch):
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 0.2)
    place = meeting.free_port()  # all runs look for process 0 here first, where a stranger listens
    monkeypatch.setattr(meeting, "_places", lambda run: [place + i for i in range(6)])
    ports = {f"{os.getpid()}.{step}.": 1000 + step for step in range(2)}
    found = {}

    def follow(run, process):
        found[run, process] = meeting.follow(run, "localhost", 20)

    with socket.create_server(("127.0.0.1", place)):
        others = [threading.Thread(target=follow, args=(run, i)) for run in ports for i in range(2)]
        for other in others:
            other.start()
        over = [meeting.lead(run, port, 20) for run, port in ports.items()]
        for other in others:
            other.join()
        for each in over:  # whoever asks now belongs to another start
            each.set()
        time.sleep(0.5)
        for run in ports:
            with pytest.raises(TimeoutError, match="process 0 was not found"):
                meeting.follow(run, "localhost", 0.01)
        with pytest.raises(TimeoutError, match="process 0 was not found on localhost within 0 s"):
            meeting.follow("another", "localhost", 0.01)
    assert found == {(run, i): port for run, port in ports.items() for i in range(2)}


def test_side_by_side_in_one_step_runs_have_names_of_their_own(monkeypatch):
    names = []
    monkeypatch.setattr(joining, "initialize", lambda *arguments: names.append(arguments[3]) or 1)
    for options in (toy.Options(), toy.Options(seed=1), toy.Options(out=Path("b")), toy.Options(process_id=1)):
        joining.join(options)
    assert names[0] == names[3]
    assert len(set(names)) == 3
    steps = [launchers.slurm_step(slurm(1), name).name for name in names]
    assert len(set(steps)) == 3
    assert steps[0].startswith(f"{os.getpid()}.0.")


@pytest.mark.parametrize("port", ["auto", "0", "70000"])
def test_a_port_that_is_none_is_refused(port):
    for process in range(2):
        with pytest.raises(ValueError, match=rf"JAX_COORDINATOR_PORT must be in 1 to 65535, got '{port}': unset it"):
            joining.initialize(environment=slurm(process) | {"JAX_COORDINATOR_PORT": port})


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with pytest.raises(ValueError, match=f"JAX_COORDINATOR_PORT is {port}, which another program has"):
            joining.initialize(environment=slurm(0) | {"JAX_COORDINATOR_PORT": port})


def test_addresses():
    assert meeting.split("h1:1234") == ("h1", 1234)
    assert meeting.split("[fd00::1]:1234") == ("fd00::1", 1234)
    assert meeting.join("fd00::1", 1234) == "[fd00::1]:1234"
    for wrong in ("h1", "h1:", ":1", "fd00::1:1234", "h1:x", "h1:70000"):
        assert meeting.split(wrong) is None
        with pytest.raises(ValueError, match=r"HOST:PORT of process 0, got .* IPv6 addresses stand in brackets"):
            joining.initialize(wrong, 2, 0)
    with pytest.raises(
        ValueError, match=r"the host nosuch\.invalid, which has no address here \(.*getent hosts nosuch"
    ):
        joining.initialize("nosuch.invalid:1234", 2, 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}, which another program has"):
            joining.initialize(f"127.0.0.1:{port}", 2, 0)
    unknown = slurm(0) | {"SLURM_STEP_NODELIST": "nosuch.invalid", "SLURM_STEP_NUM_NODES": "2"}
    with pytest.raises(ValueError, match=r"on the host nosuch\.invalid, as Slurm says, which has no address here"):
        joining.initialize(environment=unknown)


def test_whoever_waits_says_for_whom(monkeypatch, capfd):
    monkeypatch.setattr(announcing, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(joining, "INITIALIZATION_TIMEOUT", 0.5)
    with pytest.raises(ValueError, match=r"2 processes, as Slurm says, did not meet: process 0 was not found .*srun"):
        joining.initialize(environment=slurm(1))
    said = capfd.readouterr().err
    assert said.startswith("waiting for all of 2 processes, as Slurm says, to come at 127.0.0.1, for process 0,")
    assert "a process that is to run alone needs --transport xla --processes 1" in said
    with joining.announced(2, "MPI"):
        pass
    assert capfd.readouterr().err == "", "it was over soon"


def test_processes_speak_without_a_proxy():
    environment = {"https_proxy": "http://proxy", "no_proxy": "a,b"}
    joining._avoid_proxy(environment, "h1")
    assert environment["no_grpc_proxy"] == "a,b,h1"
    alone = {"no_proxy": "a"}
    joining._avoid_proxy(alone, "h1")
    assert alone == {"no_proxy": "a"}


def test_a_host_without_an_address_is_named(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "nosuch.invalid")
    with pytest.raises(ValueError, match=r"this host is called nosuch\.invalid, which has no address .*/etc/hosts"):
        joining.initialize(f"127.0.0.1:{free_port()}", 2, 0)


def test_one_process_needs_nobody():
    assert joining.initialize(None, 1, None, environment=slurm(0)) == 1
    assert joining.initialize(environment={}) == 1
    assert joining.initialize(environment={"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}) == 1
    assert joining.initialize(environment={"OMPI_COMM_WORLD_SIZE": "1"}) == 1
    group = Group()
    assert (group.is_first, group.from_first("text"), group.everyone(3)) == (True, "text", [3])
    with pytest.raises(ValueError, match=r"^wrong$"):
        group.agreed(lambda: int("wrong") if False else (_ for _ in ()).throw(ValueError("wrong")))
    group.check_same({"a": 1})


@pytest.mark.parametrize(
    ("problem", "shown", "hidden"),
    [
        (GaveUpError("a simulator hangs"), "toy: a simulator hangs; then go on", "Traceback"),
        (ZeroDivisionError("by nothing"), "ZeroDivisionError: by nothing", "toy:"),
    ],
)
def test_a_process_that_fails_says_why_before_it_ends_all(problem, shown, hidden):
    """In a process that takes itself for one of two; its end is that of the interpreter."""
    code = f"""
from train.errors import GaveUpError
from train.transports.group import Group
from wagma_jax import announcing

group = Group()
group.size = 2
group.abort = lambda: print("aborted", flush=True)
with group.ending_together(gave_up=lambda error: f"toy: {{error}}; then go on"):
    raise {problem!r}
"""
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=60)
    assert status == 1
    assert "aborted" in output
    assert shown in output
    assert hidden not in output
