"""Images in TFRecord files: both schemas, damage, and advice about files that are something else."""

import gzip
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import LABELS, encoded, picture, write_tfrecord

from train.data.images import records
from train.data.images.preprocessing import central_crop
from train.data.images.records import RecordReader, tfrecords
from train.data.images.tfrecord import Example, index_file


def png(number):
    return encoded(picture(number))


def example(**features):
    message = Example()
    for key, value in features.items():
        feature = message.features.feature[key.replace("__", "/")]
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[type(value)]
        kind.value.append(value)
    return message.SerializeToString()


def slim(index, **others):
    label = int(LABELS[index]) + 1
    return example(image__encoded=png(index), image__class__label=label, image__height=24, **others)


def tfds(index):
    return example(image=png(index), label=int(LABELS[index]), file_name=b"a.png")


def make(root, schema=slim, train=12, test=6):
    """Pictures 0 to ``train`` in two files to train on, and then ``test`` to evaluate on."""
    for shard in range(2):
        write_tfrecord(root / f"set-train-{shard:05}-of-00002", [schema(index) for index in range(shard, train, 2)])
    write_tfrecord(root / "set-validation-00000-of-00001", [schema(index) for index in range(train, train + test)])
    return f"{root}/*"


@pytest.mark.parametrize("schema", [slim, tfds])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_labels_and_images(schema, num_classes, tmp_path):
    data = tfrecords(make(tmp_path, schema), 16, 1, "crop-flip", num_classes=num_classes)
    assert data.name == f"tfrecord:{tmp_path}/*"
    assert data.classes == tuple("0123456789")
    assert data.image_shape == (16, 16, 1)
    np.testing.assert_allclose(data.mean, [114.495])
    for examples, expected in [(data.train, [*range(0, 12, 2), *range(1, 12, 2)]), (data.test, range(12, 18))]:
        batch = examples.load(np.arange(len(examples)), None)
        assert batch["label"].tolist() == LABELS[list(expected)].tolist()
        assert (batch["unreadable"] == -1).all()
        np.testing.assert_array_equal(batch["image"], [central_crop(picture(index), 16) for index in expected])
    second = 16 + len(slim(0) if schema is slim else tfds(0))
    assert data.train.describe(1) == f"{tmp_path}/set-train-00000-of-00002, record at byte {second}"
    assert data.train.describe(6) == f"{tmp_path}/set-train-00001-of-00002, record at byte 0"


def test_names_of_classes(tmp_path):
    write_tfrecord(
        tmp_path / "train", [slim(index, image__class__synset=b"n%d" % LABELS[index]) for index in (0, 1, 3, 11)]
    )
    write_tfrecord(tmp_path / "test", [slim(5, image__class__text=b"five", image__class__synset=b"n5")])
    assert tfrecords(f"{tmp_path}/*", 16, 1, "none").classes == ("n0", "n1", "2", "n3", "4", "five")
    assert tfrecords(f"{tmp_path}/*", 16, 1, "none", num_classes=7).classes == tuple("0123456")


def test_which_files_are_evaluated_on(tmp_path):
    write_tfrecord(tmp_path / "data-TRAIN", [tfds(0)])
    write_tfrecord(tmp_path / "data-test", [tfds(1)])
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "val").mkdir()
    assert tfrecords(f"{tmp_path}/*", 16, 1, "none", 10).test.describe(0).startswith(f"{tmp_path}/data-test")
    write_tfrecord(tmp_path / "val" / "data-val", [tfds(2)])
    assert tfrecords(f"{tmp_path}/*", 16, 1, "none", 10).test.describe(0).startswith(f"{tmp_path}/data-test")
    assert tfrecords(f"{tmp_path}/**", 16, 1, "none", 10).test.describe(0).startswith(f"{tmp_path}/val/data-val")


def test_damaged_records(tmp_path):
    truncated = example(image=png(1)[:-40], label=1)
    damaged = [
        (truncated, "truncated|broken"),
        (b"\xff\xff no protobuf", "no tf.train.Example"),
        (example(image=b"", label=1), r"empty \(0 bytes\)"),
        (example(image=png(1), label=10), r"label 10 is not in \[0, 9\]"),
        (example(image=png(1), label=-1), r"label -1 is not in \[0, 9\]"),
        (example(image__encoded=png(1), image__class__label=0), r"label 0 is not in \[1, 10\]"),
        (example(image__encoded=png(1), image__class__label=11), r"label 11 is not in \[1, 10\]"),
        (example(image=png(1), label=b"1"), "expected one value in the int64_list of 'label', got 0"),
        (example(image=1, label=1), "expected one value in the bytes_list of 'image', got 0"),
        (example(picture=png(1), label=1), "but the keys are 'label', 'picture'"),
        (example(), "but the keys are none"),
    ]
    pattern = make(tmp_path)
    path = write_tfrecord(tmp_path / "set-train-00000-of-00002", [slim(0), *(data for data, _ in damaged), slim(7)])
    examples = tfrecords(pattern, 16, 1, "flip", num_classes=10).train
    wrong = list(range(1, 1 + len(damaged)))
    batch = examples.load(np.arange(len(damaged) + 2), None)
    assert batch["unreadable"].tolist() == [-1, *wrong, -1]
    assert batch["label"].tolist() == [0] + [0] * len(wrong) + [7]
    for index, (_, reason) in zip(wrong, damaged, strict=True):
        with pytest.raises(AssertionError, match=rf"{path}, record at byte \d+: .*({reason})"):
            raise AssertionError(examples.describe(index))
    batch = examples.load(np.array([3]), [np.random.default_rng(0)])
    assert batch["unreadable"].tolist() == [3]
    assert batch["label"].tolist() == [7]
    path.write_bytes(path.read_bytes()[:50])
    assert "there: the file has changed" in examples.describe(0)
    path.unlink()
    assert examples.describe(0).endswith("record at byte 0: No such file or directory")


