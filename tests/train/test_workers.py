"""Training over MPI: the numbers of one program where nobody is late, and valid runs where somebody is."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ROOT, run_ranks

from train import images
from wagma_jax import ledger

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

TIMES = {"seconds", "examples_per_second", "data_wait_fraction", "wait_fraction"}
OPTIONS = [
    "--workers", "2", "--group-size", "2", "--sync-period", "4", "--steps", "12", "--batch-size", "8", "--seed", "3",
    "--log-every", "4", "--eval-every", "8", "--checkpoint-every", "8", "--augment", "flip", "--sampling", "shard",
]  # fmt: skip


def rows_of(out, times=False):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if times or name not in TIMES} for row in rows]


def exported(out):
    network = images.create_network("resnet_tiny", "float32", images.Options().load_dataset())
    return jax.tree.leaves(images.load_consensus(out / images.CONSENSUS, network))


def launched(num_ranks, *options, timeout=100):
    status, output = run_ranks(num_ranks, "-m", "train.images", *options, timeout=timeout)
    assert status == 0, output
    return output


def compare(several, alone):
    ours, theirs = rows_of(several), rows_of(alone)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row["examples"] == other["examples"]
        if "loss" in row:
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert row["late_fraction"] == 0
        else:
            assert row["eval"]["loss"] == pytest.approx(other["eval"]["loss"], rel=1e-3)
    summary = json.loads((several / "summary.json").read_text())
    expected = json.loads((alone / "summary.json").read_text())
    assert summary.keys() == expected.keys()
    for name in ("algorithm", "workers", "group_size", "sync_period", "steps", "examples", "test_examples"):
        assert summary[name] == expected[name], name
    assert summary["transport"] == "mpi"
    assert len(summary["wait_seconds"]) == 2
    assert all(seconds > 0 for seconds in summary["wait_seconds"])


def test_where_nobody_is_late_the_numbers_are_those_of_one_program(tmp_path):
    algorithms = ("wagma", "allreduce", "local")
    commands = [["--algorithm", algorithm, *OPTIONS] for algorithm in algorithms]
    several = [
        [*c, "--quorum", "2", "--out", str(tmp_path / f"{a}-2")] for a, c in zip(algorithms, commands, strict=True)
    ]
    status, output = run_ranks(2, ROOT / "tests/programs/train_images.py", json.dumps(several), timeout=100)
    assert status == 0, output
    for algorithm, command in zip(algorithms, commands, strict=True):
        images.train(images.parse([*command, "--out", str(tmp_path / algorithm)]))
        compare(tmp_path / f"{algorithm}-2", tmp_path / algorithm)

    several = tmp_path / "wagma-2"
    # killed after its first checkpoint, it goes on to the same bits
    broken = tmp_path / "broken"
    shutil.copytree(several, broken)
    shutil.rmtree(broken / "checkpoints" / "12")
    (broken / "summary.json").unlink()
    output = launched(2, "--resume", broken)
    assert "going on from step 8" in output
    assert rows_of(broken) == rows_of(several)
    for ours, theirs in zip(exported(broken), exported(several), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [len(one.segments) for one in ledger.read(broken)] == [2, 2]
    # one process with another transport goes on from the consensus
    resumed = images.parse(["--resume", str(broken), "--transport", "xla", "--steps", "16"])
    summary, rows = images.train(resumed)
    assert (summary["steps"], summary["transport"]) == (16, "xla")
    assert rows[-1]["eval"]["accuracy"] > 0


@pytest.mark.timeout(200)
def test_stopped_by_a_signal_while_workers_are_late_it_goes_on(tmp_path):
    out = tmp_path / "run"
    options = [
        "--epochs", "1.5", "--batch-size", "8", "--sync-period", "5", "--clock", "round", "--straggler",
        "rotating:0.03", "--straggler-kind", "compute", "--log-every", "5", "--eval-every", "10000",
        "--checkpoint-every", "10", "--out", str(out),
    ]  # fmt: skip
    wagma = Path(sys.executable).parent / "wagma"
    command = [wagma, "launch", "-n", "3", "--", sys.executable, "-m", "train.images", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            if any((out / "checkpoints").glob("[0-9]*")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert "SIGTERM: stopped at step" in output
    before = rows_of(out, times=True)
    output = launched(3, "--resume", out)
    assert "going on from step" in output
    rows = rows_of(out, times=True)
    assert rows[: len(before)] == before
    logs = [row for row in rows if "loss" in row]
    steps = [row["step"] for row in logs]
    assert steps == sorted(set(steps))
    assert [row["examples"] for row in logs] == sorted(row["examples"] for row in logs)
    summary = json.loads((out / "summary.json").read_text())
    budget = 1.5 * images.Options().load_dataset().train.__len__()
    assert budget <= summary["examples"] < budget + 3 * 5 * 8 + 3 * 8
    assert summary["steps"] % 5 == 0  # a sync round
    assert summary["max_staleness"] <= 4
    assert summary["clock"] == "round"
    assert rows[-1]["eval"]["accuracy"] > 0.15
    # every round was executed once, with the same members and versions
    ledgers = ledger.read(out)
    rounds = [{r.round: (r.group, r.contributed) for s in one.kept() for r in s.rounds} for one in ledgers]
    assert all(set(one) == set(range(summary["steps"])) for one in rounds)
    for t in range(summary["steps"]):
        assert all(rounds[member][t] == rounds[rank][t] for rank in range(3) for member in rounds[rank][t][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--straggler", "rotating:0.1"], "--straggler rotating:0.1 needs --transport mpi"),
        (["--clock", "round"], "--clock round needs --transport mpi"),
        (["--quorum", "2"], "--quorum 2 needs --transport mpi"),
        (["--transport", "mpi"], "got --workers 1 and 1 process: start with wagma launch -n 2"),
        (["--timeout-seconds", "0"], "--timeout-seconds must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        images.main([*options, "--out", str(tmp_path / "run")])
    assert message in str(ended.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"straggler": "often"}, "--straggler must be none, rotating:SECONDS"),
        ({"straggler": "fixed:2:0.1"}, "--straggler names 3 workers, and there are 2"),
        ({"late_probability": 0.1}, "where lateness is real: use --straggler"),
        ({"clock": "round", "sampling": "shard"}, "use --sampling whole"),
        ({"coordinator": "host:1"}, "are for --transport xla: leave them out"),
    ],
)
def test_what_cannot_be_over_mpi_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        images.Options(transport="mpi", workers=2, **options).check()
