"""Data sets of images: random access to labelled examples, whatever form they are stored in."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from train.data.loading import Examples
from train.errors import GaveUpError

Augmentation = Literal["none", "flip", "crop-flip"]
"""What training does to images: nothing, random mirroring, or random crops and mirroring."""

Batch = dict[str, np.ndarray]
"""Some examples, in the order in which they were asked for:

- ``image``: uint8 [examples, height, width, channels].
- ``label``: int32 [examples].
- ``unreadable``: int64 [examples]: -1, or the index of the example that should be here but cannot be read. In training
  another one stands in for it. In evaluation its image is black, and it does not count.
"""


class TooManyUnreadableError(GaveUpError):
    """So many examples cannot be read that something else must be wrong."""


class ImageExamples(Examples, Protocol):
    """One split of a data set of images. Safe to use from several threads, and picklable."""

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Batch:
        """Reads examples, as ``Examples.load``."""
        ...

    def describe(self, index: int) -> str:
        """Where an example is stored, and what is wrong with it if it cannot be read; for people."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set of images for training and evaluation.

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
    train: ImageExamples
    test: ImageExamples
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    chunk: int | None = None
