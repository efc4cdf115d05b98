"""Data sets of images: random access to examples, whatever form they are stored in.

The order in which workers take examples is not decided here, but in ``train.data.pipeline``.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

Augmentation = Literal["none", "flip", "crop-flip"]
"""What training does to images: nothing, random mirroring, or random crops and mirroring."""

Sampling = Literal["whole", "shard"]
"""What a worker draws from: the whole training set, or a part of its own."""


class Batch(TypedDict):
    """Some examples, in the order in which they were asked for.

    Attributes:
        image: uint8 [examples, height, width, channels].
        label: int32 [examples].
        unreadable: int64 [examples]: -1, or the index of the example that should stand here but cannot be read. In
            training another one stands in for it; in evaluation its image is black, and it does not count.
    """

    image: np.ndarray
    label: np.ndarray
    unreadable: np.ndarray


class TooManyUnreadableError(RuntimeError):
    """So many examples cannot be read that something else must be wrong."""


class Examples(Protocol):
    """One split of a data set. Safe to use from several threads, and picklable."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Batch:
        """Reads examples.

        Args:
            indices: int64 [examples], each in [0, len).
            draws: For training: a generator per example, which its augmentation alone draws from. None: the
                preprocessing for evaluation, which draws nothing.
        """
        ...

    def describe(self, index: int) -> str:
        """Where an example is stored, and what is wrong with it if it cannot be read; for people."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set for training and evaluation.

    Attributes:
        name: As on the command line.
        train: Examples to train on.
        test: Examples to evaluate on.
        classes: The name of each class, by label.
        image_shape: (height, width, channels) of what ``load`` returns.
        mean: float32 [channels]: what to subtract from the uint8 images.
        std: float32 [channels]: what to divide by after that.
        chunk: How many examples a thread loads at a time; None: all that a process needs for a step.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    chunk: int | None = None
