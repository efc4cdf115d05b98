"""Whole runs on image files as one finds them, broken ones included."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.image_files import KINDS, write_folder, write_records
from train import images
from train.data import arrays
from train.presets import PRESETS

BROKEN = {"train": 0.1, "val": 0.05}
SMALL = {
    "workers": 2, "batch_size": 8, "image_size": 12, "model": "resnet_tiny", "precision": "float32", "epochs": 2.0,
    "log_every": 4, "eval_every": 10, "checkpoint_every": 10, "learning_rate": 0.1, "scale_learning_rate": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """120 training and 40 test images of digits in a folder tree, and the same as TFRecords."""
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
    return images.train(images.Options(**{**PRESETS["imagenet-resnet50"], **SMALL, "out": out, **options}))


def losses(rows):
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def twelve_steps(tree, tmp_path_factory):
    """A run that nobody changes, and its losses."""
    out = tmp_path_factory.mktemp("twelve") / "run"
    _, rows = run(out, dataset=f"imagefolder:{tree}/folder", epochs=None, steps=12, checkpoint_every=6)
    return out, losses(rows)


@pytest.mark.parametrize("form", ["imagefolder:{}/folder", "tfrecord:{}/records/*"])
def test_a_run_on_files_counts_what_it_cannot_read(form, tree, tmp_path):
    summary, rows = run(tmp_path / "run", dataset=form.format(tree))
    assert summary["steps"] == 15
    assert summary["unreadable"] == {"train": 12, "test": 2}
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 14
    assert sum(line.startswith("train: ") for line in lines) == 12
    assert np.isfinite(losses(rows)).all()
    description = json.loads((tmp_path / "run" / "consensus" / "description.json").read_text())
    assert len(description["classes"]) == 10
    assert summary["options"]["sync_period"] == 10  # from the preset


def test_resumed_in_the_middle_it_sees_the_same_crops(tree, twelve_steps, tmp_path):
    dataset = f"imagefolder:{tree}/folder"
    original, expected = twelve_steps
    shutil.copytree(original, tmp_path / "parts")
    newest = tmp_path / "parts" / "checkpoints" / "12"
    newest.rename(tmp_path / "aside")  # as if it had been killed before the last checkpoint
    _, rows = run(
        tmp_path / "parts", dataset=dataset, epochs=None, steps=12, resume=tmp_path / "parts", loader_threads=1
    )
    assert losses(rows)[-1] == expected[-1]
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["unreadable"]["train"] > 0


def test_loaded_by_processes_it_is_the_same(tree, twelve_steps, tmp_path):
    options = {"dataset": f"imagefolder:{tree}/folder", "epochs": None, "steps": 12, "checkpoint_every": 6}
    _, rows = run(tmp_path / "run", loader_processes=1, **options)
    assert losses(rows) == twelve_steps[1]


def test_the_preset_reads_as_its_record(tmp_path):
    options = images.parse(["--preset", "imagenet-resnet50", "--workers", "16"])
    assert (options.batch_size, options.sync_period, options.epochs, options.model) == (128, 10, 90, "resnet50")
    assert (options.workers, options.preset, options.group_size) == (16, "imagenet-resnet50", None)
    assert options.strategy("data").schedule.group_size == 4  # the square root
    assert images.parse([]).preset is None
    fewer = images.parse(["--preset", "imagenet-resnet50", "--steps", "100"])
    assert (fewer.steps, fewer.epochs) == (100, None)
    with pytest.raises(ValueError, match="imagenet"):
        images.prepare(options)


def test_a_test_set_that_cannot_be_read_is_no_result(tree, tmp_path):
    for path in (tree / "folder" / "val").rglob("*.*"):
        (tmp_path / "data" / "val" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "val" / path.parent.name / path.name).write_bytes(b"")
    (tmp_path / "data" / "train").symlink_to(tree / "folder" / "train")
    with pytest.raises(ValueError, match="none of the"):
        run(tmp_path / "run", dataset=f"imagefolder:{tmp_path / 'data'}")
    assert not (tmp_path / "run").exists()
