"""Images in TFRecord files: which records are examples, what their labels mean, and the data set of them."""

import glob
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from rich.progress import Progress

from train.data.images import Augmentation, Dataset
from train.data.images.encoded import DamagedRecord, encoded_dataset
from train.data.images.tfrecord import HEADER, Example, index_file

INDEXING_THREADS = 16
"""Many, since on slow disks indexing is waiting."""
MAX_LABELS_TO_READ = 20_000
"""In larger sets, reading all records for their labels would take too long at the start."""


class Schema(NamedTuple):
    """Under which keys an example holds image and label, and where labels start."""

    image: str
    label: str
    first_label: int


SCHEMAS = (
    Schema("image/encoded", "image/class/label", 1),  # TF-slim's ImageNet: 0 is its background
    Schema("image", "label", 0),  # TensorFlow Datasets
)
NAME_KEYS = ("image/class/text", "image/class/synset")


class RecordReader:
    """The encoded images of one split.

    The checksums of the data are not verified: in pure Python that takes longer than decoding, and a damaged image is
    noticed when it is decoded. Files are opened for each read, which takes microseconds where decoding takes
    milliseconds. So there is nothing to share between threads or to pickle, and no limit of open files to respect.

    Args:
        paths: The files.
        indices: For each file, as from ``index_file``.
        num_classes: Labels out of this range make an example unreadable; None takes all.
    """

    def __init__(self, paths: Sequence[str], indices: Sequence[np.ndarray], num_classes: int | None):
        self.paths = tuple(paths)
        self.num_classes = num_classes
        self._ends = np.cumsum([len(index) for index in indices], dtype=np.int64)
        self._places = np.concatenate(indices)

    def __len__(self) -> int:
        return len(self._places)

    def example(self, index: int) -> Any:
        """The ``tf.train.Example`` of a record.

        Raises:
            OSError: The file cannot be read.
            DamagedRecord: There is no such message.
        """
        path, offset, length = self._find(index)
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise DamagedRecord(f"{length:,} bytes expected, {len(data):,} there: the file has changed")
        try:
            return Example.FromString(data)
        except DecodeError as error:
            raise DamagedRecord("no tf.train.Example (damaged, or other contents)") from error

    def parse(self, index: int) -> tuple[Any, Schema]:
        """What an example holds, by key, and its schema.

        Raises:
            OSError: The file cannot be read.
            DamagedRecord: There is no example, or one in another schema.
        """
        feature = self.example(index).features.feature
        schema = find_schema(feature)
        if schema is None:
            raise DamagedRecord(f"expected {_schemas()}, but the keys are {_keys(feature)}")
        return feature, schema

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image of a record, and its label from 0, as ``Reader.read``."""
        feature, schema = self.parse(index)
        image, label = _single_value(feature, schema.image, "bytes_list"), _label(feature, schema)
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            last = schema.first_label + self.num_classes - 1
            raise DamagedRecord(f"label {label + schema.first_label} is not in [{schema.first_label}, {last}]")
        return image, label

    def describe(self, index: int) -> str:
        """The file, and where in it."""
        path, offset, _ = self._find(index)
        return f"{path}, record at byte {offset - HEADER}"

    def _find(self, index: int) -> tuple[str, int, int]:
        offset, length = self._places[index].tolist()
        return self.paths[np.searchsorted(self._ends, index, side="right")], offset, length


def tfrecords(pattern: str, size: int, channels: int, augment: Augmentation, num_classes: int | None = None) -> Dataset:
    """Images in TFRecord files, in the schema of TF-slim's ImageNet or of TensorFlow Datasets.

    Files with ``train`` in their names are trained on. Those with ``val`` are evaluated on, or if there are none, those
    with ``test``. Other files are left out.

    Args:
        pattern: Matches the files, as ``/data/imagenet/*``; ``**`` stands for any folders.
        size: Height and width of the images that are loaded.
        channels: 1 (grey) or 3 (RGB).
        augment: As in ``EncodedExamples``.
        num_classes: None: counted in the labels, if there are at most ``MAX_LABELS_TO_READ`` records.

    Returns:
        The data set; mean and standard deviation are ImageNet's. Classes are called as in the records where all
        labels are read, and otherwise by their numbers.

    Raises:
        ValueError: No files to train on or to evaluate on; files that are damaged, or no TFRecords; records in another
            schema, or none whose image can be read; ``num_classes`` is needed, or below 1; or as ``EncodedExamples``.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"--num-classes must be at least 1, got {num_classes}")
    train_paths, test_paths = _split(pattern)
    indices = _index_files([*train_paths, *test_paths], None if num_classes else MAX_LABELS_TO_READ)
    readers = [
        RecordReader(train_paths, indices[: len(train_paths)], num_classes),
        RecordReader(test_paths, indices[len(train_paths) :], num_classes),
    ]
    for reader in readers:
        _check_schema(reader)
    if num_classes is None:
        classes = _read_classes(readers)
        for reader in readers:
            reader.num_classes = len(classes)
    else:
        classes = tuple(str(label) for label in range(num_classes))
    return encoded_dataset(f"tfrecord:{pattern}", readers, classes, size, channels, augment)


def find_schema(feature: Any) -> Schema | None:
    """The schema of an example, given ``example.features.feature``; None for another one."""
    return next((schema for schema in SCHEMAS if schema.image in feature and schema.label in feature), None)


def _split(pattern: str) -> tuple[list[str], list[str]]:
    """The files to train on, and those to evaluate on."""
    matching = glob.glob(os.path.expanduser(pattern), recursive=True)
    paths = sorted(path for path in matching if os.path.isfile(path))
    if not paths:
        advice = f"; it is a folder: give {os.path.join(pattern, '*')}" if matching else ""
        raise ValueError(f"expected TFRecord files, but no file matches {pattern}{advice}")
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for path in paths:
        for name, files in splits.items():
            if name in os.path.basename(path).lower():
                files.append(path)
                break
    train, test = splits["train"], splits["val"] or splits["test"]
    if not train or not test:
        missing = "'train'" if not train else "'val' or 'test'"
        raise ValueError(
            f"none of the {len(paths):,} files that match {pattern} has {missing} in its name (the first is"
            f" {os.path.basename(paths[0])}): both splits are needed, each in files named after it"
        )
    return train, test


def _index_files(paths: list[str], most: int | None) -> list[np.ndarray]:
    """The index of each file; a bar shows how far it is if that takes longer than a second.

    Raises:
        ValueError: As ``index_file``, or because there are more records than ``most``.
    """
    pool = ThreadPoolExecutor(INDEXING_THREADS)
    try:
        futures = [pool.submit(index_file, path) for path in paths]
        _, pending = wait(futures, timeout=1)
        total = 0
        with Progress(disable=not pending) as progress:
            for future in progress.track(as_completed(futures), len(futures), description="Looking for records"):
                total += len(future.result())
                if most is not None and total > most:
                    raise ValueError(
                        f"--num-classes is needed: more than {most:,} records are too many to read them all for their"
                        " labels at the start (ImageNet has 1000 classes)"
                    )
    finally:
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _check_schema(reader: RecordReader) -> None:
    if not len(reader):
        raise ValueError(f"{reader.paths[0]} and the other files of its split hold no records: copy them again")
    for index in range(min(16, len(reader))):
        try:
            feature = reader.example(index).features.feature
        except (OSError, DamagedRecord):
            continue  # if all are like this, the check of a sample says so
        if find_schema(feature) is None:
            raise ValueError(f"{reader.describe(index)}: expected {_schemas()}, but the keys are {_keys(feature)}")
        return


def _read_classes(readers: list[RecordReader]) -> tuple[str, ...]:
    """The names of the classes, by label, from all records."""
    names: dict[int, str] = {}
    for reader in readers:
        for index in range(len(reader)):
            try:
                feature, schema = reader.parse(index)
                label = _label(feature, schema)
            except (OSError, DamagedRecord):
                continue  # counted when it is loaded
            if not 0 <= label < MAX_LABELS_TO_READ:
                raise ValueError(
                    f"{reader.describe(index)}: the label {label + schema.first_label} is out of range. Labels under"
                    f" {schema.label!r} count from {schema.first_label}: number them so; or, if this record is damaged,"
                    " give --num-classes, and examples with labels out of range are left out"
                )
            if label not in names:
                names[label] = _class_name(feature) or str(label)
    if not names:
        raise ValueError(
            f"no record has a label that can be read; first: {readers[0].describe(0)}; check that these are the right"
            " files, and that they were downloaded completely"
        )
    return tuple(names.get(label, str(label)) for label in range(max(names) + 1))


def _label(feature: Any, schema: Schema) -> int:
    """The label, from 0."""
    return _single_value(feature, schema.label, "int64_list") - schema.first_label


def _class_name(feature: Any) -> str | None:
    texts = (feature[key].bytes_list.value for key in NAME_KEYS if key in feature)
    return next((text[0].decode(errors="replace") for text in texts if text and text[0]), None)


def _single_value(feature: Any, key: str, kind: str) -> Any:
    values = getattr(feature[key], kind).value
    if len(values) != 1:
        raise DamagedRecord(f"expected one value in the {kind} of {key!r}, got {len(values)}")
    return values[0]


def _schemas() -> str:
    return " or ".join(f"{schema.image!r} with {schema.label!r}" for schema in SCHEMAS)


def _keys(feature: Any) -> str:
    return ", ".join(repr(key) for key in sorted(feature)) or "none"
