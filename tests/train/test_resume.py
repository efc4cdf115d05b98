"""Interrupted runs: killed at any moment and resumed they give the same numbers; stopped by a signal they save."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.train import runs
from tests.train.toy import WORKLOAD, Options, Toy
from train import folders, run
from train.checkpoints import look, steps

# lateness, shards, keys: everything that draws; an optimizer that counts
OPTIONS = [
    "--workers", "4", "--steps", "120", "--batch-size", "4", "--late-probability", "0.3", "--sampling", "shard",
    "--optimizer", "adam", "--log-every", "5", "--eval-every", "40", "--checkpoint-every", "20",
]  # fmt: skip


def rows_in(out):
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def killed(command, out, after, pause):
    """Starts a run and kills it some time after a checkpoint later than a step; the step of its newest one."""
    newest = lambda: max(steps(out / "checkpoints"), default=0)
    process = runs.started([*command, "--pause", "0.05"])
    try:
        runs.wait_for(process, lambda: newest() > after)
        time.sleep(pause)
    finally:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, output
    assert newest() > after
    return newest()


def test_killed_twice_and_resumed_gives_the_same_numbers(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.main(*OPTIONS, "--out", whole)
    rng = np.random.default_rng(0)
    # all with one command, as batch scripts that are queued again have it
    command = [*OPTIONS, "--out", broken, "--resume-if-exists"]
    came = killed([*runs.COMMAND, *command], broken, 0, rng.random() / 10)
    killed([*runs.COMMAND, *command], broken, came, rng.random() / 10)
    capsys.readouterr()
    runs.main(*command)
    assert "going on from step" in capsys.readouterr().out
    assert runs.numbers(broken) == runs.numbers(whole)
    np.testing.assert_array_equal(runs.consensus(broken / "consensus"), runs.consensus(whole / "consensus"))
    for name in ("examples", "late_fraction", "max_staleness", "eval", "steps", "drawn", "consensus_distance"):
        assert runs.summary(broken)[name] == runs.summary(whole)[name]
    # it is complete now, and says so
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    runs.main(*command)
    assert "is complete: there is nothing left to do" in " ".join(capsys.readouterr().out.split())
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before


class Signalled(Toy):
    """Gets a signal when it loads a batch."""

    def __init__(self, options, number):
        super().__init__(options)
        self.number = number

    def feed(self, place, seed, first_unit):
        feed = super().feed(place, seed, first_unit)
        following = feed.next

        def signalled(step, model, carry):
            if step == 7:
                os.kill(os.getpid(), self.number)
            return following(step, model, carry)

        feed.next = signalled
        return feed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path, capsys):
    out = tmp_path / "run"
    changed = ["--checkpoint-every", "100000", "--steps", "10000000", "--eval-every", "100000", "--out", str(out)]
    if number == signal.SIGTERM:  # in a process of its own, from outside
        output = runs.stopped([*runs.COMMAND, *OPTIONS, *changed], lambda: rows_in(out) > 0, number)
    else:
        workload = dataclasses.replace(WORKLOAD, create=lambda options: Signalled(options, number))
        before = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored, which a run respects
        try:
            with pytest.raises(SystemExit) as ended:
                run.main(workload, [*OPTIONS, *changed])
        finally:
            signal.signal(number, before)
        assert ended.value.code == 128 + number
        output = capsys.readouterr().out
        assert f"{number.name}: stopped at step 10" in output
    assert f"--resume {out}" in output.replace("\n", "")
    last = [row["step"] for row in runs.numbers(out)][-1]
    assert steps(out / "checkpoints")[0] == last
    assert not (out / "summary.json").exists()


@pytest.fixture(scope="module")
def eight_steps(tmp_path_factory):
    """A run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("eight") / "run"
    return out, *runs.train(out, steps=8)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """A run that nobody changes."""
    out = tmp_path_factory.mktemp("four") / "run"
    runs.train(out, steps=4)
    return out


