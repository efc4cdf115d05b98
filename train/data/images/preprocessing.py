"""Decodes, crops and mirrors images: encoded bytes in, uint8 pixels as a model sees them out.

Training follows Szegedy et al., "Going deeper with convolutions" (2015): a part of random size and shape, mirrored half
of the time. Evaluation takes the centre.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a part of an image, in pixels."""

MODES = {1: "L", 3: "RGB"}

# All plugins at once, while the import lock keeps other threads out; the common formats are tried first.
Image.preinit()
Image.init()
# EPS would start Ghostscript on whatever the file holds; of the others Pillow knows the header only.
FORMATS = tuple(name for name in Image.ID if name not in {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
EXTENSIONS = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
"""In lower case, with the dot. An MPO is a JPEG with more images after it."""

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableImage(ValueError):
    """Bytes that cannot be decoded as an image; the message is the reason alone, for people."""


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes a whole image.

    Takes any format that Pillow decodes by itself; of several frames the first. Transparent parts become white, as in
    most viewers; 16 bits are scaled to 8. The orientation in a camera's EXIF data is not applied: the usual ImageNet
    pipelines do not apply it either, and accuracies should be comparable to theirs.

    Args:
        data: The encoded image.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        An image of mode L or RGB, its pixels in memory.

    Raises:
        UnreadableImage: The data is no image, or broken, or has more pixels than Pillow considers safe.
    """
    check_channels(channels)
    with _reasons():
        return _converted(_opened(data), channels)


def decode_crop(data: bytes, channels: int, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
    """Decodes a part of an image and scales it to a square.

    A JPEG is decoded at a half, a quarter or an eighth of its resolution where the part is then still at least as large
    as the result. That is much cheaper, and hardly different.

    Args:
        data: The encoded image.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width of the result.
        choose: Maps (width, height) to the part to take, as ``central_box`` and ``random_box``.

    Returns:
        uint8 [size, size, channels].

    Raises:
        UnreadableImage: As ``decode`` does.
    """
    check_channels(channels)
    with _reasons():
        image = _opened(data)
        is_jpeg = image.format in ("JPEG", "MPO")
        if not is_jpeg:
            image.load()  # some formats know their size only then
    width, height = image.size
    box = choose(width, height)
    if is_jpeg:
        part = min(box[2] - box[0], box[3] - box[1])
        factor = next((factor for factor in (8, 4, 2) if part >= factor * size), 1)
        with _reasons():
            # to grey only where grey is wanted: the decoder then skips the colours
            drafted = image.draft("L" if channels == 1 else None, (width // factor, height // factor))
        if drafted:
            shrink = drafted[1][2] / width
            box = (box[0] * shrink, box[1] * shrink, box[2] * shrink, box[3] * shrink)
    with _reasons():
        image = _converted(image, channels)
    return _resized(image, size, box)


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of an image, of whole pixels, as in torchvision.

    Args:
        width: Of the image, at least 1.
        height: Of the image, at least 1.
        rng: The only source of randomness.
        scale: The least and the greatest area, as a fraction of the image's; uniform in between.
        ratio: The least and the greatest width / height; its logarithm is uniform in between.

    Returns:
        A part within the image. If ten random ones do not fit, the largest in the centre whose shape is allowed (or
        one that is a pixel wide or high, if the image is that narrow).

    Raises:
        ValueError: ``scale`` or ``ratio`` is no range of positive numbers.
    """
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be two positive numbers, the smaller one first, got {(low, high)}")
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def central_box(width: int, height: int, ratio: float = 0.875) -> Box:
    """The square in the centre of an image.

    Args:
        width: Of the image, at least 1.
        height: Of the image, at least 1.
        ratio: The square's side / the image's shorter side.

    Raises:
        ValueError: ``ratio`` is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    side = ratio * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_resized_crop(
    image: Image.Image | np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of an image, scaled to a square: the usual augmentation for ImageNet.

    Args:
        image: Of mode L or RGB, or uint8 [height, width, channels].
        size: Height and width of the result.
        rng: The only source of randomness.
        scale: As in ``random_box``.
        ratio: As in ``random_box``.

    Returns:
        uint8 [size, size, channels].
    """
    image = _as_image(image)
    return _resized(image, size, random_box(*image.size, rng, scale, ratio))


def central_crop(image: Image.Image | np.ndarray, size: int, ratio: float = 0.875) -> np.ndarray:
    """The centre of an image for evaluation: the shorter side is scaled to ``size / ratio``, and the centre cut out.

    Args:
        image: Of mode L or RGB, or uint8 [height, width, channels].
        size: Height and width of the result.
        ratio: As in ``central_box``.

    Returns:
        uint8 [size, size, channels].
    """
    image = _as_image(image)
    return _resized(image, size, central_box(*image.size, ratio))


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image left to right, half of the time.

    Args:
        image: [height, width, channels].
        rng: The only source of randomness; one number is drawn.
    """
    return image[:, ::-1] if rng.random() < 0.5 else image


def check_channels(channels: int) -> None:
    """Raises ValueError for other numbers of channels than 1 and 3."""
    if channels not in MODES:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    # warnings.catch_warnings would restore the filters while other threads still need them. What Pillow warns of does
    # not matter: either the image can be read all the same, or it is counted as unreadable.
    if list(warnings.filters[:1]) != [_IGNORE_PILLOW]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("no image in a format that Pillow can read") from None
    except Exception as error:  # on broken files Pillow's decoders raise whatever comes
        raise UnreadableImage(f"{error or 'cannot be decoded'} ({type(error).__name__})") from error


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise UnreadableImage("empty (0 bytes)")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if min(image.size) < 1:
        raise UnreadableImage(f"{image.width}x{image.height}: no pixels")
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Loads the pixels, and makes them L or RGB."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in MODES.values():
        image = image.convert("RGB")
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scales 16 bits (which Pillow may hold in 32), or numbers whose range must be guessed, to 8 bits."""
    if values.dtype.kind != "f" and values.min() >= 0 and values.max() <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((values - low) * (255 / (high - low or 1))).astype(np.uint8)


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        if image.mode not in MODES.values():
            raise ValueError(f"the image's mode must be L or RGB, got {image.mode}: use decode, or image.convert")
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in MODES or 0 in image.shape:
        raise ValueError(
            f"an image must be uint8 [height, width, 1 or 3], none of them 0, got {image.dtype} {list(image.shape)}"
        )
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _resized(image: Image.Image, size: int, box: Box) -> np.ndarray:
    # Crops and scales at once, so that each pixel is filtered once; bilinear with antialiasing.
    pixels = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box))
    return pixels.reshape(size, size, -1)
