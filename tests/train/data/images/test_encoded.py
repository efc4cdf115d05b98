"""Encoded images: augmentation, and what stands in for examples that cannot be read."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import encoded, picture

from train.data.images import TooManyUnreadableError
from train.data.images.encoded import DamagedRecord, EncodedExamples, check_sample, imagenet_statistics
from train.data.images.preprocessing import central_crop, random_flip, random_resized_crop


class Stored:
    """Examples in a list: bytes, or an exception to raise."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def read(self, index):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index], index % 10

    def describe(self, index):
        return f"item {index}"


BROKEN = [b"", OSError(5, "Input/output error"), DamagedRecord("label 12 is not in [0, 9]"), b"no image"]


def draws(count, seed=0):
    return [np.random.default_rng((seed, index)) for index in range(count)]


def test_evaluation_takes_the_centre():
    items = [encoded(picture(index)) for index in range(12)]
    for augment in ("none", "flip", "crop-flip"):
        batch = EncodedExamples(Stored(items), 16, 1, augment).load(np.array([11, 0, 0]), None)
        assert {name: array.dtype for name, array in batch.items()} == {
            "image": np.uint8, "label": np.int32, "unreadable": np.int64
        }  # fmt: skip
        assert batch["label"].tolist() == [1, 0, 0]
        assert batch["unreadable"].tolist() == [-1, -1, -1]
        for image, index in zip(batch["image"], [11, 0, 0], strict=True):
            np.testing.assert_array_equal(image, central_crop(picture(index), 16))


def test_augmentations():
    stored = Stored([encoded(picture(index)) for index in range(10)])
    indices = np.arange(10)
    plain = EncodedExamples(stored, 16, 1, "none")
    evaluated = plain.load(indices, None)["image"]
    np.testing.assert_array_equal(plain.load(indices, draws(10))["image"], evaluated)
    flipped = EncodedExamples(stored, 16, 1, "flip").load(indices, draws(10))["image"]
    same = (flipped == evaluated).all(axis=(1, 2, 3))
    assert 0 < same.sum() < 10
    np.testing.assert_array_equal(np.where(same[:, None, None, None], flipped, flipped[:, :, ::-1]), evaluated)
    cropping = EncodedExamples(stored, 16, 1, "crop-flip")
    first, again = (cropping.load(indices, draws(10))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != cropping.load(indices, draws(10, seed=1))["image"]).any(axis=(1, 2, 3)).all()
    for place, draw in enumerate(draws(10)):
        expected = random_flip(random_resized_crop(picture(place), 16, draw), draw)
        np.testing.assert_array_equal(first[place], expected)


def test_an_unreadable_example_is_black_in_evaluation():
    examples = EncodedExamples(Stored([encoded(picture(0)), *BROKEN, encoded(picture(5))]), 16, 3, "none")
    batch = examples.load(np.arange(6), None)
    assert batch["unreadable"].tolist() == [-1, 1, 2, 3, 4, -1]
    assert batch["label"].tolist() == [0, 0, 0, 0, 0, 5]
    assert batch["image"].any(axis=(1, 2, 3)).tolist() == [True, False, False, False, False, True]


def test_a_readable_example_drawn_from_all_stands_in_for_training():
    examples = EncodedExamples(Stored([encoded(picture(0)), encoded(picture(1)), *BROKEN]), 16, 1, "none")
    batch = examples.load(np.array([0, 1, *range(2, 6), *range(2, 6)]), draws(10))
    assert batch["unreadable"].tolist() == [-1, -1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert set(batch["label"][2:].tolist()) == {0, 1}
    for image, label in zip(batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(image, batch["image"][label])
    again = examples.load(np.array([0, 1, *range(2, 6), *range(2, 6)]), draws(10))
    np.testing.assert_array_equal(again["image"], batch["image"])


def test_broken_neighbours_are_no_reason_to_stop_but_a_broken_set_is():
    none = EncodedExamples(Stored(BROKEN), 16, 1, "crop-flip")
    with pytest.raises(TooManyUnreadableError, match=r"100 training examples drawn in a row .* the last one item \d: "):
        none.load(np.array([2]), draws(1))
    whole = encoded(picture(0))
    mostly = EncodedExamples(Stored([*[b""] * 300, *[whole] * 100]), 16, 1, "crop-flip")  # a class that is not there
    assert (mostly.load(np.arange(300), draws(300))["label"] >= 300 % 10).all()


def test_descriptions_say_what_is_wrong():
    jpeg = encoded(picture(0), "JPEG")
    examples = EncodedExamples(Stored([encoded(picture(0)), jpeg[:-20], *BROKEN]), 16, 3, "none")
    first, *others = (examples.describe(index) for index in range(6))
    assert first == "item 0"
    assert others[0].startswith("item 1: image file is truncated")
    assert others[1:] == [
        "item 2: empty (0 bytes)",
        "item 3: Input/output error",
        "item 4: label 12 is not in [0, 9]",
        "item 5: no image in a format that Pillow can read",
    ]


def test_samples():
    check_sample(EncodedExamples(Stored([*BROKEN * 16, encoded(picture(0))]), 16, 1, "none"))
    for items, message in [
        (BROKEN, r"none of the 4 tried can be decoded; first: item 0: empty \(0 bytes\); check that these are"),
        (BROKEN * 50, "none of the 64 tried"),
        ([], "none of the 0 tried can be decoded; check"),
    ]:
        with pytest.raises(ValueError, match=f"expected images that Pillow can read, but {message}"):
            check_sample(EncodedExamples(Stored(items), 16, 1, "none"))


def test_threads_and_pickles_load_the_same():
    forms = ("PNG", "JPEG", "GIF", "TIFF")
    items = [encoded(picture(index, 32 + index).convert("RGB"), forms[index % 4]) for index in range(24)] + BROKEN
    examples = EncodedExamples(Stored(items), 16, 3, "crop-flip")
    indices = np.arange(28)
    expected = examples.load(indices, draws(28))
    copy = pickle.loads(pickle.dumps(examples))
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda one: one.load(indices, draws(28)), [examples, copy] * 8))
    for batch in batches:
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)


def test_statistics():
    mean, std = imagenet_statistics(3)
    np.testing.assert_allclose(mean, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(std, [58.395, 57.12, 57.375])
    mean, std = imagenet_statistics(1)
    np.testing.assert_allclose([mean, std], [[114.495], [57.63]], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_wrong_arguments():
    for size, channels, augment, message in [
        (0, 3, "none", "size must be at least 1, got 0"),
        (8, 2, "none", "channels must be 1"),
        (8, 3, "mixup", "augment must be one of none, flip, crop-flip"),
    ]:
        with pytest.raises(ValueError, match=message):
            EncodedExamples(Stored([]), size, channels, augment)
