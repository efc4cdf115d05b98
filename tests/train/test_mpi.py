"""The toy workload over MPI: the numbers of one program where nobody is late, and valid runs where somebody is."""

import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks

from tests.train import runs
from tests.train.toy import EXAMPLES
from train.checkpoints import look, part_of, read_as_saved, steps
from wagma_jax import ledger

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

OPTIONS = [
    "--workers", "2", "--group-size", "2", "--sync-period", "4", "--steps", "14", "--batch-size", "8", "--seed", "3",
    "--log-every", "4", "--eval-every", "8", "--checkpoint-every", "8", "--sampling", "shard", "--optimizer", "adamw",
]  # fmt: skip
VARIANTS = {
    "wagma": ["--algorithm", "wagma"],
    "allreduce": ["--algorithm", "allreduce"],
    "local": ["--algorithm", "local"],
    "eager": ["--algorithm", "eager"],
    "moments": ["--moments", "second-sync"],
    "no-sync": ["--sync-period", "None"],
    "dpsgd": ["--algorithm", "dpsgd"],
    "sgp": ["--algorithm", "sgp", "--sgp.overlap", "1"],
}
WITHOUT_SYNC = ["no-sync", "dpsgd", "sgp"]


def launched(num_ranks, *commands):
    """Runs, one after the other, on ranks of the pool; what these have printed."""
    return "".join(ranks.run("train_bodies.toys", *commands, num_ranks=num_ranks, timeout=100))


def run_several(names, folder):
    """Runs over two processes, one for each of these variants."""
    commands = [
        [*OPTIONS, *VARIANTS[name], "--quorum", "2", "--out", str(folder / name)]
        + (["--meet-every", "4"] if name in WITHOUT_SYNC else [])
        for name in names
    ]
    launched(2, *commands)


def compare(name, several, alone):
    """The numbers of two processes with those of one program."""
    runs.command_line(*OPTIONS, *VARIANTS[name], "--out", alone / name)
    ours, theirs = runs.numbers(several / name), runs.numbers(alone / name)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row["examples"] == other["examples"]
        distances = [one.get("consensus_distance") for one in (row, other)]
        assert (distances[0] is None) == (distances[1] is None)
        assert (distances[0] or 0) == pytest.approx(distances[1] or 0, rel=1e-3)
        if "loss" in row:
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert row["late_fraction"] == 0
        else:
            assert row["eval"]["error"] == pytest.approx(other["eval"]["error"], rel=1e-4)
    summary, expected = runs.summary(several / name), runs.summary(alone / name)
    assert summary.keys() == expected.keys()
    for key in ("algorithm", "workers", "group_size", "sync_period", "steps", "examples", "unit", "drawn"):
        assert summary[key] == expected[key], key
    assert summary["transport"] == "mpi"
    assert len(summary["wait_seconds"]) == 2
    assert all(seconds > 0 for seconds in summary["wait_seconds"])
    for waited, worked in zip(summary["wait_seconds"], summary["work_seconds"], strict=True):
        assert 0 < worked < worked + waited < summary["wall_seconds"]
    assert summary["local_steps"] == [14, 14]
    np.testing.assert_allclose(runs.consensus(several / name), runs.consensus(alone / name), rtol=1e-4)
    for out in (several / name, alone / name):  # what a checkpoint makes of all workers is what was exported
        np.testing.assert_allclose(runs.consensus(out), runs.consensus(out / "consensus"), rtol=1e-5)


def check_that_what_is_equal_is_saved_once(names, several):
    assert steps(several / "wagma" / "checkpoints") == [14, 8]
    for name in names:
        models = 2 if name in WITHOUT_SYNC else 1
        parts = look(several / name / "checkpoints" / "8").parts
        assert sorted(parts) == ["worker-0", "worker-1"]
        assert sum("model" in pieces for pieces in parts.values()) == models
        assert all("optimizer" in pieces and "exchange" in pieces and "carry" in pieces for pieces in parts.values())


def check_that_killed_runs_go_on_to_the_same_bits(names, several, broken):
    for name in names:
        shutil.copytree(several / name, broken / name)
        shutil.rmtree(broken / name / "checkpoints" / "14")
        (broken / name / "summary.json").unlink()
    output = launched(2, *(["--resume", str(broken / name)] for name in names))
    assert output.count("going on from step 8") == len(names)
    for name in names:
        assert runs.numbers(broken / name) == runs.numbers(several / name)
        np.testing.assert_array_equal(
            runs.consensus(broken / name / "consensus"), runs.consensus(several / name / "consensus")
        )
        assert [len(one.segments) for one in ledger.read(broken / name)] == [2, 2]


