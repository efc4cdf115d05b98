"""Images in folders: labels, order, broken files, and advice about other layouts."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import LABELS, picture
from PIL import Image

from train.data.images import folders
from train.data.images.folders import FolderReader, image_folder
from train.data.images.preprocessing import central_crop

CLASSES = ("eight", "five", "nine")
VALUES = {"eight": 8, "five": 5, "nine": 9}


def make(root, splits=("train", "val"), count=4):
    for split in splits:
        for name, value in VALUES.items():
            (root / split / name).mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(value == LABELS)[:count]):
                suffix = ("png", "JPEG", "bmp", "GIF")[number % 4]
                picture(index).save(root / split / name / f"{index:04}.{suffix}", quality=95, subsampling=0)
    return root


def load(examples, indices=None):
    return examples.load(np.arange(len(examples)) if indices is None else np.asarray(indices), None)


def test_labels_and_images(tmp_path):
    data = image_folder(make(tmp_path), 16, 1, "crop-flip")
    assert data.name == f"imagefolder:{tmp_path}"
    assert data.classes == CLASSES
    assert data.image_shape == (16, 16, 1)
    assert len(data.train) == len(data.test) == 12
    np.testing.assert_allclose(data.mean, [114.495])
    np.testing.assert_allclose(data.std, [57.63], rtol=1e-6)
    batch = load(data.train)
    assert batch["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (batch["unreadable"] == -1).all()
    paths = [path for name in CLASSES for path in sorted((tmp_path / "train" / name).iterdir())]
    assert [data.train.describe(index) for index in range(12)] == [str(path) for path in paths]
    for image, path in zip(batch["image"], paths, strict=True):
        expected = central_crop(picture(int(path.stem)), 16).astype(int)
        assert np.abs(image - expected).mean() < (3 if path.suffix == ".JPEG" else 0.01)


def test_what_is_an_image(tmp_path):
    root = make(tmp_path, count=2)
    nine = root / "train" / "nine"
    (nine / "more" / "still").mkdir(parents=True)
    picture(0).save(nine / "more" / "still" / "a.png")
    picture(0).save(nine / "Z.PNG")
    picture(0).save(nine / ".hidden.png")
    (nine / ".folder").mkdir()
    picture(0).save(nine / ".folder" / "b.png")
    (nine / "labels.txt").write_text("9")
    (nine / "no suffix").write_text("9")
    (nine / "circle").symlink_to(nine)
    (root / "train" / ".DS_Store").write_text("")
    (root / "train" / "readme.txt").write_text("")
    data = image_folder(root, 16, 3, "none")
    described = [os.path.relpath(data.train.describe(index), nine) for index in range(4, len(data.train))]
    assert described == ["0009.png", "0019.JPEG", "Z.PNG", "more/still/a.png"]
    assert data.train.reader.ignored == 3  # two files, and a link to a folder
    assert load(data.train)["label"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_a_class_may_be_a_link(tmp_path):
    root = make(tmp_path / "data")
    (root / "train" / "five").rename(tmp_path / "elsewhere")
    (root / "train" / "five").symlink_to(tmp_path / "elsewhere")
    assert load(image_folder(root, 16, 1, "none").train)["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_which_folder_is_evaluated_on(tmp_path):
    make(tmp_path, ["train", "test"], count=1)
    assert image_folder(tmp_path, 16, 1, "none").test.describe(0).startswith(f"{tmp_path}/test/")
    make(tmp_path, ["validation"], count=1)
    assert image_folder(str(tmp_path), 16, 1, "none").test.describe(0).startswith(f"{tmp_path}/validation/")
    make(tmp_path, ["val"], count=1)
    assert image_folder(tmp_path, 16, 1, "none").test.describe(0).startswith(f"{tmp_path}/val/")


def test_broken_files(tmp_path):
    root = make(tmp_path)
    eight = root / "train" / "eight"
    (eight / "a.jpg").write_bytes(b"")
    whole = eight.joinpath(f"{np.flatnonzero(LABELS == 8)[1]:04}.JPEG").read_bytes()
    (eight / "b.jpg").write_bytes(whole[:-20])
    (eight / "c.jpg").symlink_to(tmp_path / "nowhere")
    (eight / "d.jpg").symlink_to(tmp_path)
    Image.new("RGB", (1, 1), "red").save(eight / "e.png")
    Image.new("CMYK", (5, 300)).save(eight / "f.jpg")
    examples = image_folder(root, 16, 3, "flip").train
    assert load(examples, range(12))["unreadable"].tolist() == [-1] * 4 + [4, 5, 6, 7] + [-1] * 4
    assert load(examples, [8])["image"].reshape(-1, 3).tolist() == [[255, 0, 0]] * 256
    reasons = [examples.describe(index) for index in range(4, 9)]
    assert reasons[0] == f"{eight}/a.jpg: empty (0 bytes)"
    assert reasons[1].startswith(f"{eight}/b.jpg: image file is truncated")
    assert reasons[2] == f"{eight}/c.jpg: No such file or directory"
    assert reasons[3] == f"{eight}/d.jpg: Is a directory"
    assert reasons[4] == f"{eight}/e.png"
    batch = examples.load(np.array([4, 7]), [np.random.default_rng(0), np.random.default_rng(1)])
    assert batch["unreadable"].tolist() == [4, 7]
    whole = load(examples, [i for i in range(len(examples)) if i not in (4, 5, 6, 7)])["image"]
    for image in batch["image"]:  # one of the others, mirrored or not
        assert any(np.array_equal(image, other) or np.array_equal(image[:, ::-1], other) for other in whole)


def test_names_that_are_no_text(tmp_path):
    root = make(tmp_path)
    folder = os.fsencode(root / "train" / "nine")
    try:
        os.rename(os.path.join(folder, b"0009.png"), os.path.join(folder, b"\xff\xc3\xa4.png"))
    except OSError:
        pytest.skip("the file system takes nothing but UTF-8")
    examples = image_folder(root, 16, 1, "none").train
    described = [examples.describe(index) for index in range(8, 12)]
    assert [name for name in described if name.endswith("\\xffä.png")]
    assert (load(examples)["unreadable"] == -1).all()


def test_threads_and_pickles_load_the_same(tmp_path):
    root = make(tmp_path, count=8)
    (root / "train" / "five" / "broken.png").write_bytes(b"")
    examples = image_folder(root, 16, 3, "crop-flip").train
    indices = np.arange(len(examples))

    def once(examples):
        return examples.load(indices, [np.random.default_rng(index) for index in indices])

    expected = once(examples)
    copy = pickle.loads(pickle.dumps(examples))
    assert copy.describe(20) == examples.describe(20)
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(once, [examples, copy] * 8):
            for name, array in expected.items():
                np.testing.assert_array_equal(batch[name], array)


def test_a_million_names_are_small(tmp_path, monkeypatch):
    """Only names are kept: with those of ImageNet's size, about 30 bytes an image."""
    names = [f"n01440764_{number:05}.JPEG" for number in range(1000)]
    monkeypatch.setattr(folders, "_class_names", lambda path: tuple(f"n{number:08}" for number in range(50)))
    monkeypatch.setattr(folders, "_files", lambda root, inside: iter(names))
    reader = FolderReader(tmp_path)
    assert len(reader) == 50_000
    assert len(pickle.dumps(reader)) < 32 * 50_000
    assert reader.describe(0) == f"{tmp_path}/n00000000/n01440764_00000.JPEG"
    assert reader.describe(49_999) == f"{tmp_path}/n00000049/n01440764_00999.JPEG"
    assert reader.describe(17_003) == f"{tmp_path}/n00000017/n01440764_00003.JPEG"


