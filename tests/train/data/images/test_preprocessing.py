"""Decoding of whole and broken images in many formats, crops and flips."""

import functools
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image

from train.data.images.preprocessing import (
    EXTENSIONS,
    UnreadableImage,
    central_box,
    central_crop,
    decode,
    decode_crop,
    random_box,
    random_flip,
    random_resized_crop,
)


def colourful(side=48):
    return Image.merge("RGB", [picture(number, side) for number in (0, 1, 2)])


def pixels(data, channels=3):
    return np.asarray(decode(data, channels))


def grey_png(width, height):
    """A PNG that claims a size, without pixels to go with it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_lossless_formats_are_exact():
    image = colourful()
    for form in ("PNG", "BMP", "TIFF", "PPM", "GIF"):
        grey = encoded(picture(3), form)
        np.testing.assert_array_equal(pixels(grey, 1), np.asarray(picture(3)))
        np.testing.assert_array_equal(pixels(grey, 3), np.asarray(picture(3).convert("RGB")))
        if form != "GIF":
            np.testing.assert_array_equal(pixels(encoded(image, form)), np.asarray(image))
    np.testing.assert_array_equal(pixels(encoded(image), 1), np.asarray(image.convert("L")))


def test_jpegs_are_close():
    for image in (picture(3), colourful()):
        data = encoded(image, "JPEG", quality=95, subsampling=0)
        assert np.abs(pixels(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 3
        assert np.abs(pixels(data, 1).astype(int) - np.asarray(image.convert("L"))).mean() < 3


def test_cmyk_is_converted():
    image = Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).convert("CMYK")
    for form, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        np.testing.assert_allclose(pixels(encoded(image, form, **options))[4, 4], (200, 100, 50), atol=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(channels):
    values = np.array([[0, 128, 129, 257, 32768, 65279, 65407, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 1, 128, 254, 255, 255]]
    images = [encoded(Image.fromarray(values), form) for form in ("PNG", "TIFF")]
    images.append(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))  # Pillow's mode I
    images.append(b"P5 8 1 65535\n" + values.astype(">u2").tobytes())
    images.append(encoded(Image.fromarray(values.astype(">u2")), "TIFF"))
    for data in images:
        result = pixels(data, channels)
        np.testing.assert_array_equal(result if channels == 1 else result[..., 2], expected)


def test_other_ranges_are_stretched():
    for values, expected in [
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
        (np.float32([[-1, 0, 1]]), [0, 128, 255]),
        (np.float32([[np.nan, 10, 20]]), [0, 128, 255]),
        (np.float32([[7, 7, 7]]), [0, 0, 0]),
        (np.int32([[0, 100_000, 200_000]]), [0, 128, 255]),
    ]:
        assert pixels(encoded(Image.fromarray(values), "TIFF"), 1).tolist() == [expected]


def test_transparent_parts_become_white():
    red = np.zeros((2, 2, 4), np.uint8)
    red[...] = (255, 0, 0, 255)
    red[0, 0] = (9, 9, 9, 0)  # nobody has ever seen this colour
    red[0, 1, 3] = 51  # a fifth
    expected = [[[255, 255, 255], [255, 204, 204]], [[255, 0, 0], [255, 0, 0]]]
    for form in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(red), form)).tolist() == expected
    grey = Image.merge("LA", [Image.fromarray(np.array([[7, 8]], np.uint8)), Image.fromarray(np.uint8([[0, 255]]))])
    assert pixels(encoded(grey), 1).tolist() == [[255, 8]]
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.putdata([0, 1, 2])
    plain = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert pixels(encoded(palette)).tolist() == [plain]
    for form, transparency in (("PNG", 1), ("PNG", bytes([255, 0, 255])), ("GIF", 1)):
        data = encoded(palette, form, transparency=transparency)
        assert pixels(data).tolist() == [[plain[0], [255] * 3, plain[2]]]
        assert pixels(data, 1)[0, 1] == 255
    by_colour = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(1, 2, 3))
    assert pixels(by_colour).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_bilevel_images():
    bright = np.asarray(picture(0)) > 128
    image = Image.fromarray(bright)
    assert image.mode == "1"
    np.testing.assert_array_equal(pixels(encoded(image), 1), 255 * bright)


def test_the_first_frame_of_an_animation():
    frames = [picture(index) for index in (4, 5, 6)]
    for form in ("GIF", "PNG", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(pixels(data, 1), np.asarray(frames[0]))


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(colourful().crop((0, 0, 48, 24)), "JPEG", exif=exif)
    assert decode(data, 3).size == (48, 24)


def test_what_is_broken_has_a_reason():
    png, jpeg = encoded(colourful()), encoded(colourful(), "JPEG")
    damaged = bytearray(png)
    damaged[60:80] = bytes(20)
    for data, reason in [
        (b"", r"^empty \(0 bytes\)$"),
        (b"certainly no image", "^no image in a format that Pillow can read$"),
        (jpeg[:10], "(?i)truncated"),
        (jpeg[:-20], "^image file is truncated"),
        (png[: len(png) // 2], "truncated"),
        (png[:20], "."),
        (bytes(damaged), "."),
        (grey_png(8, 8), "."),
        (grey_png(0, 8), "."),
        (grey_png(20_000, 20_000), "400000000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "Pillow"),
    ]:
        for read in (lambda data: decode(data, 3), lambda data: decode_crop(data, 1, 8, central_box)):
            with pytest.raises(UnreadableImage, match=reason):
                read(data)


def test_damage_anywhere_is_an_unreadable_image_or_an_image():
    rng = np.random.default_rng(0)
    refused = 0
    image = colourful(16)
    for form, mode in [
        ("PNG", "RGBA"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("TIFF", "RGB"),
        ("WEBP", "RGB"),
        ("ICO", "RGB"),
    ]:
        whole = encoded(image.convert(mode), form)
        for _ in range(40):
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(len(data), size=2)] = rng.integers(256, size=2)
            if rng.random() < 0.3:
                data = data[: rng.integers(len(data))]
            try:
                assert decode_crop(data.tobytes(), 3, 8, central_box).shape == (8, 8, 3)
            except UnreadableImage:
                refused += 1
    assert 20 < refused < 200


def test_warnings_of_pillow_stay_inside(monkeypatch):
    data = encoded(picture(0, 16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # 256 pixels are then worth a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda _: pixels(data, 1), range(32)))
    assert all((image == np.asarray(picture(0, 16))).all() for image in images)


def test_random_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(500, 375, rng) for _ in range(4000)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 375).all()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / (500 * 375), width / height
    assert 0.079 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    # anywhere: margins on opposite sides are alike
    assert (boxes[:, 0] - (500 - boxes[:, 2])).mean() == pytest.approx(0, abs=6)
    assert (boxes[:, 1] - (375 - boxes[:, 3])).mean() == pytest.approx(0, abs=6)


def test_random_boxes_are_uniform_where_all_shapes_fit():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, rng, scale=(0.1, 0.5)) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 400**2, np.log(width / height)
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.2, 0.3, 0.4], atol=0.01)
    edge = np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(ratio, [0.25, 0.5, 0.75]), [-edge / 2, 0, edge / 2], atol=0.02)
    np.testing.assert_allclose(
        np.quantile(boxes[:, 0] / (400 - width), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03
    )
    assert np.abs(np.corrcoef(area, ratio)[0, 1]) < 0.05


def test_boxes_of_odd_images():
    rng = np.random.default_rng(0)
    assert random_box(1, 1, rng) == (0, 0, 1, 1)
    assert random_box(5, 3000, rng, scale=(0.5, 1.0)) == (0, 1496, 5, 1503)
    assert random_box(3000, 5, rng, scale=(0.5, 1.0)) == (1496, 0, 1503, 5)
    assert random_box(100, 1, rng, scale=(1.0, 1.0), ratio=(0.1, 0.2)) == (49, 0, 50, 1)
    assert central_box(200, 100) == (56.25, 6.25, 143.75, 93.75)
    for width, height in [(1, 1), (5, 300), (300, 5), (1, 2), (2, 3)]:
        image = Image.new("L", (width, height), 77)
        for data in (encoded(image), encoded(image, "JPEG", quality=100)):
            choices = [functools.partial(random_box, rng=np.random.default_rng(seed)) for seed in range(20)]
            for choose in (central_box, *choices):
                for channels in (1, 3):
                    result = decode_crop(data, channels, 16, choose)
                    assert result.shape == (16, 16, channels)
                    assert np.abs(result.astype(int) - 77).max() <= 1


def test_wrong_arguments():
    rng = np.random.default_rng(0)
    for call, message in [
        (lambda: decode(b"", 4), r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
        (lambda: random_box(8, 8, rng, scale=(0, 1)), "scale must be two positive numbers"),
        (lambda: random_box(8, 8, rng, ratio=(2, 1)), "ratio must be two positive numbers"),
        (lambda: central_box(8, 8, 1.5), r"ratio must be in \(0, 1\], got 1.5"),
        (lambda: central_crop(np.zeros((8, 8, 3)), 8), r"must be uint8 .*, got float64 \[8, 8, 3\]"),
        (lambda: central_crop(Image.new("CMYK", (8, 8)), 8), "must be L or RGB, got CMYK"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_crops(channels):
    image = np.random.default_rng(0).integers(256, size=(60, 80, channels), dtype=np.uint8)
    crop = random_resized_crop(image, 24, np.random.default_rng(1))
    assert crop.shape == (24, 24, channels)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, random_resized_crop(image, 24, np.random.default_rng(1)))
    assert (crop != random_resized_crop(image, 24, np.random.default_rng(2))).any()
    constant = np.full((60, 80, channels), 201, np.uint8)
    for seed in range(10):
        assert (random_resized_crop(constant, 24, np.random.default_rng(seed)) == 201).all()
    # the box that the same draws give, cut out by hand
    left, upper, right, lower = random_box(80, 60, np.random.default_rng(3), (1 / 16, 1 / 16), (1, 1))
    cut = random_resized_crop(image, right - left, np.random.default_rng(3), (1 / 16, 1 / 16), (1, 1))
    np.testing.assert_array_equal(cut, image[upper:lower, left:right][: right - left])


def test_flips():
    image = np.asarray(colourful(8))
    rng = np.random.default_rng(0)
    results = [random_flip(image, rng) for _ in range(1000)]
    mirrored = [(result == image[:, ::-1]).all() for result in results]
    assert all(flipped or (result == image).all() for flipped, result in zip(mirrored, results, strict=True))
    assert 450 < sum(mirrored) < 550


def test_central_crops():
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))[..., None]
    crop = central_crop(ramp, 50)[..., 0].astype(float)
    # columns 56.25 to 143.75, each pixel the mean of 1.75 columns around its centre
    expected = 56.25 + 1.75 * (np.arange(50) + 0.5) - 0.5
    np.testing.assert_allclose(crop, np.tile(expected, (50, 1)), atol=0.51)
    np.testing.assert_allclose(central_crop(ramp.transpose(1, 0, 2), 50)[..., 0], crop.T, atol=0)
    # as in two steps: shorter side to size / ratio, then the centre
    image = colourful(96).crop((0, 0, 96, 64))
    whole = np.asarray(image.resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(central_crop(image, 28).astype(int), whole[2:30, 10:38], atol=1)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_large_jpegs_are_decoded_at_lower_resolution(mode, channels, monkeypatch):
    image = colourful(512).convert(mode)
    data = encoded(image, "JPEG", quality=95, subsampling=0)
    decoded = []
    resize = Image.Image.resize

    def watched(image, *arguments):
        decoded.append(image.size)
        return resize(image, *arguments)

    for edge, side in [(512, 64), (511, 128), (256, 128), (255, 256), (128, 256), (127, 512), (50, 512)]:
        start = min(100, 512 - edge)
        box = (start, start, start + edge, start + edge)
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, "resize", watched)
            result = decode_crop(data, channels, 64, lambda width, height, box=box: box)
        assert decoded.pop() == (side, side)
        exact = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box)).reshape(64, 64, channels)
        difference = np.abs(result.astype(int) - exact)
        assert difference.mean() < 2
        assert difference.max() < 24


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".gif", ".mpo"} <= EXTENSIONS
    assert not {".txt", ".eps", ".pdf", ".h5", ".mpeg", ""} & EXTENSIONS
