"""Real runs on digits, short ones, and what they leave behind."""

import json
import sys

import jax
import numpy as np
import pytest
from processes import run_all

from train import images
from train.devices import worker_mesh

KEYS = {
    "algorithm", "transport", "workers", "group_size", "sync_period", "clock", "seed", "steps", "examples",
    "examples_per_second", "wall_seconds", "wait_seconds", "late_fraction", "max_staleness", "eval",
    "data_wait_fraction", "unreadable",
}  # fmt: skip


def run(tmp_path, name="run", **options):
    defaults = {"workers": 4, "steps": 8, "batch_size": 4, "log_every": 2, "eval_every": 4}
    return images.train(images.Options(**{**defaults, "out": tmp_path / name, **options}))


@pytest.fixture(scope="module")
def wagma_run(tmp_path_factory):
    """A folder with a run that nobody changes, its summary and its rows."""
    folder = tmp_path_factory.mktemp("wagma")
    return folder, *run(folder, late_probability=0.3)


@pytest.mark.parametrize("algorithm", ["wagma", "allreduce", "local"])
def test_a_short_run_leaves_its_results(algorithm, wagma_run, tmp_path):
    if algorithm == "wagma":
        folder, summary, rows = wagma_run
    else:
        folder, (summary, rows) = tmp_path, run(tmp_path, algorithm=algorithm, late_probability=0.3)
    out = folder / "run"
    files = {"checkpoints", "consensus", "metrics.jsonl", "options.json", "summary.json", "training.png"}
    assert {path.name for path in out.iterdir()} == files
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["8"]
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == rows
    written = json.loads((out / "summary.json").read_text())
    assert set(written) >= KEYS
    assert written["examples"] == 8 * 4 * 4
    assert len(written["wait_seconds"]) == 4
    assert written["eval"] == summary["eval"] == rows[-1]["eval"]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if "eval" in row] == [4, 8]
    assert (written["late_fraction"] > 0) == (written["max_staleness"] > 0) == (algorithm == "wagma")
    logged = [row["late_fraction"] for row in rows if "loss" in row]
    assert np.mean(logged) == pytest.approx(written["late_fraction"])
    distances = [row["consensus_distance"] for row in rows if "loss" in row]
    assert (max(distances) < 1e-6) == (algorithm == "allreduce")


def test_devices_and_vmap_give_the_same_training(wagma_run, tmp_path, monkeypatch):
    """The same run, one worker a device and all in one vmap."""
    _, _, on_devices = wagma_run
    monkeypatch.setattr(images, "worker_mesh", lambda *arguments: None)
    _, in_vmap = run(tmp_path, "vmap", late_probability=0.3)
    for a, b in zip(on_devices, in_vmap, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["consensus_distance"] == pytest.approx(b["consensus_distance"], rel=1e-2)
        else:
            assert a["eval"]["loss"] == pytest.approx(b["eval"]["loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_numbers(wagma_run, tmp_path):
    _, _, first = wagma_run
    _, second = run(tmp_path, "b", late_probability=0.3)
    _, other = run(tmp_path, "c", late_probability=0.3, seed=1)
    assert [row["loss"] for row in first if "loss" in row] == [row["loss"] for row in second if "loss" in row]
    assert first[0]["loss"] != other[0]["loss"]


def test_epochs_are_counted_in_examples(tmp_path):
    options = images.Options(out=tmp_path / "run", epochs=0.1, workers=3, batch_size=7)
    assert images.prepare(options).position.total_steps == 7  # 143.7 examples, 21 a step


def test_the_whole_recipe(tmp_path):
    """Every option at once: nothing but that they work together."""
    summary, rows = run(
        tmp_path, sampling="shard", augment="crop-flip", optimizer="lars", schedule="step", label_smoothing=0.1,
        precision="bfloat16", accumulate=2, nesterov=False, scale_learning_rate=True, late_probability=0.2,
    )  # fmt: skip
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    assert summary["options"]["precision"] == "bfloat16"


def test_wagma_learns_the_digits(tmp_path):
    summary, _ = run(tmp_path, workers=8, steps=150, batch_size=16, log_every=50, eval_every=150)
    assert summary["eval"]["accuracy"] > 0.95


def test_command_line(tmp_path):
    out = tmp_path / "cli"
    command = [sys.executable, "-m", "train.images", "--workers", "9", "--algorithm", "wagma", "--group-size", "3"]
    command += ["--steps", "3", "--batch-size", "2", "--checkpoint-every", "0", "--out", out]
    ((status, output),) = run_all([command], environment={"COLUMNS": "120"}, timeout=200)
    assert status == 0, output
    assert "accuracy" in output
    assert json.loads((out / "summary.json").read_text())["devices"] == 1
    assert not (out / "checkpoints").exists()
    assert (out / "consensus").exists()
    before = (out / "summary.json").read_bytes()
    with pytest.raises(SystemExit, match="exists and is not empty: choose another folder, remove it, or go on with"):
        images.main([str(word) for word in command[3:]])
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"steps": 0}, "--steps"),
        ({"batch_size": -1}, "--batch-size"),
        ({"late_probability": 1.0}, "--late-probability must be in"),
        ({"seed": -1}, "--seed"),
        ({"group_size": 5}, "group_size must be between 1 and num_workers=4, got 5"),
        ({"sync_period": 0}, "sync_period must be at least 1"),
        ({"learning_rate": -0.1}, "--learning-rate must be in"),
        (
            {"workers": 8, "batch_size": 180},
            "--workers 8 times --batch-size 180 is more than the 1437 training examples",
        ),
        ({"warmup": 1.0}, "--warmup must be in"),
        ({"steps": 3, "epochs": 1.0}, "say the same thing twice"),
        ({"steps": None, "epochs": 0.0}, "--epochs must be above 0"),
        ({"accumulate": 3}, "--batch-size 4 cannot be split into --accumulate 3 equal parts"),
        ({"dataset": "cats"}, "--dataset must be digits, fashion-mnist.*got 'cats'"),
        ({"dataset": "imagefolder"}, "--dataset imagefolder needs to know where"),
        ({"dataset": "imagefolder:/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dataset": "tfrecord:/nowhere/*"}, "/nowhere"),
        ({"dataset": "fashion-mnist:/nowhere"}, "python -m train.fetch fashion-mnist"),
        ({"dataset": "imagefolder:x", "channels": 2}, "--channels must be 1"),
        ({"sampling": "shard", "workers": 1500, "batch_size": 1}, "is more than the 1437 training examples"),
        ({"checkpoint_every": -1}, "--checkpoint-every must not be negative"),
        ({"coordinator": "host:1"}, "--coordinator, --processes and --process-id belong together"),
        ({"coordinator": "host", "processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT"),
        ({"coordinator": "host:1", "processes": 2, "process_id": 2}, r"--process-id must be in \[0, 2\)"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/inside"):
        with pytest.raises(ValueError, match=r"cannot be made .*: choose a folder"):
            run(tmp_path, out)
    assert (tmp_path / "file").read_text() == "mine"


def test_worker_meshes():
    assert jax.device_count() == 8
    assert worker_mesh(8, "data").size == 8
    assert worker_mesh(3, "data").size == 3
    assert worker_mesh(9, "data") is None
