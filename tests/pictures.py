"""Pictures with labels, and files that hold them; made here, since real ones need scikit-learn, which loads slowly."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.images.tfrecord import masked_crc32c

LABELS = np.arange(100) % 10
"""Of the pictures with these numbers."""


def picture(number: int, side: int = 24) -> Image.Image:
    """A grey picture like no other, smooth enough for JPEG."""
    corners = np.random.default_rng(number).integers(256, size=(6, 6), dtype=np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    """An image in one of Pillow's formats."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_tfrecord(path: Path, messages: Iterable[bytes]) -> Path:
    """Writes a TFRecord file."""

    def checked(data: bytes) -> bytes:
        return data + struct.pack("<I", masked_crc32c(data))

    path.write_bytes(b"".join(checked(struct.pack("<Q", len(data))) + checked(data) for data in messages))
    return path
