"""The hand-written codec against Google's protobuf, and the schema itself."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oarlock.api import proto
from oarlock.api.etcd import codec
from oarlock.machines.kv.commands import DeleteResult, PutResult, RangeResult, TxnResult

Put = proto.message("etcdserverpb.PutRequest")
Range = proto.message("etcdserverpb.RangeRequest")
KeyValue = proto.message("mvccpb.KeyValue")
Header = proto.message("etcdserverpb.ResponseHeader")
ROOT = Path(__file__).parents[3]
SIZES = (0, 1, 2, 127, 128, 129, 300, 16383, 16384, 16385, 300_000)


def agrees_with_protobuf(data: bytes) -> None:
    """What the fast decoders recognise is what protobuf reads; anything else they must leave alone."""
    put = codec.decode_put(data)
    if put is not None:
        assert Put.FromString(data) == Put(key=put[0], value=put[1])
    key = codec.decode_get(data)
    if key is not None:
        assert Range.FromString(data) == Range(key=key)


@pytest.mark.parametrize("key", SIZES[1:-1])
@pytest.mark.parametrize("value", SIZES)
def test_decode_put(key: int, value: int) -> None:
    data = Put(key=b"k" * key, value=b"v" * value).SerializeToString()
    agrees_with_protobuf(data)
    if value and key < 16384:
        assert codec.decode_put(data) == (b"k" * key, b"v" * value), "the fast path was not taken"


def test_decode_get() -> None:
    for size in (1, 16, 127):
        assert codec.decode_get(Range(key=b"k" * size).SerializeToString()) == b"k" * size
    for other in (Range(key=b"k" * 128), Range(key=b"k", serializable=True), Range(), Range(key=b"a", range_end=b"b")):
        assert codec.decode_get(other.SerializeToString()) is None


def test_every_truncation_and_every_changed_byte() -> None:
    for data in (
        Put(key=b"key", value=b"v" * 200).SerializeToString(),
        Put(key=b"k" * 130, value=b"v").SerializeToString(),
        Range(key=b"key").SerializeToString(),
    ):
        for cut in range(len(data)):
            assert codec.decode_put(data[:cut]) is None or Put.FromString(data[:cut]) is not None
            agrees_with_protobuf(data[:cut])
        for at in range(min(len(data), 20)):
            for byte in range(256):
                changed = data[:at] + bytes((byte,)) + data[at + 1 :]
                agrees_with_protobuf(changed)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x01a\x12\x01b\x12\x01c",  # repeated value: the last wins
        b"\x0a\x01a\x0a\x01z\x12\x01b",  # repeated key
        b"\x12\x01b\x0a\x01a",  # the other order
        b"\x0a\x01a\x12\x01b\x98\x06\x01",  # an unknown field
        b"\x0a\x01a\x12\x01b\x18\x07",  # a lease
        b"\x0a\x81\x00a\x12\x01b",  # a length in more bytes than it needs
        b"\x0a\x01a\x12\x81\x80\x00b",
        b"\x08\x01\x12\x01b",  # a wrong wire type
    ],
)
def test_unusual_encodings_are_left_to_protobuf(data: bytes) -> None:
    agrees_with_protobuf(data)


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_bytes(data: bytes) -> None:
    agrees_with_protobuf(data)
    agrees_with_protobuf(b"\x0a" + data)


@given(st.integers(-(2**63), 2**64 - 1))
def test_varint(n: int) -> None:
    field = Header(cluster_id=n) if n >= 0 else Header(revision=n)
    encoded = field.SerializeToString()
    assert encoded[1:] == (codec.varint(n) if n else b"")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1))
def test_header(cluster: int, member: int, revision: int, term: int) -> None:
    encoder = codec.HeaderEncoder(cluster, member)
    for _ in range(2):
        encoded = encoder.encode(revision, term)
        response = proto.message("etcdserverpb.PutResponse").FromString(encoded)
        assert response.header == Header(cluster_id=cluster, member_id=member, revision=revision, raft_term=term)


def test_responses() -> None:
    chance = random.Random(1)

    def kv() -> bytes:
        data: bytes = KeyValue(
            key=chance.randbytes(chance.randrange(1, 200)),
            value=chance.randbytes(chance.choice((0, 5, 300))),
            create_revision=3,
            mod_revision=7,
            version=2,
        ).SerializeToString()
        return data

    def result(depth: int) -> Any:
        kinds = [
            lambda: PutResult(chance.randrange(1, 2**40), chance.choice((None, kv()))),
            lambda: DeleteResult(chance.randrange(1, 300), 2, [kv() for _ in range(chance.randrange(3))]),
            lambda: RangeResult(
                9, [kv() for _ in range(chance.randrange(4))], chance.random() < 0.5, chance.randrange(300)
            ),
        ]
        if depth < 3:
            kinds.append(
                lambda: TxnResult(9, chance.random() < 0.5, [result(depth + 1) for _ in range(chance.randrange(4))])
            )
        return chance.choice(kinds)()

    def fill(message: Any, made: Any) -> Any:
        match made:
            case PutResult():
                if made.prev_kv is not None:
                    message.prev_kv.MergeFromString(made.prev_kv)
            case DeleteResult():
                message.deleted = made.deleted
                message.prev_kvs.extend(KeyValue.FromString(k) for k in made.prev_kvs)
            case RangeResult():
                message.kvs.extend(KeyValue.FromString(k) for k in made.kvs)
                message.more, message.count = made.more, made.count
            case _:
                message.succeeded = made.succeeded
                for response in made.responses:
                    op = message.responses.add()
                    name = {PutResult: "put", DeleteResult: "delete_range", RangeResult: "range", TxnResult: "txn"}[
                        type(response)
                    ]
                    inner = getattr(op, f"response_{name}")
                    inner.header.SetInParent()
                    if name != "txn":
                        inner.header.revision = response.revision
                    fill(inner, response)
        return message

    header = codec.HeaderEncoder(1, 2).encode(3, 4)
    for _ in range(300):
        made = result(0)
        kind, encode = {
            PutResult: ("PutResponse", codec.put_response),
            DeleteResult: ("DeleteRangeResponse", codec.delete_response),
            RangeResult: ("RangeResponse", codec.range_response),
            TxnResult: ("TxnResponse", codec.txn_response),
        }[type(made)]
        expected = proto.message(f"etcdserverpb.{kind}")()
        expected.header.MergeFrom(Header(cluster_id=1, member_id=2, revision=3, raft_term=4))
        fill(expected, made)
        assert encode(header, made) == expected.SerializeToString()  # type: ignore[operator]
    one = kv()
    assert codec.get_response(header, one) == codec.range_response(header, RangeResult(3, [one], False, 1))
    assert codec.get_response(header, None) == codec.range_response(header, RangeResult(3, [], False, 0))


# -- the schema


def test_the_compiled_schema_is_up_to_date() -> None:
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("build_protos", ROOT / "tools" / "build_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.OUTPUT.read_bytes() == module.compile_schema(), "run tools/build_protos.py"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("etcdserverpb.ResponseHeader", "cluster_id 1 member_id 2 revision 3 raft_term 4"),
        ("mvccpb.KeyValue", "key 1 create_revision 2 mod_revision 3 version 4 value 5 lease 6"),
        ("mvccpb.Event", "type 1 kv 2 prev_kv 3"),
        (
            "etcdserverpb.RangeRequest",
            (
                "key 1 range_end 2 limit 3 revision 4 sort_order 5 sort_target 6 serializable 7 keys_only 8 "
                "count_only 9 min_mod_revision 10 max_mod_revision 11 min_create_revision 12 max_create_revision 13"
            ),
        ),
        (
            "etcdserverpb.Compare",
            "result 1 target 2 key 3 version 4 create_revision 5 mod_revision 6 value 7 lease 8 range_end 64",
        ),
        (
            "etcdserverpb.WatchCreateRequest",
            "key 1 range_end 2 start_revision 3 progress_notify 4 filters 5 prev_kv 6 watch_id 7 fragment 8",
        ),
        (
            "etcdserverpb.WatchResponse",
            "header 1 watch_id 2 created 3 canceled 4 compact_revision 5 cancel_reason 6 fragment 7 events 11",
        ),
        ("etcdserverpb.LeaseGrantRequest", "TTL 1 ID 2"),
        (
            "etcdserverpb.StatusResponse",
            (
                "header 1 version 2 dbSize 3 leader 4 raftIndex 5 raftTerm 6 raftAppliedIndex 7 errors 8 "
                "dbSizeInUse 9 isLearner 10 storageVersion 11 dbSizeQuota 12 downgradeInfo 13"
            ),
        ),
        ("etcdserverpb.HashKVResponse", "header 1 hash 2 compact_revision 3 hash_revision 4"),
        ("etcdserverpb.SnapshotResponse", "header 1 remaining_bytes 2 blob 3 version 4"),
        ("etcdserverpb.Member", "ID 1 name 2 peerURLs 3 clientURLs 4 isLearner 5"),
        ("etcdserverpb.AuthStatusResponse", "header 1 enabled 2 authRevision 3"),
        ("etcdserverpb.AuthUserAddRequest", "name 1 password 2 options 3 hashedPassword 4"),
        ("v3lockpb.LockRequest", "name 1 lease 2"),
        ("v3electionpb.LeaderKey", "name 1 key 2 rev 3 lease 4"),
    ],
)
def test_field_numbers(message: str, fields: str) -> None:
    found = proto.pool.FindMessageTypeByName(message).fields
    assert " ".join(f"{f.name} {f.number}" for f in sorted(found, key=lambda f: f.number)) == fields


def test_all_services_are_there() -> None:
    services = proto.services()
    assert {name: len(methods) for name, methods in services.items()} == {
        "etcdserverpb.KV": 5,
        "etcdserverpb.Watch": 1,
        "etcdserverpb.Lease": 5,
        "etcdserverpb.Cluster": 5,
        "etcdserverpb.Maintenance": 8,
        "etcdserverpb.Auth": 17,
        "v3lockpb.Lock": 2,
        "v3electionpb.Election": 5,
        "grpc.health.v1.Health": 2,
    }
    assert services["etcdserverpb.Watch"]["Watch"] == (True, True)
    assert services["etcdserverpb.Maintenance"]["Snapshot"] == (False, True)


def test_nothing_is_registered_globally() -> None:
    code = (
        "import oarlock.api.proto as p; p.message('etcdserverpb.PutRequest');"
        "from google.protobuf import descriptor_pool as d\n"
        "try: d.Default().FindMessageTypeByName('etcdserverpb.PutRequest')\n"
        "except KeyError: print('private')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.stdout.strip() == "private"
