"""Trains from image files: the preset for ImageNet, scaled down, on a folder tree and on TFRecords of Fashion-MNIST.

The files are as one finds them: PNG and JPEG, grey and in color, of many sizes and shapes, and some of them broken in
one of several ways. A file that cannot be read must be counted and reported, and must never end a run.

Run ``python -m train.fetch fashion-mnist``, then ``python -m benchmarks.image_files`` (some minutes on 2 cores).
"""

import dataclasses
import io
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from train import images
from train import run as training
from train.console import console
from train.data.images import arrays, tfrecord
from train.presets import PRESETS

KINDS = ("png", "jpeg", "grey png", "wide", "tall", "tiny", "palette")
BROKEN = ("truncated", "empty", "text", "cut header")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train from image files.

    Attributes:
        train: Training images to write.
        test: Test images to write.
        broken: Share of the files that are broken.
        out: Where files, runs and the result go; None: a temporary folder.
    """

    train: int = 4000
    test: int = 1000
    broken: float = 0.01
    out: Path | None = None


def encode(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """The contents of a file with an image, and its extension; image: uint8 [height, width] or [height, width, 1]."""
    picture = Image.fromarray(np.asarray(image).reshape(image.shape[:2]))
    height, width = image.shape[:2]
    if kind == "wide":
        picture = picture.resize((3 * width, height))
    elif kind == "tall":
        picture = picture.resize((width, int(rng.integers(2, 5)) * height))
    elif kind == "tiny":
        picture = picture.resize((7, 9))
    if kind not in ("grey png", "palette"):
        picture = picture.convert("RGB")
    elif kind == "palette":
        picture = picture.convert("P")
    extension = "jpg" if kind in ("jpeg", "wide") else "png"
    file = io.BytesIO()
    picture.save(file, "JPEG" if extension == "jpg" else "PNG")
    return file.getvalue(), extension


def break_file(data: bytes, how: str) -> bytes:
    """Damages a file."""
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "text":
        return b"<html>404 Not Found</html>"
    return data[10:]


def files(
    pictures: np.ndarray, labels: np.ndarray, broken: float, seed: int
) -> Iterator[tuple[int, int, bytes, str, bool]]:
    """Yields (number, label, contents, extension, is broken) of each image; a share of exactly ``broken`` is broken."""
    rng = np.random.default_rng(seed)
    bad = set(rng.permutation(len(labels))[: round(broken * len(labels))].tolist())
    for number, (image, label) in enumerate(zip(pictures, labels, strict=True)):
        data, extension = encode(image, KINDS[int(rng.integers(len(KINDS)))], rng)
        if number in bad:
            data = break_file(data, BROKEN[int(rng.integers(len(BROKEN)))])
        yield number, int(label), data, extension, number in bad


def write_folder(
    folder: Path, pictures: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], broken: float, seed: int
) -> int:
    """Writes FOLDER/CLASS/NUMBER.EXTENSION; returns how many files are broken."""
    count = 0
    for number, label, data, extension, bad in files(pictures, labels, broken, seed):
        place = folder / classes[label].replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06}.{extension}").write_bytes(data)
        count += bad
    return count


def write_records(
    folder: Path, split: str, pictures: np.ndarray, labels: np.ndarray, broken: float, seed: int, shards: int = 4
) -> int:
    """Writes FOLDER/SPLIT-NUMBER-of-SHARDS, as ImageNet is usually kept; returns how many images are broken.

    Labels in the files start at 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    opened = [(folder / f"{split}-{i:05}-of-{shards:05}").open("wb") for i in range(shards)]
    for number, label, data, _, bad in files(pictures, labels, broken, seed):
        example = tfrecord.Example()
        example.features.feature["image/encoded"].bytes_list.value.append(data)
        example.features.feature["image/class/label"].int64_list.value.append(label + 1)
        record = example.SerializeToString()
        length = struct.pack("<Q", len(record))
        crc = struct.pack("<I", tfrecord.masked_crc32c(length))
        opened[number % shards].write(length + crc + record + b"\0\0\0\0")  # the crc of the data is not looked at
        count += bad
    for file in opened:
        file.close()
    return count


def run(config: Config, out: Path) -> list[dict[str, object]]:
    """Writes the files and trains three times; returns, for each run, what was counted beside what was written."""
    data = arrays.fashion_mnist()
    assert isinstance(data.train, arrays.ArrayExamples)
    assert isinstance(data.test, arrays.ArrayExamples)
    splits = (
        ("train", data.train.images[: config.train], data.train.labels[: config.train], 0),
        ("val", data.test.images[: config.test], data.test.labels[: config.test], 1),
    )
    written = {}
    for split, pictures, labels, seed in splits:
        written[split] = write_folder(out / "folder" / split, pictures, labels, data.classes, config.broken, seed)
        write_records(out / "records", split, pictures, labels, config.broken, seed)
    preset = PRESETS["imagenet-resnet50"]
    small: dict[str, Any] = {
        "workers": 8,
        "batch_size": 16,
        "log_every": 10,
        "eval_every": 30,
        "checkpoint_every": 30,
        "epochs": 8.0,
    }
    tries: dict[str, dict[str, Any]] = {
        "imagefolder, resnet_small, 32x32, 8 epochs": {
            **small, "dataset": f"imagefolder:{out / 'folder'}", "model": "resnet_small", "image_size": 32,
            "scale_learning_rate": False, "learning_rate": 0.2, "precision": "float32",
        },
        "tfrecord, the same": {
            **small, "dataset": f"tfrecord:{out / 'records' / '*'}", "model": "resnet_small", "image_size": 32,
            "scale_learning_rate": False, "learning_rate": 0.2, "precision": "float32",
        },
        "imagefolder, resnet50, 64x64, bfloat16, 20 steps": {
            "dataset": f"imagefolder:{out / 'folder'}", "workers": 4, "batch_size": 8, "image_size": 64, "epochs": None,
            "steps": 20, "log_every": 5, "eval_every": 20, "checkpoint_every": 20,
        },
    }  # fmt: skip
    rows = []
    for number, (label, changes) in enumerate(tries.items()):
        options = images.Options(**(preset | changes | {"out": out / f"run-{number}"}))
        summary, curve = training.train(images.WORKLOAD, options)
        losses = [row["loss"] for row in curve if "loss" in row]
        rows.append(
            {
                "run": label,
                "steps": summary["steps"],
                "loss, first and last": f"{losses[0]:.2f}, {losses[-1]:.2f}",
                "test accuracy": f"{summary['eval']['accuracy']:.1%}",
                "unreadable train": f"{summary['unreadable']['train']} of {written['train']} broken",
                "unreadable test": f"{summary['unreadable']['test']} of {written['val']} broken",
                "examples/s": f"{summary['examples_per_second']:,.0f}",
                "data wait": f"{summary['data_wait_fraction']:.1%}",
            }
        )
    return rows


def main(config: Config) -> None:
    """Runs in the folder that was named, or in a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        out = config.out or Path(temporary)
        rows = run(config, out)
        lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
        console.print("\n".join(lines), markup=False, highlight=False)
        (out / "result.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__)))