def check_refused(path, message):
    with pytest.raises(ValueError, match=message):
        image_folder(path, 16, 1, "none")


def test_other_layouts_are_refused_with_advice(tmp_path):
    check_refused(tmp_path / "none", "none does not exist: give the folder that holds DIR/train/CLASS/IMAGE")
    (tmp_path / "file").write_text("")
    check_refused(tmp_path / "file", "file is a file: give the folder")
    root = tmp_path / "data"
    root.mkdir()
    check_refused(root, r"expected DIR/train/CLASS/IMAGE and DIR/val.* no folder train; it holds nothing")
    make(root, ["training", "val"])
    check_refused(root, "no folder train; it holds training, val")
    (root / "training").rename(root / "train")
    (root / "val").rename(root / "valid")
    check_refused(root, "no folder val, validation or test; it holds train, valid")
    check_refused(root / "train", "no folder train; it holds eight, five, nine")
    (root / "val").mkdir()
    check_refused(root, "val has no class folders; it holds nothing. The images must be in one folder per class")
    for number in range(12):
        picture(number).save(root / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    check_refused(root, "ILSVRC2012_val_00000007.JPEG and 4 more. .* one folder per class")


def test_classes_must_have_images_and_be_the_same(tmp_path):
    root = make(tmp_path)
    (root / "train" / "zebra").mkdir()
    (root / "train" / "zebra" / "notes.txt").write_text("striped")
    check_refused(root, r"no images in the class folder .*/train/zebra \(1 files with other extensions are ignored\)")
    picture(0).save(root / "train" / "zebra" / "a.png")
    check_refused(root, "train has 'zebra', which .*val lacks: name the folders alike")
    shutil.copytree(root / "train" / "zebra", root / "train" / "yak")
    (root / "val" / "five").rename(root / "val" / "5")
    check_refused(root, "train has 'five' and 2 more, which .*val lacks; .*val has '5', which .*train lacks")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    root = make(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("val/nine"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    check_refused(root, r"the folder .*val/nine cannot be read: Permission denied; check its permissions")


def test_nothing_but_broken_files_is_refused(tmp_path):
    root = make(tmp_path)
    for path in (root / "val").rglob("*.*"):
        path.write_bytes(b"<html>404</html>")
    check_refused(root, r"none of the 12 tried can be decoded; first: .*val/eight/.*: no image in a format")