def check_that_runs_go_on_longer_and_end_once(several, folder):
    """Evaluations before the first log point of a start; a run that is complete; meetings beside sync rounds."""
    longer = shutil.copytree(several / "local", folder / "longer")
    again = ["--out", str(several / "allreduce"), "--resume-if-exists"]
    clocks = [
        "--clock", "round", "--sync-period", "5", "--meet-every", "4", "--straggler", "fixed:1:0.02", "--steps", "22",
        "--eval-every", "1", "--log-every", "7", "--batch-size", "4", "--group-size", "2", "--checkpoint-every", "0",
        "--out", str(folder / "clocks"),
    ]  # fmt: skip
    commands = [["--resume", str(longer), "--steps", "24", "--log-every", "10", "--eval-every", "4"], again, clocks]
    before = {path: path.read_bytes() for path in (several / "allreduce").rglob("*") if path.is_file()}
    output = launched(2, *commands)
    assert [row["step"] for row in runs.numbers(longer) if "eval" in row] == [8, 14, 16, 20, 24]
    assert output.count("is complete: there is nothing left to do") == 2
    assert {path: path.read_bytes() for path in (several / "allreduce").rglob("*") if path.is_file()} == before
    meetings = [row["step"] for row in runs.numbers(folder / "clocks") if "eval" in row]
    assert set(meetings) >= {5, 10, 15, 20, 22}


def check_that_another_transport_goes_on_from_the_consensus(out):
    before = runs.consensus(out)
    np.testing.assert_allclose(before, runs.consensus(out / "consensus"), rtol=1e-6)
    summary, rows = runs.command_line("--resume", out, "--transport", "xla", "--steps", "15", "--learning-rate", "0.1")
    assert (summary["steps"], summary["transport"]) == (15, "xla")
    assert 0 < np.abs(runs.consensus(out) - before).max() < 0.2  # one step of Adam away
    assert len(list((out / "ledger-before-14").iterdir())) == 2
    assert rows[-1]["eval"]["error"] > 0


def test_two_processes_give_the_numbers_of_one_program_and_go_on_exactly(tmp_path, request):
    several = tmp_path / "several"
    names = list(VARIANTS)
    if not request.config.getoption("--long"):  # there are others without sync rounds
        names.remove("no-sync")
    run_several(names, several)
    for name in names:
        compare(name, several, tmp_path / "alone")
    without_sync = [name for name in WITHOUT_SYNC if name in names]
    check_that_what_is_equal_is_saved_once(["wagma", "allreduce", *without_sync], several)
    check_that_killed_runs_go_on_to_the_same_bits(["wagma", "moments", *without_sync], several, tmp_path / "broken")
    check_that_runs_go_on_longer_and_end_once(several, tmp_path / "further")
    for name in [name for name in ("wagma", "no-sync", "dpsgd") if name in names]:
        check_that_another_transport_goes_on_from_the_consensus(several / name)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("sync", "number", "workers"), [(True, signal.SIGTERM, 2), (False, signal.SIGUSR1, 3)])
def test_stopped_by_a_signal_while_workers_are_late_it_goes_on(sync, number, workers, tmp_path):
    out = tmp_path / "run"
    options = [
        "--epochs", "1000", "--batch-size", "8", "--clock", "round", "--straggler", "rotating:0.02",
        "--straggler-kind", "compute" if sync else "sleep", "--log-every", "5", "--eval-every", "10000",
        "--checkpoint-every", "10", "--group-size", "2", "--out", str(out), *(["--sync-period", "5"] if sync else []),
        *([] if sync else ["--sync-period", "None", "--meet-every", "5"]),
    ]  # fmt: skip
    if sync:  # the launcher gets it, and hands it on
        wagma = Path(sys.executable).parent / "wagma"
        command = [wagma, "launch", "-n", workers, "--", *runs.COMMAND, *options]
        runs.stopped(command, lambda: steps(out / "checkpoints"), number, seconds=90)
    else:  # a worker gets it, and the others stop with it
        outputs = ranks.run("train_bodies.stopped_toy", options, number, 12, num_ranks=workers, timeout=100)
        assert f"{number.name}: stopped at step" in outputs[0]
    before = runs.numbers(out)
    position = look(out / "checkpoints" / str(steps(out / "checkpoints")[0])).position
    epochs = position.examples // EXAMPLES + 5
    output = launched(workers, ["--resume", str(out), "--epochs", str(epochs)])
    assert f"going on from step {position.step}" in output
    rows = runs.numbers(out)
    assert rows[: len(before)] == before
    logs = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logs] == sorted({row["step"] for row in logs})
    assert [row["examples"] for row in logs] == sorted(row["examples"] for row in logs)
    summary = runs.summary(out)
    budget = epochs * EXAMPLES
    assert budget <= summary["examples"] < budget + workers * (5 + 1) * 8
    assert summary["clock"] == "round"
    if sync:
        assert summary["steps"] % 5 == 0  # a sync round
        assert summary["max_staleness"] <= 4
    assert rows[-1]["eval"]["error"] < 5
    # every round was executed once, with the same members and versions
    ledgers = ledger.read(out)
    rounds = [{r.round: (r.group, r.contributed) for s in one.kept() for r in s.rounds} for one in ledgers]
    assert all(set(range(summary["steps"])) <= set(one) for one in rounds)
    for t in range(summary["steps"]):
        assert all(rounds[member][t] == rounds[rank][t] for rank in range(workers) for member in rounds[rank][t][0])


