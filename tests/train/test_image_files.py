"""Whole runs on image files as one finds them, broken ones included."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.image_files import KINDS, write_folder, write_records
from train import images
from train import run as training
from train.data.images import arrays
from train.presets import PRESETS

BROKEN = {"train": 0.1, "val": 0.05}
SMALL = {
    "workers": 2, "batch_size": 8, "image_size": 12, "model": "resnet_tiny", "precision": "float32", "epochs": 1.0,
    "log_every": 2, "eval_every": 8, "checkpoint_every": 4, "learning_rate": 0.1,
    "scale_learning_rate": False, "picture": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """120 training images, which take 7.5 steps, and 40 test images in a folder tree; the same as TFRecords."""
    folder = tmp_path_factory.mktemp("files")
    data = arrays.digits()
    classes = tuple(f"digit {name}" for name in data.classes)
    for split, examples, count in (("train", data.train, 120), ("val", data.test, 40)):
        pictures = np.repeat(np.repeat(examples.images[:count, :, :, 0] * 15, 3, 1), 3, 2)  # 24x24
        arguments = (pictures, examples.labels[:count])
        broken = write_folder(folder / "folder" / split, *arguments, classes, BROKEN[split], seed=0)
        assert broken == write_records(folder / "records", split, *arguments, BROKEN[split], seed=0)
        assert broken == round(BROKEN[split] * count)
    assert len(KINDS) == 7
    return folder


def run(out, **options):
    return training.train(
        images.WORKLOAD, images.Options(**{**PRESETS["imagenet-resnet50"], **SMALL, "out": out, **options})
    )


def losses(rows):
    return [row["loss"] for row in rows if "loss" in row]


def check_counts(out, summary, rows):
    """What cannot be read is counted and listed, and everything else is as usual."""
    assert summary["steps"] == 8
    assert summary["unreadable"] == {"train": 12, "test": 2}
    lines = (out / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 14
    assert sum(line.startswith("train: ") for line in lines) == 12
    assert np.isfinite(losses(rows)).all()
    description = json.loads((out / "consensus" / "description.json").read_text())
    assert len(description["classes"]) == 10
    assert summary["options"]["sync_period"] == 10  # from the preset


def test_a_run_on_records(tree, tmp_path):
    check_counts(tmp_path / "run", *run(tmp_path / "run", dataset=f"tfrecord:{tree}/records/*"))


def test_a_run_on_folders_and_resumed_it_sees_the_same_crops(tree, tmp_path):
    """Resumed in the middle, with processes and another number of threads to load."""
    out = tmp_path / "run"
    summary, rows = run(out, dataset=f"imagefolder:{tree}/folder", keep_checkpoints=2)
    check_counts(out, summary, rows)
    shutil.copytree(out, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "8").rename(tmp_path / "aside")  # as if it had been killed before
    resumed, again = run(
        tmp_path / "parts",
        dataset=f"imagefolder:{tree}/folder",
        resume=tmp_path / "parts",
        loader_threads=1,
        loader_processes=1,
    )
    assert losses(again) == losses(rows)
    assert resumed["eval"] == summary["eval"]
    check_counts(tmp_path / "parts", resumed, again)


def test_the_preset_reads_as_its_record(tmp_path):
    options = training.parse(images.WORKLOAD, ["--preset", "imagenet-resnet50", "--workers", "16"])
    assert (options.batch_size, options.sync_period, options.epochs, options.model) == (128, 10, 90, "resnet50")
    assert (options.workers, options.preset, options.group_size) == (16, "imagenet-resnet50", None)
    assert options.settings().schedule().group_size == 4  # the square root
    assert training.parse(images.WORKLOAD, []).preset is None
    fewer = training.parse(images.WORKLOAD, ["--preset", "imagenet-resnet50", "--steps", "100"])
    assert (fewer.steps, fewer.epochs) == (100, None)
    with pytest.raises(ValueError, match="imagenet"):
        training.prepare(images.WORKLOAD, options)


def test_a_test_set_that_cannot_be_read_is_no_result(tree, tmp_path):
    for path in (tree / "folder" / "val").rglob("*.*"):
        (tmp_path / "data" / "val" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "val" / path.parent.name / path.name).write_bytes(b"")
    (tmp_path / "data" / "train").symlink_to(tree / "folder" / "train")
    with pytest.raises(ValueError, match="none of the"):
        run(tmp_path / "run", dataset=f"imagefolder:{tmp_path / 'data'}")
    assert not (tmp_path / "run").exists()
