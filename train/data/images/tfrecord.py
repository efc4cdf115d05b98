"""The TFRecord format without TensorFlow: where the records of a file are, and the message that they hold.

A file is a sequence of records: the length (8 bytes, little endian), its checksum (4), the data, its checksum (4). The
data is a ``tf.train.Example``, a protobuf message.
"""

import os
import struct
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

HEADER, FOOTER = 12, 4
"""Bytes of a record before and after its data."""


def _example_message() -> Any:
    """The class of ``tf.train.Example``.

    In a pool of its own, since TensorFlow, if it is loaded as well, has registered the same names.
    """
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def add_field(message: Any, name: str, number: int, kind: Any, repeated: bool = False) -> Any:
        field = message.field.add(name=name, number=number)
        field.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
        if isinstance(kind, str):
            field.type, field.type_name = Field.TYPE_MESSAGE, f".tensorflow.{kind}"
        else:
            field.type = kind
        return field

    lists = {"BytesList": Field.TYPE_BYTES, "FloatList": Field.TYPE_FLOAT, "Int64List": Field.TYPE_INT64}
    for name, kind in lists.items():
        add_field(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate({"bytes_list": "BytesList", "float_list": "FloatList"}.items(), start=1):
        add_field(feature, name, number, kind).oneof_index = 0
    add_field(feature, "int64_list", 3, "Int64List").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, "key", 1, Field.TYPE_STRING)
    add_field(entry, "value", 2, "Feature")
    add_field(features, "feature", 1, "Features.FeatureEntry", repeated=True)
    add_field(file.message_type.add(name="Example"), "features", 1, "Features")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = _example_message()


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files. In pure Python, so for a few bytes only."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_file(path: str) -> np.ndarray:
    """Finds the records of a file from their headers alone.

    Args:
        path: A TFRecord file.

    Returns:
        int64 [records, 2]: where the data starts in the file, and its length.

    Raises:
        ValueError: The file cannot be read, ends within a record, or holds something else; names file and offset.
    """
    found = []
    try:
        # Unbuffered: a buffer would read 8 KiB for 12 bytes.
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            offset = 0
            while offset < size:
                file.seek(offset)
                header = file.read(HEADER)
                if len(header) < HEADER:
                    raise ValueError(f"{path} ends within the header of the record at byte {offset}: copy it again")
                length, checksum = struct.unpack("<QI", header)
                if masked_crc32c(header[:8]) != checksum:
                    packed = (
                        "it is compressed: unpack it" if offset == 0 and header[:2] == b"\x1f\x8b" else "copy it again"
                    )
                    raise ValueError(
                        f"{path}: no TFRecord at byte {offset} (the checksum of the record's length is wrong); give"
                        f" TFRecord files only, or if this is one, {packed}"
                    )
                end = offset + HEADER + length + FOOTER
                if end > size:
                    raise ValueError(
                        f"{path} ends within the record at byte {offset}, {end - size:,} bytes early: copy it again"
                    )
                found.append((offset + HEADER, length))
                offset = end
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    return np.array(found, np.int64).reshape(-1, 2)
