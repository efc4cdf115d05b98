"""Real runs on digits, short ones, and what they leave behind."""

import json
import sys

import jax
import numpy as np
import pytest
from processes import run_all

from train import images, report
from train.data import batch_indices, digits
from train.devices import worker_mesh

KEYS = {
    "algorithm", "transport", "workers", "group_size", "sync_period", "clock", "seed", "steps", "examples",
    "examples_per_second", "wall_seconds", "wait_seconds", "late_fraction", "max_staleness", "eval",
}  # fmt: skip


def run(tmp_path, name="run", **options):
    defaults = {"workers": 4, "steps": 8, "batch_size": 4, "log_every": 2, "eval_every": 4}
    return images.train(images.Options(**{**defaults, "out": tmp_path / name, **options}))


@pytest.mark.parametrize("algorithm", ["wagma", "allreduce", "local"])
def test_a_short_run_leaves_its_results(algorithm, tmp_path):
    summary, rows = run(tmp_path, algorithm=algorithm, late_probability=0.3)
    out = tmp_path / "run"
    assert {path.name for path in out.iterdir()} == {"metrics.jsonl", "summary.json", "training.png"}
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


def test_devices_and_vmap_give_the_same_training(tmp_path, monkeypatch):
    """The same run, one worker a device and all in one vmap."""
    _, on_devices = run(tmp_path, "devices", late_probability=0.3)
    monkeypatch.setattr(images, "worker_mesh", lambda num_workers, axis_name: None)
    _, in_vmap = run(tmp_path, "vmap", late_probability=0.3)
    for a, b in zip(on_devices, in_vmap, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["consensus_distance"] == pytest.approx(b["consensus_distance"], rel=1e-2)
        else:
            assert a["eval"]["loss"] == pytest.approx(b["eval"]["loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    _, first = run(tmp_path, "a")
    _, second = run(tmp_path, "b")
    _, other = run(tmp_path, "c", seed=1)
    assert [row["loss"] for row in first if "loss" in row] == [row["loss"] for row in second if "loss" in row]
    assert first[0]["loss"] != other[0]["loss"]


def test_wagma_learns_the_digits(tmp_path):
    summary, _ = run(tmp_path, workers=8, steps=150, batch_size=16, log_every=50, eval_every=150)
    assert summary["eval"]["accuracy"] > 0.95


def test_command_line(tmp_path):
    out = tmp_path / "cli"
    command = [sys.executable, "-m", "train.images", "--workers", "9", "--algorithm", "wagma", "--group-size", "3"]
    command += ["--steps", "3", "--batch-size", "2", "--out", out]
    ((status, output),) = run_all([command], environment={"COLUMNS": "120"}, timeout=200)
    assert status == 0, output
    assert "accuracy" in output
    assert json.loads((out / "summary.json").read_text())["devices"] == 1
    before = (out / "summary.json").read_bytes()
    ((status, output),) = run_all([command], environment={"COLUMNS": "120"}, timeout=200)
    assert status == 1
    assert "exists and is not empty: choose another folder" in output
    assert "Traceback" not in output
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


def test_digits():
    data = digits()
    assert data.train_images.shape == (1437, 8, 8, 1)
    assert data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.mean() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std() == pytest.approx(1, abs=1e-5)
    assert np.bincount(data.test_labels).min() >= 34
    everything = np.concatenate([data.train_images, data.test_images]).reshape(1797, -1)
    # the set itself holds no image twice, so the split cannot leak
    assert len(np.unique(everything, axis=0)) == 1797


def test_batches_deal_out_whole_epochs():
    stream = batch_indices(10, 2, 3, seed=0)
    batches = [next(stream) for _ in range(5)]
    assert all(batch.shape == (2, 3) for batch in batches)
    for epoch in np.concatenate(batches).reshape(3, 10):
        assert sorted(epoch) == list(range(10))
    again = batch_indices(10, 2, 3, seed=0)
    np.testing.assert_array_equal(np.stack(batches), np.stack([next(again) for _ in range(5)]))
    assert next(batch_indices(3, 4, 5, seed=0)).shape == (4, 5)


def test_worker_meshes():
    assert jax.device_count() == 8
    assert worker_mesh(8, "data").size == 8
    assert worker_mesh(3, "data").size == 3
    assert worker_mesh(9, "data") is None


def test_numbers_that_are_not_finite_become_null(tmp_path):
    metrics = report.MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write(step=1, loss=float("nan"))
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