def test_local_sgd_skips_models_that_are_not_finite(tmp_path):
    options = [*OPTIONS, "--algorithm", "local", "--on-nonfinite", "skip", "--out", str(tmp_path / "run")]
    launched(2, options)
    assert runs.summary(tmp_path / "run")["steps"] == 14


def test_integers_among_the_statistics_stay_each_workers_own(tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    options = [*OPTIONS, "--quorum", "2"]
    ranks.run("train_bodies.counting_toys", [*options, "--out", str(out)], num_ranks=2, timeout=100)
    drawn = drawn_by_each(out / "checkpoints" / "14")
    assert drawn[0] != drawn[1]
    shutil.copytree(out, again)
    shutil.rmtree(again / "checkpoints" / "14")
    (again / "summary.json").unlink()
    ranks.run("train_bodies.counting_toys", ["--resume", str(again)], num_ranks=2, timeout=100)
    assert drawn_by_each(again / "checkpoints" / "14") == drawn
    assert runs.summary(out)["eval"]["drawn"] == drawn[0], "of the first worker, on all processes"


def drawn_by_each(checkpoint):
    models = [read_as_saved(checkpoint, part_of(worker), "model") for worker in range(2)]
    return [int(model["stats"]["drawn"]) for model in models]


def test_late_gradients_are_applied_later(tmp_path):
    out = tmp_path / "run"
    options = [
        "--algorithm", "eager", "--eager.start", "majority", "--clock", "round", "--straggler", "rotating:0.01",
        "--sync-period", "5", "--optimizer", "sgd", "--momentum", "0.5", "--learning-rate", "0.05", "--steps", "30",
        "--eval-every", "5", "--log-every", "10", "--checkpoint-every", "10", "--out", str(out),
    ]  # fmt: skip
    launched(2, options)
    errors = [row["eval"]["error"] for row in runs.numbers(out) if "eval" in row]
    assert len(errors) == 6
    assert errors[-1] < 0.2 * errors[0]
    summary = runs.summary(out)
    assert 0 < summary["late_fraction"] < 0.8
    for step in steps(out / "checkpoints"):  # after sync rounds the models are equal
        parts = look(out / "checkpoints" / str(step)).parts
        assert sum("model" in pieces for pieces in parts.values()) == 1
    shutil.rmtree(out / "checkpoints" / "30")
    (out / "summary.json").unlink()
    output = launched(2, ["--resume", str(out)])
    assert output.count("going on from step 20") == 1
    assert runs.numbers(out)[-1]["eval"]["error"] < 0.2 * errors[0]


def test_adam_counts_its_own_updates_where_rounds_are_skipped(tmp_path):
    (first, _), (skipping, seen) = ranks.run("train_bodies.adam_rounds", tmp_path / "run", 60, num_ranks=2)
    assert first <= 60
    assert skipping < 50
    assert seen > 0


@pytest.mark.parametrize("clock", [pytest.param("step", marks=pytest.mark.long), "round"])
def test_pairs_train_with_a_straggler_and_go_on_from_a_meeting(clock, tmp_path):
    out = tmp_path / "run"
    options = [
        "--algorithm", "adpsgd", "--adpsgd.seed", "4", "--clock", clock, "--straggler", "rotating:0.005",
        "--steps", "40", "--batch-size", "8", "--learning-rate", "0.1", "--meet-every", "10", "--log-every", "10",
        "--eval-every", "20", "--checkpoint-every", "20", "--out", str(out),
    ]  # fmt: skip
    output = launched(3, options, ["--resume", str(out), "--steps", "60"])
    assert "3 workers in pairs" in output
    assert "going on from step 40" in output
    assert [row["step"] for row in runs.numbers(out) if "eval" in row] == [20, 40, 60]
    summary = runs.summary(out)
    assert (summary["algorithm"], summary["steps"], summary["sync_period"]) == ("adpsgd", 60, None)
    assert (summary["late_fraction"], summary["max_staleness"]) == (0, 0)
    assert summary["eval"]["error"] < 0.5
    np.testing.assert_allclose(runs.consensus(out), np.arange(1, 6), atol=0.5)
    np.testing.assert_allclose(runs.consensus(out), runs.consensus(out / "consensus"), rtol=1e-5)
    ledgers = ledger.read(out)
    swaps = [[swap for part in one.segments for swap in part.swaps] for one in ledgers]
    assert [len(one.segments) for one in ledgers] == [2, 2, 2]
    assert len(swaps[1]) == len(swaps[0]) + len(swaps[2]) > 10, "an odd rank answers the even ones"
    numbers = [swap.number for swap in swaps[0]]
    assert numbers == list(range(len(numbers))), "the count goes on where it was"
