"""Images in folders, one per class: the layout of ImageNet and of torchvision's ImageFolder."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.images import Augmentation, Dataset
from train.data.images.encoded import encoded_dataset
from train.data.images.preprocessing import EXTENSIONS

TEST_FOLDERS = ("val", "validation", "test")
LAYOUT = "DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE (or validation or test instead of val)"
SCANNING_THREADS = 16
"""Many, since on network disks scanning is waiting."""


class FolderReader:
    """The encoded images of one split.

    Args:
        path: The folder of the split, with a folder per class.

    Attributes:
        classes: The names of the classes, sorted; a label is a position in here.
        ignored: How many files are left out because their extension is not one of an image.

    Raises:
        ValueError: There are no class folders, or one without images, or one that cannot be read.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        self.classes = _class_names(path)
        with ThreadPoolExecutor(SCANNING_THREADS) as pool:
            scans = list(pool.map(lambda name: _scan_class(path / name), self.classes))
        self.ignored = sum(scan.ignored for scan in scans)
        # All names in one byte string: a million Python strings would take ten times the memory, and be pickled one by
        # one for each process that loads images.
        self._names = b"".join(scan.names for scan in scans)
        self._name_ends = np.cumsum(np.concatenate([scan.lengths for scan in scans]), dtype=np.int64)
        self._class_ends = np.cumsum([len(scan.lengths) for scan in scans], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._name_ends)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of a file, and its label, as ``Reader.read``."""
        path, label = self._find(index)
        with open(path, "rb") as file:
            return file.read(), label

    def describe(self, index: int) -> str:
        """The path of a file; bytes that are not text are escaped."""
        return os.fsencode(self._find(index)[0]).decode(errors="backslashreplace")

    def _find(self, index: int) -> tuple[str, int]:
        label = int(np.searchsorted(self._class_ends, index, side="right"))
        start = self._name_ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._name_ends[index]])
        return os.path.join(self.path, self.classes[label], name), label


def image_folder(path: str | Path, size: int, channels: int, augment: Augmentation) -> Dataset:
    """Images in ``DIR/train/CLASS`` and ``DIR/val/CLASS``.

    The second may also be called ``validation`` or ``test``; the first of these names that exists is used. Classes and
    files are sorted by name, so that labels are the same as torchvision's. A class may have folders in it. Hidden files
    are left out, and so are those without the extension of an image. Only a sample of the files is opened here.

    Args:
        path: The folder DIR.
        size: Height and width of the images that are loaded.
        channels: 1 (grey) or 3 (RGB).
        augment: As in ``EncodedExamples``.

    Returns:
        The data set; ImageNet's mean and standard deviation.

    Raises:
        ValueError: The folder has another layout, an empty class, different classes to train on and to evaluate on,
            or no image that can be read; or as ``EncodedExamples``.
    """
    root = Path(path).expanduser()
    if not os.path.exists(root):
        raise ValueError(f"{root} does not exist: give the folder that holds {LAYOUT}")
    if not os.path.isdir(root):
        raise ValueError(f"{root} is a file: give the folder that holds {LAYOUT}")
    found, folders = _names(root)
    test = next((name for name in TEST_FOLDERS if name in folders), None)
    if "train" not in folders or test is None:
        missing = "train" if "train" not in folders else "val, validation or test"
        raise ValueError(f"expected {LAYOUT}, but {root} has no folder {missing}; it holds {_listing(found)}")
    readers = [FolderReader(root / name) for name in ("train", test)]
    _check_same_classes(*readers)
    return encoded_dataset(f"imagefolder:{path}", readers, readers[0].classes, size, channels, augment)


class _Scan(NamedTuple):
    names: bytes  # sorted and relative to the class's folder, one right after the other
    lengths: np.ndarray
    ignored: int


def _scan_class(path: Path) -> _Scan:
    images, ignored = [], 0
    for name in _files(path, ""):
        if os.path.splitext(name)[1].lower() in EXTENSIONS:
            images.append(name)
        else:
            ignored += 1
    if not images:
        others = f" ({ignored:,} files with other extensions are ignored)" if ignored else ""
        raise ValueError(f"no images in the class folder {path}{others}: put images into it, or remove it")
    encoded = [os.fsencode(name) for name in sorted(images)]
    return _Scan(b"".join(encoded), np.array([len(name) for name in encoded], np.int64), ignored)


def _files(root: Path, inside: str) -> Iterator[str]:
    for entry in _entries(root / inside):
        name = os.path.join(inside, entry.name)
        # links to folders are not followed here, since they may form cycles
        if entry.is_dir(follow_symlinks=False):
            yield from _files(root, name)
        else:
            yield name


def _class_names(path: Path) -> tuple[str, ...]:
    found, names = _names(path)
    if not names:
        raise ValueError(
            f"{path} has no class folders; it holds {_listing(found)}. The images must be"
            f" in one folder per class: {LAYOUT}. (ImageNet's validation images come in a single folder: move them into"
            " folders named like those of train)"
        )
    return tuple(names)


def _check_same_classes(train: FolderReader, test: FolderReader) -> None:
    differences = []
    for one, other in ((train, test), (test, train)):
        only = sorted(set(one.classes) - set(other.classes))
        if only:
            more = f" and {len(only) - 1:,} more" if len(only) > 1 else ""
            differences.append(f"{one.path} has {only[0]!r}{more}, which {other.path} lacks")
    if differences:
        raise ValueError(f"expected the same classes in both, but {'; '.join(differences)}: name the folders alike")


def _names(path: Path) -> tuple[list[str], list[str]]:
    """What is in a folder, and which of that are folders, or links to them; sorted."""
    found = sorted(entry.name for entry in _entries(path))
    return found, [name for name in found if os.path.isdir(path / name)]


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise ValueError(
            f"the folder {path} cannot be read: {error.strerror or error}; check its permissions (chmod u+rx) and that"
            " the disk is there"
        ) from error


def _listing(names: list[str], most: int = 8) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
