"""Interrupted runs: killed at any moment and resumed they give the same numbers; stopped by a signal they save."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from processes import ROOT

from train import images
from train.checkpoints import restore_newest, steps

TIMES = {"seconds", "examples_per_second", "data_wait_fraction"}
# lateness, augmentation, shards: everything that draws
OPTIONS = [
    "--workers", "4", "--steps", "160", "--batch-size", "4", "--late-probability", "0.3", "--augment", "crop-flip",
    "--sampling", "shard", "--log-every", "5", "--eval-every", "80", "--checkpoint-every", "20",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "train.images"]


def numbers(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def exported(out):
    network = images.create_network("resnet_tiny", "float32", images.Options().load_dataset())
    return images.load_consensus(out / images.CONSENSUS, network)


def killed(command, out, rows, pause):
    """Starts a run and kills it some time after so many rows; how far it came."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= rows:
                break
            time.sleep(0.002)
        time.sleep(pause)
    finally:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, output
    return len(numbers(out))


def test_killed_twice_and_resumed_gives_the_same_numbers(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    images.main([*OPTIONS, "--out", str(whole)])
    rng = np.random.default_rng(0)
    came = killed([*COMMAND, *OPTIONS, "--out", broken], broken, int(rng.integers(3, 8)), rng.random() / 20)
    assert came < len(numbers(whole))
    killed([*COMMAND, "--resume", broken], broken, came + int(rng.integers(2, 8)), rng.random() / 20)
    capsys.readouterr()
    images.main(["--resume", str(broken)])
    assert "going on from step" in capsys.readouterr().out
    assert numbers(broken) == numbers(whole)
    jax.tree.map(np.testing.assert_array_equal, exported(broken), exported(whole))
    summaries = [json.loads((out / "summary.json").read_text()) for out in (broken, whole)]
    for name in ("examples", "late_fraction", "max_staleness", "eval", "steps"):
        assert summaries[0][name] == summaries[1][name]


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    command = [*COMMAND, *OPTIONS[:-2], "--checkpoint-every", "1000", "--steps", "100000", "--out", out]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        path = out / "metrics.jsonl"
        while time.monotonic() < deadline and process.poll() is None and not (path.exists() and path.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM: stopped at step" in output
    assert f"--resume {out}" in output.replace("\n", "")
    last = [row["step"] for row in numbers(out)][-1]
    assert steps(out / "checkpoints")[0] == last
    assert not (out / "summary.json").exists()


def run(folder, **options):
    defaults = {"workers": 4, "batch_size": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "out": folder}
    return images.train(images.Options(**{**defaults, **options}))


@pytest.fixture(scope="module")
def eight_steps(tmp_path_factory):
    """A run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("eight") / "run"
    return out, *run(out, steps=8)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """A run that nobody changes."""
    out = tmp_path_factory.mktemp("four") / "run"
    run(out, steps=4)
    return out


def test_another_number_of_workers_starts_from_the_consensus(tmp_path, capsys):
    out = tmp_path / "run"
    run(out, steps=None, epochs=0.2)
    assert len(numbers(out)) == 9 + 5
    before, _ = images.evaluate(images.Options(evaluate=out))
    model = exported(out)
    capsys.readouterr()
    summary, rows = run(out, steps=None, epochs=0.4, workers=2, batch_size=12, resume=out, late_probability=0.5)
    said = " ".join(capsys.readouterr().out.split())
    changes = "--batch-size 4 -> 12, --late-probability 0.0 -> 0.5, --workers 4 -> 2"
    assert f"{changes}: starting again from the consensus of 4 workers at step 18" in said
    # 0.4 epochs are 574.8 examples, 288 of which were seen in 18 steps; 24 a step from there on
    assert summary["examples"] == 288 + 12 * 24
    assert summary["steps"] == 18 + 12
    assert [row["examples"] for row in rows if row["step"] == 20] == [288 + 2 * 24] * 2
    assert summary["workers"] == 2
    position = restore_newest(out / "checkpoints", lambda position: {}, pytest.fail).position
    assert (position.first_step, position.first_example, position.workers) == (18, 288, 2)
    assert position.first_share == pytest.approx(288 / 574.8)  # of the epochs that it has now
    assert [row["eval"]["loss"] for row in rows if "eval" in row and row["step"] == 18] == [
        pytest.approx(before["loss"])
    ]
    # the schedule goes on where the run is by its new budget; the one that it had was used up
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), model["params"], exported(out)["params"]))
    assert max(moved) > 1e-2
    assert summary["late_fraction"] == pytest.approx(0.5 * 12 * 2 / (18 * 4 + 12 * 2), abs=0.06)  # none before


def test_killed_after_its_last_step_a_run_is_finished(eight_steps, tmp_path):
    original, expected, rows = eight_steps
    out = shutil.copytree(original, tmp_path / "run")
    for name in ("summary.json", "training.png"):
        (out / name).unlink()
    summary, again = run(out, steps=8, resume=out)
    assert (out / "training.png").exists()
    assert json.loads((out / "summary.json").read_text())["eval"] == summary["eval"] == expected["eval"]
    assert again == rows
    for name in ("consensus_distance_before_last_round", "examples", "wall_seconds", "late_fraction"):
        assert summary[name] == expected[name]
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match="at step 8 of 8, which is its end"):  # nothing to begin anew for
        run(out, steps=8, workers=2, resume=out)


def test_the_state_after_a_restart_is_the_mean(tmp_path):
    out = tmp_path / "run"
    run(out, steps=6, sync_period=None)
    options = images.Options(workers=2, batch_size=4, resume=out, out=out, steps=12, sync_period=None)
    prepared = images.prepare(options)
    assert prepared.state is not None
    expected = exported(out)
    for worker in range(2):
        mine = jax.tree.map(lambda leaf, worker=worker: np.asarray(leaf[worker]), prepared.state.model)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), mine, expected)
    momenta = jax.tree.leaves(prepared.state.optimizer)
    assert any(np.abs(np.asarray(leaf)).max() > 0 for leaf in momenta if leaf.ndim > 2)
    assert {np.asarray(leaf).tolist()[0] for leaf in momenta if leaf.ndim == 1} == {6}  # the steps of the schedule


def test_a_finished_run_goes_on_with_more_steps(eight_steps, tmp_path):
    out = shutil.copytree(eight_steps[0], tmp_path / "run")
    with pytest.raises(ValueError, match="is at step 8 of 8, which is its end: raise --steps"):
        run(out, steps=8, resume=out)
    before = numbers(out)
    _, rows = run(out, steps=12, resume=out)
    assert numbers(out)[: len(before)] == before
    assert rows[-1]["step"] == 12


def test_killed_before_its_first_checkpoint_it_starts_over(eight_steps, tmp_path, capsys):
    original, _, expected = eight_steps
    out = shutil.copytree(original, tmp_path / "run")
    (out / "checkpoints").rename(tmp_path / "aside")
    (out / "summary.json").unlink()
    _, rows = run(out, steps=8, resume=out)
    assert "there is no checkpoint in" in capsys.readouterr().out
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in expected if "loss" in row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet_small"}, "--model is resnet_tiny in the run that --resume names, got resnet_small"),
        ({"learning_rate": 0.2}, "--learning-rate is 0.1 in the run"),
        ({"seed": 4}, "--seed is 0 in the run"),
        ({"dataset": "fashion-mnist"}, "--dataset is digits in the run"),
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
        run(out, **{"steps": 8, "resume": out, **changed})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(four_steps, tmp_path):
    """Somebody put another run's checkpoints there, or edited the options."""
    out = tmp_path / "run"
    shutil.copytree(four_steps, out)
    written = json.loads((out / "options.json").read_text())
    (out / "options.json").write_text(json.dumps({**written, "model": "resnet_small"}))
    with pytest.raises(ValueError, match="it holds another model or optimizer than these options ask for"):
        run(out, steps=8, resume=out, model="resnet_small")
    with pytest.raises(ValueError, match="it holds another model"):
        images.evaluate(images.Options(evaluate=out, model="resnet_small"))


def test_evaluate_a_run_a_checkpoint_and_an_export(eight_steps, tmp_path, capsys):
    out, summary, _ = eight_steps
    for path in (out, out / "checkpoints" / "8", out / "consensus"):
        images.main(["--evaluate", str(path)])
        assert f"{summary['eval']['accuracy']:.2%}" in capsys.readouterr().out
        assert images.evaluate(images.Options(evaluate=path))[0]["loss"] == pytest.approx(
            summary["eval"]["loss"], rel=1e-5
        )
    images.main(["--evaluate", str(out / "checkpoints" / "4")])
    with pytest.raises(SystemExit, match="is not a folder: give a run"):
        images.main(["--evaluate", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="belongs to no run"):
        images.main(["--evaluate", str(tmp_path)])


def test_a_run_without_checkpoints_is_not_resumed(tmp_path):
    out = tmp_path / "run"
    run(out, steps=4, checkpoint_every=0)
    with pytest.raises(ValueError, match="was made with --checkpoint-every 0: start a new run"):
        run(out, steps=8, resume=out)


def test_evaluating_changes_nothing_on_disk(four_steps, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(four_steps, out)
    (out / "checkpoints" / "4" / "position" / "metadata").write_text("{")
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="none of the checkpoints"):
        images.evaluate(images.Options(evaluate=out))
    assert sorted(out.rglob("*")) == before


def test_what_a_start_alone_has_is_not_kept(tmp_path):
    options = images.Options(coordinator="host:1234", processes=2, process_id=1, steps=7)
    options.save(tmp_path)
    assert images.parse(["--resume", str(tmp_path)]).coordinator is None
    assert images.parse(["--resume", str(tmp_path)]).steps == 7
    assert images.parse(["--resume", str(tmp_path), "--epochs", "2"]).steps is None


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    outs = {str(images.Options().make_out("images")) for _ in range(3)}
    assert outs == {f"runs/images-wagma-now{suffix}" for suffix in ("", "-1", "-2")}
    images.Options(out=tmp_path / "mine").make_out("images")
    with pytest.raises(ValueError, match="exists and is not empty"):
        images.Options(out=tmp_path / "mine").make_out("images")
