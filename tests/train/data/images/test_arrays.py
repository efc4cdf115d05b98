"""Data sets in memory: their facts, their augmentations, and what is said about files that are wrong."""

import gzip
import pickle
import struct
import zlib

import numpy as np
import pytest

from train.data.images.arrays import ArrayExamples, digits, fashion_mnist

SPLITS = {"train": 12, "t10k": 5}


def examples(augment, count=200, shape=(28, 20, 3)):
    rng = np.random.default_rng(0)
    # no pixel is black, so that what comes from the edge can be told
    images = rng.integers(1, 256, (count, *shape), np.uint8)
    return ArrayExamples(images, rng.integers(0, 10, count, np.int32), augment)


def generators(count, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small Fashion-MNIST: training files packed, test files not."""
    rng = np.random.default_rng(0)
    for prefix, count in SPLITS.items():
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if prefix == "train":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def test_digits():
    data = digits()
    train, test = data.train.load(np.arange(1437), None), data.test.load(np.arange(360), None)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.image_shape == (8, 8, 1)
    assert data.classes == tuple("0123456789")
    assert train["image"].shape == (1437, 8, 8, 1)
    assert train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int32
    assert train["image"].max() == 16
    assert data.mean.shape == data.std.shape == (1,)
    assert data.mean.dtype == data.std.dtype == np.float32
    normalized = (train["image"].astype(np.float32) - data.mean) / data.std
    assert normalized.mean() == pytest.approx(0, abs=1e-5)
    assert normalized.std() == pytest.approx(1, abs=1e-5)
    assert np.bincount(test["label"]).min() >= 34
    everything = np.concatenate([train["image"], test["image"]]).reshape(1797, -1)
    # the set itself holds no image twice, so the split cannot leak
    assert len(np.unique(everything, axis=0)) == 1797
    # the split is scikit-learn's, train_test_split(..., test_size=360, stratify=labels, random_state=0)
    sums = [zlib.crc32(one["image"].tobytes() + one["label"].tobytes()) for one in (train, test)]
    assert sums == [1414497089, 3383088015]


@pytest.mark.parametrize(("augment", "draw"), [("none", True), ("none", False), ("flip", False), ("crop-flip", False)])
def test_plain_examples(augment, draw):
    data = examples(augment)
    indices = np.array([7, 3, 3, 199])
    before = data.images.copy()
    batch = data.load(indices, generators(4) if draw else None)
    np.testing.assert_array_equal(batch["image"], data.images[indices])
    np.testing.assert_array_equal(batch["label"], data.labels[indices])
    np.testing.assert_array_equal(batch["unreadable"], [-1] * 4)
    assert batch["unreadable"].dtype == np.int64
    batch["image"][:] = 0  # a copy: what a caller does to a batch does not reach the data set
    np.testing.assert_array_equal(data.images, before)
    assert data.describe(5) == "example 5 of the array"


def test_flip_mirrors_about_half():
    data = examples("flip")
    got = data.load(np.arange(200), generators(200))["image"]
    mirrored = np.array([np.array_equal(image, plain[:, ::-1]) for image, plain in zip(got, data.images, strict=True)])
    plain = np.array([np.array_equal(*pair) for pair in zip(got, data.images, strict=True)])
    assert (mirrored ^ plain).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize(("height", "padding"), [(28, 4), (8, 1), (3, 0)])
def test_crop_is_a_window_of_the_padded_image(height, padding):
    data = examples("crop-flip", count=600, shape=(height, 10, 2))
    got = data.load(np.arange(600), generators(600))["image"]
    flips = examples("flip", count=600, shape=(height, 10, 2)).load(np.arange(600), generators(600))["image"]
    seen = set()
    for image, plain, flipped in zip(got, data.images, flips, strict=True):
        padded = np.pad(plain, ((padding, padding), (padding, padding), (0, 0)))
        mirrored = not np.array_equal(flipped, plain)
        matches = [
            (top, left, mirrored)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            if np.array_equal(image[:, ::-1] if mirrored else image, padded[top : top + height, left : left + 10])
        ]
        assert len(matches) == 1
        seen.update(matches)
    # 162 windows at most: nearly all of them in 600 draws
    assert len(seen) > 0.9 * 2 * (2 * padding + 1) ** 2


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_an_augmentation_depends_on_its_generator_alone(augment):
    data = examples(augment)
    indices = np.arange(30)
    together = data.load(indices, generators(30))["image"]
    np.testing.assert_array_equal(together, data.load(indices, generators(30))["image"])
    alone = [data.load(indices[i : i + 1], generators(30)[i : i + 1])["image"][0] for i in indices]
    np.testing.assert_array_equal(together, alone)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(together, copy.load(indices, generators(30))["image"])
    assert not np.array_equal(together, data.load(indices, generators(30, seed=1))["image"])
    assert data.load(np.arange(0), [])["image"].shape == (0, 28, 20, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, r"images must be uint8 \[examples, .*got uint8 \[4, 8, 8\]"),
        ({"images": np.zeros((4, 8, 8, 1))}, r"images must be uint8 .*got float64 \[4, 8, 8, 1\]"),
        ({"labels": np.zeros((4, 1), np.int32)}, r"labels must be int32 \[examples\], got int32 \[4, 1\]"),
        ({"labels": np.zeros(4, np.int64)}, "labels must be int32 .*got int64"),
        ({"labels": np.zeros(3, np.int32)}, "got 4 images and 3 labels"),
        ({"labels": np.array([0, 1, -1, 2], np.int32)}, r"labels must be in \[0, 3\), got -1 for example 2"),
        ({"labels": np.array([0, 3, 0, 0], np.int32)}, r"labels must be in \[0, 3\), got 3 for example 1"),
        (
            {"labels": np.array([0, -3, 0, 9], np.int32), "num_classes": None},
            "must be at least 0, got -3 for example 1",
        ),
        ({"images": np.zeros((4, 0, 8, 1), np.uint8)}, r"got shape \[4, 0, 8, 1\]"),
        ({"augment": "mirror"}, "augment must be one of none, flip, crop-flip, got 'mirror'"),
    ],
)
def test_bad_arrays_are_refused(changes, message):
    good = {
        "images": np.zeros((4, 8, 8, 1), np.uint8),
        "labels": np.zeros(4, np.int32),
        "augment": "none",
        "num_classes": 3,
    }
    assert len(ArrayExamples(**good)) == 4
    with pytest.raises(ValueError, match=message):
        ArrayExamples(**{**good, **changes})


def test_every_example_needs_a_generator():
    with pytest.raises(ValueError, match="every index needs one generator, got 3 and 2"):
        examples("flip").load(np.arange(3), generators(2))


def test_fashion_mnist_from_files(folder):
    data = fashion_mnist(folder, "flip")
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    batch = data.train.load(np.arange(12), None)
    np.testing.assert_array_equal(batch["image"], images[..., None])
    np.testing.assert_array_equal(batch["label"], np.arange(12) % 10)
    assert batch["label"].dtype == np.int32
    assert (len(data.train), len(data.test)) == (12, 5)
    assert (data.train.augment, data.test.augment) == ("flip", "none")
    assert data.image_shape == (28, 28, 1)
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    np.testing.assert_allclose(data.mean, [images.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.std, [images.std()], rtol=1e-6)
    (folder / "t10k-images-idx3-ubyte").rename(folder / "t10k-images-idx3-ubyte.gz")  # a name packs nothing
    assert len(fashion_mnist(folder).test) == 5


def test_a_missing_folder_names_the_command(tmp_path):
    with pytest.raises(
        ValueError, match=r"absent, does not exist: run `python -m train.fetch fashion-mnist --folder .*"
    ):
        fashion_mnist(tmp_path / "absent")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not a folder"):
        fashion_mnist(tmp_path / "file")


def test_a_missing_file_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"expected t10k-labels-idx1-ubyte.gz or .* got neither: run `python"):
        fashion_mnist(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"", "begins with 00000803, got an empty file"),
        ("train-images-idx3-ubyte.gz", b"<html>no such file</html>", "begins with 00000803, got 3c68746d"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros(12, np.uint8))),
            "begins with 00000803, got 00000801",
        ),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(5000))[:-12], "whole if it is packed, got: "),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b" + bytes(50), "whole if it is packed, got: "),
        ("train-images-idx3-ubyte.gz", b"\0\0\x08\x03\0\0", "at least the 16 bytes of a header, got 6"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5, 28, 27), np.uint8)), r"shape \[28, 28\], got \[28, 27\]"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5, 28, 28), np.uint8))[:-1], "expected 3936 bytes .* got 3935"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(5, np.uint8)) + b"!", "expected 13 bytes for 5 values, got 14"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)), "each of the 5 images of t10k-images.*got 4 labels"),
        ("t10k-labels-idx1-ubyte", idx(np.full(5, 10, np.uint8)), r"labels must be in \[0, 10\), got 10"),
    ],
    ids=[
        "empty", "text", "wrong kind", "half packed", "no gzip", "half a header", "wrong shape", "too short",
        "too long", "fewer labels", "label out of range",
    ],
)  # fmt: skip
def test_damaged_files_are_named(name, content, message, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        fashion_mnist(folder)
    assert name in str(caught.value)
