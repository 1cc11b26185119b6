"""The hand-written forms against Google's protobuf library."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given
from hypothesis import strategies as st

from oarlock.machines.kv.encoding import (
    INT64_MAX,
    INT64_MIN,
    decode_key_value,
    encode_key_value,
    key_of,
    mod_revision_of,
    read_varint,
    varint,
    without_value,
)


def key_value_class():  # type: ignore[no-untyped-def]
    file = descriptor_pb2.FileDescriptorProto(name="kv_for_test.proto", package="kv_for_test", syntax="proto3")
    message = file.message_type.add(name="KeyValue")
    fields = ["key", "create_revision", "mod_revision", "version", "value", "lease"]
    for number, name in enumerate(fields, 1):
        kind = descriptor_pb2.FieldDescriptorProto
        message.field.add(
            name=name,
            number=number,
            label=kind.LABEL_OPTIONAL,
            type=kind.TYPE_BYTES if name in ("key", "value") else kind.TYPE_INT64,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kv_for_test.KeyValue"))


KeyValueMessage = key_value_class()
edges = [
    0,
    1,
    127,
    128,
    16383,
    16384,
    (1 << 21) - 1,
    1 << 21,
    (1 << 28) - 1,
    1 << 28,
    (1 << 35) - 1,
    1 << 42,
    INT64_MAX,
]
numbers = st.sampled_from(edges) | st.integers(0, INT64_MAX)
signed = numbers | st.integers(INT64_MIN, INT64_MAX)
sizes = st.sampled_from([0, 1, 127, 128, 300, 16383, 16384]).map(lambda n: b"x" * n)
blobs = st.binary(max_size=40) | sizes


@given(blobs, signed, signed, signed, blobs, signed)
@example(b"k", 1, 1, 1, b"", -1)
def test_a_key_value_is_what_protobuf_writes(
    key: bytes, create: int, mod: int, version: int, value: bytes, lease: int
) -> None:
    ours = encode_key_value(key, create, mod, version, value, lease)
    theirs = KeyValueMessage(
        key=key, create_revision=create, mod_revision=mod, version=version, value=value, lease=lease
    )
    assert ours == theirs.SerializeToString()
    assert decode_key_value(ours) == (key, create, mod, version, value, lease)


@given(blobs.filter(bool), numbers.filter(bool), numbers.filter(bool), numbers.filter(bool), blobs, signed)
def test_the_shortcuts_agree_with_the_whole(
    key: bytes, create: int, mod: int, version: int, value: bytes, lease: int
) -> None:
    record = encode_key_value(key, create, mod, version, value, lease)
    assert key_of(record) == key
    assert mod_revision_of(record) == mod
    assert without_value(record) == encode_key_value(key, create, mod, version, b"", lease)


@given(numbers)
def test_varints_come_back(number: int) -> None:
    assert read_varint(b"??" + varint(number) + b"\xff", 2) == (number, 2 + len(varint(number)))


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_read_as_protobuf_reads_them(data: bytes) -> None:
    try:
        kv = decode_key_value(data)
    except ValueError:
        return
    if len(data) < 10:  # overlong numbers differ: protobuf cuts them to 64 bits
        assert KeyValueMessage.FromString(data) == KeyValueMessage(**kv._asdict())


@pytest.mark.parametrize("cut", range(22))
def test_a_cut_record_is_refused(cut: int) -> None:
    record = encode_key_value(b"key", 300, 400, 2, b"value", 9)
    assert len(record) == 22
    if cut in (0, 5, 8, 11, 13, 20):  # between two fields
        decode_key_value(record[:cut])
    else:
        with pytest.raises(ValueError, match="cut off"):
            decode_key_value(record[:cut])