def test_another_number_of_workers_starts_from_the_consensus(tmp_path, capsys):
    out = tmp_path / "run"
    runs.train(out, epochs=1.2)  # 288 rows, 16 a step
    assert len(runs.numbers(out)) == 9 + 5
    before, _ = run.evaluate(WORKLOAD, Options(evaluate=out))
    weights = runs.consensus(out)
    capsys.readouterr()
    summary, rows = runs.train(out, epochs=2.395, workers=2, batch_size=12, resume=out, late_probability=0.5)
    said = " ".join(capsys.readouterr().out.split())
    changes = "--batch-size 4 -> 12, --late-probability 0.0 -> 0.5, --workers 4 -> 2"
    assert f"{changes}: starting again from the consensus of 4 workers at step 18" in said
    # 2.395 epochs are 574.8 rows, 288 of which were seen in 18 steps; 24 a step from there on
    assert summary["examples"] == 288 + 12 * 24
    assert summary["steps"] == 18 + 12
    assert [row["examples"] for row in rows if row["step"] == 20] == [288 + 2 * 24] * 2
    assert summary["workers"] == 2
    position = look(out / "checkpoints" / "30").position
    assert (position.first_step, position.first_example, position.workers) == (18, 288, 2)
    assert position.first_share == pytest.approx(288 / 574.8)  # of the epochs that it has now
    assert [row["eval"]["error"] for row in rows if "eval" in row and row["step"] == 18] == [
        pytest.approx(before["error"])
    ]
    # the schedule goes on where the run is by its new budget; the one that it had was used up
    assert np.abs(weights - runs.consensus(out)).max() > 1e-2
    assert summary["late_fraction"] == pytest.approx(0.5 * 12 * 2 / (18 * 4 + 12 * 2), abs=0.06)  # none before


def test_killed_after_its_last_step_a_run_is_finished(eight_steps, tmp_path):
    original, expected, rows = eight_steps
    out = shutil.copytree(original, tmp_path / "run")
    (out / "summary.json").unlink()
    summary, again = runs.train(out, steps=8, resume=out, picture=True)
    assert (out / "training.png").exists()
    assert runs.summary(out)["eval"] == summary["eval"] == expected["eval"]
    assert again == rows
    for name in ("consensus_distance", "examples", "wall_seconds", "late_fraction", "drawn"):
        assert summary[name] == expected[name]
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match="at step 8 of 8, which is its end"):  # nothing to begin anew for
        runs.train(out, steps=8, workers=2, resume=out)


def test_a_longer_run_that_is_killed_at_its_end_is_no_complete_run(eight_steps, tmp_path):
    out = shutil.copytree(eight_steps[0], tmp_path / "run")

    class Killed(Toy):
        def finish(self, out, notes, parts):
            raise KeyboardInterrupt

    workload = dataclasses.replace(WORKLOAD, create=Killed)
    with pytest.raises(KeyboardInterrupt):
        run.train(workload, Options(**{**runs.DEFAULTS, "out": out, "resume": out, "steps": 12}))
    assert not (out / "summary.json").exists(), "that of its earlier end would say that it is complete"
    summary, _ = runs.train(out, steps=12, resume=out)
    assert summary["steps"] == runs.summary(out)["steps"] == 12


