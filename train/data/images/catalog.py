"""Data sets of images by the names that the command line has for them.

What only some data sets need (Pillow, protobuf) is imported when one of them is opened.
"""

from pathlib import Path

from train.data.images import Augmentation, Dataset, arrays

FORMS = "digits, fashion-mnist[:DIR], imagefolder:DIR or tfrecord:GLOB"


def load(
    name: str,
    *,
    augment: Augmentation | None = None,
    image_size: int = 224,
    channels: int = 3,
    num_classes: int | None = None,
) -> Dataset:
    """Opens a data set, and checks what can be checked without reading it all.

    Args:
        name: One of ``FORMS``.
        augment: What happens to training images; None: nothing to those held in memory, random resized crops and flips
            to files.
        image_size: Height and width of images from files, in pixels.
        channels: Of images from files: 1 or 3.
        num_classes: Of records, which do not state it.

    Raises:
        ValueError: There is no such data set, or something is wrong with it.
    """
    kind, _, where = name.partition(":")
    if kind in ("imagefolder", "tfrecord") and not where:
        raise ValueError(f"--dataset {kind} needs to know where: give {FORMS}")
    if kind in ("imagefolder", "tfrecord"):
        if image_size < 1:
            raise ValueError(f"--image-size must be at least 1, got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"--channels must be 1 (grey) or 3 (RGB), got {channels}")
    if name == "digits":
        return arrays.digits(augment or "none")
    if kind == "fashion-mnist":
        return arrays.fashion_mnist(Path(where) if where else arrays.DEFAULT_FOLDER, augment or "none")
    if kind == "imagefolder":
        from train.data.images import folders

        return folders.image_folder(Path(where), image_size, channels, augment or "crop-flip")
    if kind == "tfrecord":
        from train.data.images import records

        return records.tfrecords(where, image_size, channels, augment or "crop-flip", num_classes=num_classes)
    raise ValueError(f"--dataset must be {FORMS}, got {name!r}")
