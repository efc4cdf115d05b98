"""Data sets in memory, and the order in which workers see them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """Images and labels, split into training and test.

    Attributes:
        train_images: float32 [train examples, height, width, channels], zero mean and unit variance over the set.
        train_labels: int32 [train examples].
        test_images: float32 [test examples, height, width, channels], normalized like the training images.
        test_labels: int32 [test examples].
        num_classes: Number of classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int


def digits() -> Images:
    """1,797 real images of handwritten digits, 8x8x1, from scikit-learn: 1,437 to train on and 360 to test with.

    The split is stratified and always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    train, test, train_labels, test_labels = map(
        np.asarray, train_test_split(images, labels.astype(np.int32), test_size=360, stratify=labels, random_state=0)
    )
    mean, std = train.mean(), train.std()
    return Images((train - mean) / std, train_labels, (test - mean) / std, test_labels, num_classes=10)


DATASETS = {"digits": digits}


def batch_indices(num_examples: int, num_workers: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """An endless stream of int64 [num_workers, batch_size]: which examples each worker takes at each step.

    Every epoch is a new permutation of all examples, dealt out to the workers; batches run on over the end of an epoch,
    so that no example is left out. The order depends on the seed and the shape alone: all algorithms get the same.
    """
    rng = np.random.default_rng(seed)
    taken = num_workers * batch_size
    pool = rng.permutation(num_examples)
    while True:
        while len(pool) < taken:
            pool = np.concatenate([pool, rng.permutation(num_examples)])
        yield pool[:taken].reshape(num_workers, batch_size)
        pool = pool[taken:]
