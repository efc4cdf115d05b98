"""Data sets of images held in memory."""

import gzip
import importlib.util
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from train.data.images import Augmentation, Batch, Dataset

DEFAULT_FOLDER = Path("data/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class ArrayExamples:
    """Examples in two arrays.

    Args:
        images: uint8 [examples, height, width, channels].
        labels: int32 [examples], each in [0, num_classes).
        augment: What ``load`` does to an image for which it gets a generator. none: nothing. flip: mirrors it left to
            right with probability 1/2. crop-flip: also pads it with a black edge of a seventh of its height, and cuts a
            random window of its size out of that (4 pixels for 28, as usual for small images: He et al. 2015).
        num_classes: What the labels must be below; None: any number.

    Raises:
        ValueError: The arrays have other shapes or dtypes, are empty, differ in length, or hold labels out of range.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, augment: Augmentation = "none", num_classes: int | None = None
    ):
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 [examples, height, width, channels], got {images.dtype} {list(images.shape)}: "
                "reshape or convert them"
            )
        if labels.ndim != 1 or labels.dtype != np.int32:
            raise ValueError(
                f"labels must be int32 [examples], got {labels.dtype} {list(labels.shape)}: reshape or convert them"
            )
        if len(images) != len(labels):
            raise ValueError(f"every image needs one label, got {len(images)} images and {len(labels)} labels")
        if not images.size:
            raise ValueError(f"there must be at least one example with pixels, got shape {list(images.shape)}")
        bad = (labels < 0) if num_classes is None else (labels < 0) | (labels >= num_classes)
        if bad.any():
            first = int(np.argmax(bad))
            expected = "at least 0" if num_classes is None else f"in [0, {num_classes})"
            raise ValueError(f"labels must be {expected}, got {labels[first]} for example {first}: correct the labels")
        if augment not in get_args(Augmentation):
            raise ValueError(f"augment must be one of {', '.join(get_args(Augmentation))}, got {augment!r}")
        self.images = images
        self.labels = labels
        self.augment: Augmentation = augment

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Batch:
        """Copies examples out of the arrays; augments them if there are generators to draw from.

        Args:
            indices: int64 [examples], each in [0, len).
            draws: A generator per example, or None: no augmentation.

        Returns:
            The examples; all of them are readable.

        Raises:
            ValueError: There are more or fewer generators than indices.
        """
        images = self.images[indices]
        if draws is not None:
            if len(draws) != len(indices):
                raise ValueError(f"every index needs one generator, got {len(indices)} and {len(draws)}")
            if self.augment != "none":
                # first, so that "flip" and "crop-flip" mirror the same examples
                flip = np.array([draw.random() < 0.5 for draw in draws], bool)
                if self.augment == "crop-flip":
                    images = _crop(images, draws, round(images.shape[1] / 7))
                images[flip] = images[flip, :, ::-1]
        return {
            "image": images,
            "label": self.labels[indices],
            "unreadable": np.full(len(indices), -1, np.int64),
        }

    def describe(self, index: int) -> str:
        """Where an example is stored; for people."""
        return f"example {index} of the array"


def _crop(images: np.ndarray, draws: Sequence[np.random.Generator], padding: int) -> np.ndarray:
    """Pads each image with ``padding`` black pixels, and cuts out a window at a place drawn from its generator."""
    count, height, width, _ = images.shape
    offsets = np.array([draw.integers(0, 2 * padding + 1, size=2) for draw in draws], np.int64).reshape(count, 2)
    rows = offsets[:, :1] + np.arange(height)
    columns = offsets[:, 1:] + np.arange(width)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _dataset(name: str, train: ArrayExamples, test: ArrayExamples, classes: tuple[str, ...]) -> Dataset:
    """A data set with the mean and the standard deviation of its training images."""
    _, *image_shape = train.images.shape
    # Sums in float64 are exact here; a float64 copy of the images would take eight times their memory.
    mean = train.images.mean(axis=(0, 1, 2), dtype=np.float64)
    variance = np.square(train.images, dtype=np.uint16).mean(axis=(0, 1, 2), dtype=np.float64) - mean**2
    return Dataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        image_shape=tuple(image_shape),
        mean=mean.astype(np.float32),
        std=np.sqrt(variance).astype(np.float32),
    )


def digits(augment: Augmentation = "none") -> Dataset:
    """1,797 real images of handwritten digits, 8x8x1, from scikit-learn: 1,437 to train on and 360 to test with.

    The split is stratified and always the same. Pixels are 0 to 16.

    Args:
        augment: What to do to training images, see ``ArrayExamples``. A mirrored digit is seldom a digit.
    """
    found = importlib.util.find_spec("sklearn")  # to import it would take longer than all else at a start
    assert found is not None, "checked when the package train is imported"
    assert found.origin is not None
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, np.int32, delimiter=",")
    images, labels = table[:, :64].reshape(-1, 8, 8, 1).astype(np.uint8), table[:, 64]
    training, testing = _stratified(labels, 360)
    return _dataset(
        "digits",
        ArrayExamples(images[training], labels[training], augment, num_classes=10),
        ArrayExamples(images[testing], labels[testing], "none", num_classes=10),
        tuple(str(digit) for digit in range(10)),
    )


def _stratified(labels: np.ndarray, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to test with, of all classes in equal shares.

    They are those of scikit-learn's ``train_test_split(..., stratify=labels, random_state=0)``.
    """
    random = np.random.RandomState(0)  # its stream never changes
    counts = np.bincount(labels)
    for_training = _shares(counts, len(labels) - num_test, random)
    for_testing = _shares(counts - for_training, num_test, random)
    training, testing = [], []
    for label, count in enumerate(counts):
        (members,) = np.nonzero(labels == label)
        members = members[random.permutation(count)]
        training.extend(members[: for_training[label]])
        testing.extend(members[for_training[label] :][: for_testing[label]])
    return random.permutation(training), random.permutation(testing)


def _shares(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """How many of each class are drawn, so that their sum is ``total``: the largest remainders are rounded up."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    for remainder in np.unique(exact - shares)[::-1]:
        missing = int(total - shares.sum())
        if missing == 0:
            break
        (classes,) = np.nonzero(exact - np.floor(exact) == remainder)
        shares[random.choice(classes, min(len(classes), missing), replace=False)] += 1
    return shares.astype(int)


def fashion_mnist(folder: Path = DEFAULT_FOLDER, augment: Augmentation = "none") -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017): images of clothes, 28x28x1; 60,000 to train on and 10,000 to test with.

    Args:
        folder: Holds the four idx files, as they are published (``train-images-idx3-ubyte.gz``) or unpacked.
        augment: What to do to training images, see ``ArrayExamples``.

    Raises:
        ValueError: The folder or a file is missing, or a file is damaged or is not what its name says.
    """
    if not folder.is_dir():
        there = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"the folder of Fashion-MNIST, {folder}, {there}: run {_fetch_command(folder)}")
    train = _fashion_mnist_split(folder, "train", augment)
    test = _fashion_mnist_split(folder, "t10k", "none")
    return _dataset("fashion-mnist", train, test, FASHION_MNIST_CLASSES)


def _fetch_command(folder: Path) -> str:
    option = "" if folder == DEFAULT_FOLDER else f" --folder {shlex.quote(str(folder))}"
    return f"`python -m train.fetch fashion-mnist{option}`"


def _fashion_mnist_split(folder: Path, prefix: str, augment: Augmentation) -> ArrayExamples:
    paths = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = stored_file(folder, name)
        if path is None:
            raise ValueError(
                f"expected {name}.gz or {name} in {folder}, got neither: run {_fetch_command(folder)}, which fetches "
                "what is missing"
            )
        paths.append(path)
    images = _read_idx(paths[0], (28, 28))
    labels = _read_idx(paths[1], ())
    if len(images) != len(labels):
        raise ValueError(
            f"{paths[1]}: expected a label for each of the {len(images)} images of {paths[0].name}, got {len(labels)} "
            "labels: take both files from the same place"
        )
    try:
        return ArrayExamples(images[..., None], labels.astype(np.int32), augment, len(FASHION_MNIST_CLASSES))
    except ValueError as error:
        raise ValueError(f"{paths[0]} and {paths[1].name}: {error}") from None


def stored_file(folder: Path, name: str) -> Path | None:
    """Where a folder holds a file: packed as ``name.gz``, which is preferred, or as it is; None if it does not."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_unpacked(path: Path) -> bytes:
    """The content of a file, unpacked if it is a gzip file, whatever its name is.

    Raises:
        ValueError: The file cannot be read or unpacked.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a readable file, whole if it is packed, got: {error}; replace it") from None


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads uint8 [any, *shape] from a file in the format idx: a magic number, the sizes and then the values."""
    content = read_unpacked(path)
    magic = bytes([0, 0, 8, 1 + len(shape)])  # 8: the values are uint8
    if content[:4] != magic:
        raise ValueError(
            f"{path}: expected an idx file of uint8 with {1 + len(shape)} dimensions, which begins with {magic.hex()}, "
            f"got {content[:4].hex() or 'an empty file'}: replace it"
        )
    start = 4 + 4 * (1 + len(shape))
    if len(content) < start:
        raise ValueError(f"{path}: expected at least the {start} bytes of a header, got {len(content)}: replace it")
    count, *rest = np.frombuffer(content, ">u4", 1 + len(shape), offset=4).tolist()
    if tuple(rest) != shape:
        raise ValueError(f"{path}: expected values of shape {list(shape)}, got {rest}: replace it")
    expected = start + count * int(np.prod(shape))
    if len(content) != expected:
        raise ValueError(f"{path}: expected {expected} bytes for {count} values, got {len(content)}: replace it")
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)
