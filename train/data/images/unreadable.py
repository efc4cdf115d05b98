"""Which examples of a run could not be read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train import console
from train.data.images import Dataset


def indices(batch: Mapping[str, np.ndarray]) -> frozenset[int]:
    """The indices of those of a batch."""
    return frozenset(batch["unreadable"][batch["unreadable"] >= 0].tolist())


def write_list(path: Path, data: Dataset, train: frozenset[int], test: frozenset[int]) -> None:
    """Writes where they are stored and what is wrong with each, a line each, and says so; nothing if there are none."""
    lines = [
        f"{split}: {examples.describe(index)}"
        for split, examples, lost in (("train", data.train, train), ("test", data.test, test))
        for index in sorted(lost)
    ]
    if lines:
        path.write_text("\n".join(lines) + "\n")
        console.warn(f"{len(lines)} examples could not be read, and are listed in {path}")