@pytest.mark.parametrize("sync_period", [4, pytest.param(10, marks=pytest.mark.long)])
def test_stopped_or_killed_beside_a_log_point_it_leaves_the_same_rows(sync_period, tmp_path, capsys):
    """Also of an evaluation that was due when it stopped, and that the next start makes up for."""
    whole, stopped, killed = tmp_path / "whole", tmp_path / "stopped", tmp_path / "killed"
    command = [
        "--workers", "2", "--group-size", "2", "--batch-size", "4", "--steps", "21", "--log-every", "5",
        "--eval-every", "4", "--checkpoint-every", "9", "--late-probability", "0.3", "--sync-period", sync_period,
    ]  # fmt: skip
    runs.main(*command, "--out", whole)
    workload = dataclasses.replace(WORKLOAD, create=lambda options: Signalled(options, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run.main(workload, [str(word) for word in (*command, "--out", stopped)])
    assert "SIGTERM: stopped at step 8" in capsys.readouterr().out
    assert [row["step"] for row in runs.numbers(stopped)] == [4, 5]
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "21")
    (killed / "summary.json").unlink()
    for out, step in ((stopped, 8), (killed, 18)):
        runs.main("--resume", out)
        assert f"going on from step {step}" in capsys.readouterr().out
        assert runs.numbers(out) == runs.numbers(whole)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_stopped_without_checkpoints_it_leaves_all_rows(tmp_path, capsys):
    """Nothing goes on from there."""
    out = tmp_path / "run"
    workload = dataclasses.replace(WORKLOAD, create=lambda options: Signalled(options, signal.SIGTERM))
    words = ["--workers", "2", "--batch-size", "4", "--steps", "21", "--log-every", "5", "--eval-every", "4"]
    with pytest.raises(SystemExit):
        run.main(workload, [*words, "--checkpoint-every", "0", "--out", str(out)])
    assert "SIGTERM: stopped at step 8" in capsys.readouterr().out
    assert [row["step"] for row in runs.numbers(out)] == [4, 5, 8]


def test_shares_are_the_consensus_of_a_checkpoint(tmp_path):
    """Where a part of a model is on its way between workers."""
    out = tmp_path / "run"
    options = Options(**{**runs.DEFAULTS, "algorithm": "sgp", "out": out, "steps": 6})
    run.train(WORKLOAD, dataclasses.replace(options, sgp=dataclasses.replace(options.sgp, overlap=1)))
    np.testing.assert_allclose(runs.consensus(out), runs.consensus(out / "consensus"), rtol=1e-6)


def test_ledgers_of_every_start_are_kept(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "ledger-0.jsonl").write_text(text)
        folders.set_aside_ledgers(tmp_path, 100)
    folders.set_aside_ledgers(tmp_path, 100)
    kept = {path.name: (path / "ledger-0.jsonl").read_text() for path in tmp_path.iterdir()}
    assert kept == {"ledger-before-100": "first", "ledger-before-100-2": "second"}


def test_a_run_of_epochs_is_complete_at_its_end_whatever_it_has_seen(tmp_path, capsys):
    """Lengths vary, so that as many steps see more or fewer units than an epoch has."""
    out = tmp_path / "run"
    command = ["--workers", "2", "--batch-size", "4", "--epochs", "0.2", "--out", out, "--resume-if-exists"]
    runs.main(*command)
    summary = runs.summary(out)
    (out / "summary.json").write_text(json.dumps(summary | {"examples": summary["examples"] - 1}))
    runs.main(*command)
    assert "is complete: there is nothing left to do" in " ".join(capsys.readouterr().out.split())


def test_what_is_exported_must_fit_into_json(tmp_path):
    class Exported(Toy):
        value = np.int64(3)

        def export(self):
            return {"users": self.value}

    workload = dataclasses.replace(WORKLOAD, create=Exported)
    run.train(workload, Options(**runs.DEFAULTS, out=tmp_path / "run", steps=1))
    assert json.loads((tmp_path / "run" / "consensus" / "description.json").read_text())["users"] == 3
    Exported.value = 1j
    with pytest.raises(ValueError, match=r"export\(\) must return what JSON has, numbers and strings"):
        run.prepare(workload, Options(**runs.DEFAULTS, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_what_has_a_meaning_over_mpi_alone_does_not_hinder_an_evaluation(tmp_path):
    Options(transport="mpi", workers=2, on_nonfinite="skip", quorum=2, group_size=2).save(tmp_path)
    options = run.parse(WORKLOAD, ["--evaluate", str(tmp_path)])
    options.check()
    assert (options.on_nonfinite, options.quorum, options.transport) == ("share", 1, "xla")


def test_the_state_after_a_restart_is_the_mean(tmp_path):
    out = tmp_path / "run"
    runs.train(out, steps=6, sync_period=None)
    prepared = run.prepare(WORKLOAD, Options(workers=2, batch_size=4, resume=out, out=out, steps=12, sync_period=None))
    np.testing.assert_allclose(prepared.state.model["params"]["w"], runs.consensus(out), rtol=1e-6)
    assert any(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(prepared.state.optimizer))
    assert (prepared.position.step, prepared.position.local_steps) == (6, (0, 0))


def test_after_a_restart_sync_rounds_are_where_they_were(tmp_path):
    out = tmp_path / "run"
    runs.train(out, steps=6, group_size=1, checkpoint_every=6)
    _, rows = runs.train(out, steps=14, workers=2, resume=out, sync_period=4, group_size=1, log_every=1)
    measured = {row["step"]: row["consensus_distance"] for row in rows if "loss" in row and row["step"] > 6}
    assert [step for step, distance in measured.items() if distance is not None] == [8, 12]
    assert all(distance > 0 for distance in (measured[8], measured[12]))


def test_a_finished_run_goes_on_with_more_steps(eight_steps, tmp_path):
    out = shutil.copytree(eight_steps[0], tmp_path / "run")
    with pytest.raises(ValueError, match="is at step 8 of 8, which is its end: raise --steps"):
        runs.train(out, steps=8, resume=out)
    before = runs.numbers(out)
    _, rows = runs.train(out, steps=12, resume=out)
    assert runs.numbers(out)[: len(before)] == before
    assert rows[-1]["step"] == 12


def test_killed_before_its_first_checkpoint_it_starts_over(eight_steps, tmp_path, capsys):
    original, _, expected = eight_steps
    out = shutil.copytree(original, tmp_path / "run")
    (out / "checkpoints").rename(tmp_path / "aside")
    (out / "summary.json").unlink()
    _, rows = runs.train(out, steps=8, resume=out)
    assert "there is no checkpoint in" in capsys.readouterr().out
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in expected if "loss" in row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.5}, "--noise is 0.01 in the run that --resume names, got 0.5"),
        ({"learning_rate": 0.2}, "--learning-rate is 0.1 in the run"),
        ({"seed": 4}, "--seed is 0 in the run"),
        ({"out": "elsewhere"}, "go on in its own folder: leave out --out"),
        ({"evaluate": "x"}, "--resume and --evaluate exclude each other"),
        ({"resume": "nowhere"}, "nowhere is not the folder of a run"),
    ],
)
def test_what_cannot_be_resumed_is_left_as_it_was(options, message, four_steps, tmp_path):
    out = four_steps
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {name: tmp_path / value if name in ("out", "resume") else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        runs.train(**{"out": out, "steps": 8, "resume": out, **changed})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_other_data_is_refused(four_steps, tmp_path):
    out = shutil.copytree(four_steps, tmp_path / "run")
    path = out / "checkpoints" / "4" / "position.json"
    saved = json.loads(path.read_text())
    saved["position"]["fingerprint"]["rows"] = "7"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="the run was made with rows: 7, and there are now 240: give the data"):
        runs.train(out, steps=8, resume=out)


