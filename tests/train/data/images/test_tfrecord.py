"""The TFRecord format, against its definition."""

import struct

import numpy as np
from pictures import write_tfrecord

from train.data.images.tfrecord import Example, index_file, masked_crc32c


def test_checksums():
    # from RFC 3720, appendix B.4, masked
    for data, crc in [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)]:
        assert masked_crc32c(data) == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def test_an_example_in_protobufs_wire_format():
    """Written out by hand: a feature 'a' of bytes, 'b' of packed floats, 'c' of packed and 'd' of single int64."""

    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    def feature(key, kind, data):
        return field(1, field(1, key) + field(2, field(kind, data)))

    single = b"\x08" + b"\x05" + b"\x08" + b"\xff" * 9 + b"\x01"
    data = field(
        1,
        feature(b"a", 1, field(1, b"xy") + field(1, b""))
        + feature(b"b", 2, field(1, struct.pack("<2f", 0.5, -2)))
        + feature(b"c", 3, field(1, b"\x01\xac\x02"))
        + feature(b"d", 3, single),
    )
    features = Example.FromString(data).features.feature
    assert list(features["a"].bytes_list.value) == [b"xy", b""]
    assert list(features["b"].float_list.value) == [0.5, -2]
    assert list(features["c"].int64_list.value) == [1, 300]
    assert list(features["d"].int64_list.value) == [5, -1]


def test_indices(tmp_path):
    lengths = np.random.default_rng(0).integers(0, 3000, size=50)
    messages = [np.random.default_rng(length).bytes(length) for length in lengths]
    path = write_tfrecord(tmp_path / "file", messages)
    index = index_file(str(path))
    assert index.dtype == np.int64
    assert index[:, 1].tolist() == lengths.tolist()
    data = path.read_bytes()
    assert [data[start : start + length] for start, length in index] == messages
    assert index_file(str(write_tfrecord(tmp_path / "empty", []))).shape == (0, 2)
