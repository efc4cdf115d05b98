"""Encoded images, as in files: decoded and augmented when they are asked for."""

import functools
from collections.abc import Sequence
from typing import Protocol, get_args

import numpy as np

from train.data.images import Augmentation, Batch, Dataset, TooManyUnreadableError
from train.data.images.preprocessing import (
    UnreadableImage,
    central_box,
    check_channels,
    decode_crop,
    random_box,
    random_flip,
)

MAX_FAILURES = 100
"""So many unreadable examples in a row, each drawn at random, are no accident."""
CHUNK = 8
"""Images that a thread loads at a time: few enough to spread one batch over many threads."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DamagedRecord(ValueError):
    """An example whose image or label cannot be found in what is stored; the message is the reason alone."""


UNREADABLE = (UnreadableImage, DamagedRecord, OSError)


class Reader(Protocol):
    """Where encoded images come from. Safe to use from several threads, and picklable."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image, and its label.

        Raises:
            OSError: It cannot be read.
            DamagedRecord: What was read holds no image with a label.
        """
        ...

    def describe(self, index: int) -> str:
        """Where the example is stored, for people; nothing is read for that."""
        ...


class EncodedExamples:
    """The images of a reader, decoded and augmented; one split of a data set.

    Args:
        reader: Where the encoded images come from.
        size: Height and width of the images that ``load`` returns.
        channels: 1 (grey) or 3 (RGB).
        augment: What training does to images. ``none``: the centre, as in evaluation; ``flip``: the centre, mirrored
            half of the time; ``crop-flip``: a part of random size and shape, mirrored half of the time.

    Raises:
        ValueError: A size below 1, other channels, or an unknown ``augment``.
    """

    def __init__(self, reader: Reader, size: int, channels: int, augment: Augmentation):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        check_channels(channels)
        if augment not in get_args(Augmentation):
            raise ValueError(f"augment must be one of {', '.join(get_args(Augmentation))}, got {augment}")
        self.reader = reader
        self.size = size
        self.channels = channels
        self.augment = augment

    def __len__(self) -> int:
        return len(self.reader)

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Batch:
        """Reads examples, as ``Examples.load``.

        For an example that cannot be read, training takes a readable one, drawn from all.

        Args:
            indices: int64 [examples], each in [0, len).
            draws: A generator per example for training, None for evaluation.

        Raises:
            TooManyUnreadableError: In training, ``MAX_FAILURES`` examples drawn in a row cannot be read.
        """
        images = np.zeros((len(indices), self.size, self.size, self.channels), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        unreadable = np.full(len(indices), -1, np.int64)
        for place, index in enumerate(np.asarray(indices).tolist()):
            draw = None if draws is None else draws[place]
            try:
                images[place], labels[place] = self._example(index, draw)
            except UNREADABLE:
                unreadable[place] = index
                if draw is not None:
                    images[place], labels[place] = self._stand_in(index, draw)
        return Batch(image=images, label=labels, unreadable=unreadable)

    def describe(self, index: int) -> str:
        """Where an example is stored and, from trying again, what is wrong with it if it cannot be read."""
        reason = self.problem(index)
        where = self.reader.describe(index)
        return where if reason is None else f"{where}: {reason}"

    def problem(self, index: int) -> str | None:
        """Why an example cannot be read, after trying; None if it can."""
        try:
            self._example(index, None)
        except UNREADABLE as error:
            # the path in an OSError's own text would be said twice
            return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return None

    def _example(self, index: int, draw: np.random.Generator | None) -> tuple[np.ndarray, int]:
        data, label = self.reader.read(index)
        if draw is None or self.augment == "none":
            return decode_crop(data, self.channels, self.size, central_box), label
        choose = functools.partial(random_box, rng=draw) if self.augment == "crop-flip" else central_box
        return random_flip(decode_crop(data, self.channels, self.size, choose), draw), label

    def _stand_in(self, wanted: int, draw: np.random.Generator) -> tuple[np.ndarray, int]:
        # drawn from all: what is broken often lies together, and neighbours are of one class
        last = wanted
        for _ in range(MAX_FAILURES):
            last = int(draw.integers(len(self)))
            try:
                return self._example(last, draw)
            except UNREADABLE:
                pass
        raise TooManyUnreadableError(
            f"{MAX_FAILURES} training examples drawn in a row cannot be read, the last one {self.describe(last)}. Check"
            " that the disk is still there, and that the files are whole"
        )


def check_sample(examples: EncodedExamples, count: int = 64) -> None:
    """Makes sure that there is something to read, before anything expensive starts.

    Args:
        examples: Tried at evenly spaced indices, until one can be read.
        count: How many to try at most.

    Raises:
        ValueError: None of them can be read.
    """
    tried = np.unique(np.linspace(0, len(examples) - 1, count).astype(np.int64)).tolist() if len(examples) else []
    if all(examples.problem(index) is not None for index in tried):
        first = f"; first: {examples.describe(tried[0])}" if tried else ""
        raise ValueError(
            f"expected images that Pillow can read, but none of the {len(tried)} tried can be decoded{first}; check"
            " that these are the right files, and that they were downloaded completely"
        )


def encoded_dataset(
    name: str, readers: Sequence[Reader], classes: tuple[str, ...], size: int, channels: int, augment: Augmentation
) -> Dataset:
    """A data set of encoded images, after reading a sample of them.

    Args:
        name: As on the command line.
        readers: Of the images to train on, and of those to evaluate on.
        classes: The name of each class, by label.
        size: As in ``EncodedExamples``.
        channels: As there.
        augment: As there.

    Raises:
        ValueError: No image of a sample can be read; or as ``EncodedExamples``.
    """
    train, test = (EncodedExamples(reader, size, channels, augment) for reader in readers)
    for split in (train, test):
        check_sample(split)
    mean, std = imagenet_statistics(channels)
    return Dataset(name, train, test, classes, (size, size, channels), mean, std, CHUNK)


def imagenet_statistics(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of ImageNet's colours, customary for other photographs too.

    Args:
        channels: 3, or 1 for their mean.

    Returns:
        Two float32 [channels], on the scale of uint8 images.
    """
    both = 255 * np.array([IMAGENET_MEAN, IMAGENET_STD])
    mean, std = (both if channels == 3 else both.mean(1, keepdims=True)).astype(np.float32)
    return mean, std