def test_a_run_of_an_earlier_version_is_refused(four_steps, tmp_path):
    out = shutil.copytree(four_steps, tmp_path / "run")
    options = json.loads((out / "options.json").read_text())
    (out / "checkpoints" / "4" / "position").mkdir()  # where the position was
    with pytest.raises(ValueError, match="was written by an earlier version of this project"):
        runs.train(out, steps=8, resume=out)
    (out / "options.json").write_text(json.dumps({**options, "loader_magic": 3}))
    with pytest.raises(ValueError, match="is of another version of this project or of another script"):
        runs.train(out, steps=8, resume=out)


def test_evaluate_a_run_a_checkpoint_and_an_export(eight_steps, tmp_path, capsys):
    out, summary, _ = eight_steps
    for path in (out, out / "checkpoints" / "8", out / "consensus"):
        runs.main("--evaluate", path)
        assert "error" in capsys.readouterr().out
        scores, _ = run.evaluate(WORKLOAD, Options(evaluate=path))
        assert scores["error"] == pytest.approx(summary["eval"]["error"], rel=1e-5)
    scores, _ = run.evaluate(WORKLOAD, Options(evaluate=out / "checkpoints" / "4"))
    assert scores["error"] != summary["eval"]["error"]
    with pytest.raises(SystemExit, match="is not a folder: give a run"):
        runs.main("--evaluate", tmp_path / "nothing")
    with pytest.raises(SystemExit, match="belongs to no run"):
        runs.main("--evaluate", tmp_path)


def test_a_run_without_checkpoints_is_not_resumed(tmp_path):
    out = tmp_path / "run"
    runs.train(out, steps=4, checkpoint_every=0)
    with pytest.raises(ValueError, match="was made with --checkpoint-every 0: start a new run"):
        runs.train(out, steps=8, resume=out)


def test_evaluating_changes_nothing_on_disk(four_steps, tmp_path):
    out = shutil.copytree(four_steps, tmp_path / "run")
    (out / "checkpoints" / "4" / "position.json").write_text("{")
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="none of the checkpoints"):
        run.evaluate(WORKLOAD, Options(evaluate=out))
    assert sorted(out.rglob("*")) == before


def test_what_a_start_alone_has_is_not_kept(tmp_path):
    options = Options(coordinator="host:1234", processes=2, process_id=1, steps=7, resume_if_exists=True)
    options.save(tmp_path)
    read = run.parse(WORKLOAD, ["--resume", str(tmp_path)])
    assert (read.coordinator, read.steps, read.resume_if_exists) == (None, 7, False)
    assert run.parse(WORKLOAD, ["--resume", str(tmp_path), "--epochs", "2"]).steps is None


def test_one_command_starts_or_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--workers", "2", "--batch-size", "4", "--out", out, "--resume-if-exists"]
    out.mkdir()  # empty
    (out / "options.json").touch()  # killed right after it was claimed, when it wrote what belongs to its model
    (out / "vocabulary.model").touch()
    runs.main(*command, "--steps", "4")
    assert runs.summary(out)["steps"] == 4
    runs.main(*command, "--steps", "6")  # a longer one is another job
    assert "going on from step 4" in capsys.readouterr().out
    assert runs.summary(out)["steps"] == 6
    for words, message in (
        (["--resume", out], "--resume-if-exists takes the run of --out: leave out --resume"),
        (["--seed", "4"], "--seed is 0 in the run that --resume names, got 4"),
    ):
        with pytest.raises(SystemExit, match=message):
            runs.main(*command, *words)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(SystemExit, match="exists and is not empty"):
        runs.main("--out", other, "--resume-if-exists")


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    outs = {str(folders.new_folder("toy", Options())) for _ in range(3)}
    assert outs == {f"runs/toy-wagma-now{suffix}" for suffix in ("", "-1", "-2")}
    folders.new_folder("toy", Options(out=tmp_path / "mine"))
    with pytest.raises(ValueError, match="exists and is not empty"):
        folders.new_folder("toy", Options(out=tmp_path / "mine"))
