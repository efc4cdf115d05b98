"""Data sets by name: what is opened, what is refused, and that nothing is imported before it is needed."""

import sys

import pytest
from pictures import encoded, picture
from processes import run_all

from train.data.images import catalog


def test_names_have_their_data_sets(tmp_path):
    digits = catalog.load("digits", augment="flip")
    assert (digits.name, digits.train.augment, digits.chunk) == ("digits", "flip", None)
    for split in ("train", "val"):
        (tmp_path / split / "one").mkdir(parents=True)
        (tmp_path / split / "one" / "a.png").write_bytes(encoded(picture(1)))
    files = catalog.load(f"imagefolder:{tmp_path}", image_size=8, channels=1)
    assert (files.image_shape, files.train.augment, files.chunk) == ((8, 8, 1), "crop-flip", 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cats", {}, r"--dataset must be digits, fashion-mnist\[:DIR\], imagefolder:DIR or tfrecord:GLOB, got 'cats'"),
        ("digits:here", {}, "got 'digits:here'"),
        ("imagefolder", {}, "--dataset imagefolder needs to know where: give digits"),
        ("tfrecord:", {}, "--dataset tfrecord needs to know where: give digits"),
        ("imagefolder:/nowhere/at/all", {}, "/nowhere/at/all does not exist"),
        ("tfrecord:/nowhere/*", {}, r"no file matches /nowhere/\*"),
        ("fashion-mnist:/nowhere", {}, "`python -m train.fetch fashion-mnist --folder /nowhere`"),
        ("imagefolder:x", {"channels": 2}, r"--channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ("tfrecord:x", {"image_size": 0}, "--image-size must be at least 1, got 0"),
    ],
)
def test_other_names_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.load(name, **options)


def test_nothing_is_imported_before_it_is_needed():
    heavy = {"PIL", "absl", "flax", "google.protobuf", "grain", "jax", "orbax", "rich", "sklearn", "tyro"}
    code = (
        "import sys; import train.data.images.catalog, train.data.loading, train.data.order; "
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=100)
    assert (status, output.strip()) == (0, "[]")