def test_threads_and_pickles_load_the_same(tmp_path):
    pattern = make(tmp_path, tfds, train=30)
    write_tfrecord(tmp_path / "more-train", [tfds(40), b"broken", tfds(41)])
    examples = tfrecords(pattern, 16, 3, "crop-flip", num_classes=10).train
    indices = np.arange(len(examples))

    def once(examples):
        return examples.load(indices, [np.random.default_rng(index) for index in indices])

    expected = once(examples)
    assert (expected["unreadable"] >= 0).sum() == 1
    copy = pickle.loads(pickle.dumps(examples))
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(once, [examples, copy] * 8):
            for name, array in expected.items():
                np.testing.assert_array_equal(batch[name], array)


def test_damaged_files_are_named(tmp_path):
    pattern = make(tmp_path)
    path = tmp_path / "set-train-00001-of-00002"
    whole = path.read_bytes()
    second = 16 + len(slim(1))
    for data, message in [
        (whole[:-1], rf"{path} ends within the record at byte \d+, 1 bytes early: copy it again"),
        (whole[: second + 5], rf"{path} ends within the header of the record at byte {second}: copy it again"),
        (whole[:second] + bytes(100), rf"{path}: no TFRecord at byte {second} \(the checksum"),
        (gzip.compress(whole), rf"{path}: no TFRecord at byte 0 .* it is compressed: unpack it"),
        (b"<html>404 not found</html>", rf"{path}: no TFRecord at byte 0 .* give TFRecord files only"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            tfrecords(pattern, 16, 1, "none", num_classes=10)
    with pytest.raises(ValueError, match="none cannot be read: No such file or directory"):
        index_file(str(tmp_path / "none"))


def test_a_bar_shows_how_long_it_takes(tmp_path, monkeypatch, capsys):
    pattern = make(tmp_path)
    tfrecords(pattern, 16, 1, "none")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(records, "wait", lambda futures, timeout: ((), futures))
    tfrecords(pattern, 16, 1, "none")
    assert "Looking for records" in capsys.readouterr().out


def check_refused(pattern, message, num_classes=None):
    with pytest.raises(ValueError, match=message):
        tfrecords(str(pattern), 16, 1, "none", num_classes=num_classes)


def test_other_files_are_refused_with_advice(tmp_path):
    check_refused(tmp_path / "*.tfrecord", r"expected TFRecord files, but no file matches .*\*.tfrecord$")
    check_refused(tmp_path, rf"it is a folder: give {tmp_path}/\*")
    write_tfrecord(tmp_path / "part-0", [tfds(0)])
    check_refused(tmp_path / "*", r"none of the 1 files that match .* has 'train' in its name \(the first is part-0\)")
    write_tfrecord(tmp_path / "train", [tfds(0)])
    check_refused(tmp_path / "*", "none of the 2 files .* has 'val' or 'test' in its name")
    write_tfrecord(tmp_path / "val", [])
    check_refused(tmp_path / "*", "val and the other files of its split hold no records")
    write_tfrecord(tmp_path / "val", [example(jpg=png(0), cls=1)])
    check_refused(
        tmp_path / "*",
        "val, record at byte 0: expected 'image/encoded' with 'image/class/label' or 'image' with 'label', "
        "but the keys are 'cls', 'jpg'",
    )
    write_tfrecord(tmp_path / "val", [b"no protobuf"] * 3)
    check_refused(tmp_path / "*", "none of the 3 tried can be decoded; first: .*val, record at byte 0: no tf.train.Ex")
    write_tfrecord(tmp_path / "train", [b"no protobuf"] * 3)
    check_refused(tmp_path / "*", "no record has a label that can be read; first: .*train, record at byte 0; check")


def test_numbers_of_classes(tmp_path, monkeypatch):
    pattern = make(tmp_path)
    check_refused(pattern, "--num-classes must be at least 1, got 0", num_classes=0)
    monkeypatch.setattr(records, "MAX_LABELS_TO_READ", 18)
    assert len(tfrecords(pattern, 16, 1, "none").classes) == 10
    assert len(tfrecords(pattern, 16, 1, "none", num_classes=11).classes) == 11
    monkeypatch.setattr(records, "MAX_LABELS_TO_READ", 17)
    check_refused(pattern, r"--num-classes is needed: more than 17 records .* \(ImageNet has 1000 classes\)")
    assert len(tfrecords(pattern, 16, 1, "none", num_classes=10).classes) == 10
    monkeypatch.undo()
    from_zero = [example(image__encoded=png(index), image__class__label=int(LABELS[index])) for index in range(5)]
    write_tfrecord(tmp_path / "a-train", from_zero)
    check_refused(pattern, "a-train, record at byte 0: the label 0 is out of range. Labels .* count from 1")


def test_readers_take_all_labels_without_a_number_of_classes(tmp_path):
    path = str(write_tfrecord(tmp_path / "file", [example(image=b"x", label=1_000_000)]))
    reader = RecordReader([path], [index_file(path)], None)
    assert reader.read(0) == (b"x", 1_000_000)
    assert len(reader) == 1
