"""The Maintenance service over a single-member backend: alarms, quota, hashes, snapshots, versions."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from tests.support.h2_client import Answer, H2Client
from tests.support.single_backend import MEMBER_ID

from oarlock import errors as raft_errors
from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.machines.kv.backup import BackupFile
from oarlock.machines.kv.machine import KvMachine

_SERVICES = {name: service for service, names in proto.services().items() for name in names}
NOSPACE, CORRUPT = 1, 2


def m(name: str, **fields: Any) -> Any:
    return proto.message(f"etcdserverpb.{name}")(**fields)


async def ask(client: H2Client, rpc: str, **fields: Any) -> Answer:
    name = {"Compact": "Compaction"}.get(rpc, rpc)
    return await client.unary(f"/{_SERVICES[rpc]}/{rpc}", m(f"{name}Request", **fields).SerializeToString())


async def get(client: H2Client, rpc: str, **fields: Any) -> Any:
    answer = await ask(client, rpc, **fields)
    assert (answer.code, answer.text) == (0, "")
    name = {"Compact": "Compaction"}.get(rpc, rpc)
    return m(f"{name}Response").FromString(answer.messages[0])


async def refused(client: H2Client, rpc: str, **fields: Any) -> str:
    answer = await ask(client, rpc, **fields)
    assert answer.code != 0, f"{rpc} {fields} was not refused"
    return answer.text


def txn(*puts: bytes, deletes: bytes = b"") -> dict[str, Any]:
    request = m("TxnRequest")
    for key in puts:
        request.failure.add().request_put.key = key
    if deletes:
        request.success.add().request_delete_range.key = deletes
    return {"success": request.success, "failure": request.failure}


async def alarms(client: H2Client, **fields: Any) -> list[tuple[int, int]]:
    return [(alarm.memberID, alarm.alarm) for alarm in (await get(client, "Alarm", **fields)).alarms]


def test_alarms_are_raised_shown_and_disarmed_as_in_etcd(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            assert await alarms(client) == []
            assert await alarms(client, action=1, memberID=5, alarm=NOSPACE) == [(5, NOSPACE)]
            assert await alarms(client, action=1, memberID=5, alarm=NOSPACE) == [(5, NOSPACE)], "raised twice"
            assert await alarms(client, action=1, memberID=3, alarm=CORRUPT) == [(3, CORRUPT)]
            assert await alarms(client, action=1) == []
            assert await alarms(client) == [(3, CORRUPT), (5, NOSPACE)]
            assert await alarms(client, memberID=77, alarm=NOSPACE) == [(5, NOSPACE)]
            status = await get(client, "Status")
            assert list(status.errors) == ["memberID:3 alarm:CORRUPT ", "memberID:5 alarm:NOSPACE "]
            assert await alarms(client, action=2, memberID=3, alarm=CORRUPT) == [(3, CORRUPT)]
            assert await alarms(client, action=2, memberID=3, alarm=CORRUPT) == [], "disarmed twice"
            assert await alarms(client, action=2, memberID=4, alarm=0) == []
            assert not [error for error in (await get(client, "Status")).errors if "CORRUPT" in error]

    run(work())


def test_without_space_only_what_takes_some_is_refused(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "Put", key=b"k", value=b"v")
            await get(client, "Alarm", action=1, memberID=1, alarm=NOSPACE)
            text = "etcdserver: mvcc: database space exceeded"
            nested = m("TxnRequest")
            nested.success.add().request_txn.failure.add().request_put.key = b"x"
            for rpc, fields in (
                ("Put", {"key": b"x"}),
                ("Txn", txn(b"x")),
                ("Txn", {"success": nested.success}),
                ("LeaseGrant", {"TTL": 60}),
            ):
                assert await refused(client, rpc, **fields) == text, fields
            assert (await get(client, "Range", key=b"k")).count == 1
            assert (await get(client, "Txn", **txn(deletes=b"nothing"))).succeeded
            assert (await get(client, "DeleteRange", key=b"k")).deleted == 1
            await get(client, "Compact", revision=3)
            await get(client, "Alarm", action=2, memberID=1, alarm=NOSPACE)
            await get(client, "Put", key=b"x")

    run(work())


def test_a_corrupt_cluster_takes_no_changes_and_keeps_its_leases(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "Put", key=b"k", value=b"v")
            await get(client, "LeaseGrant", TTL=60, ID=7)
            await get(client, "Alarm", action=1, memberID=1, alarm=CORRUPT)
            for rpc, fields in (
                ("Put", {"key": b"x"}),
                ("DeleteRange", {"key": b"x"}),
                ("Txn", txn(b"x")),
                ("Compact", {"revision": 1}),
                ("LeaseGrant", {"TTL": 60}),
                ("LeaseRevoke", {"ID": 7}),
            ):
                answer = await ask(client, rpc, **fields)
                assert (answer.code, answer.text) == (Code.DATA_LOSS, "etcdserver: corrupt cluster"), rpc
            assert (await get(client, "Range", key=b"k")).count == 1

    run(work())


def test_the_quota_raises_the_alarm_and_freed_space_lets_writes_in_again(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", quota_bytes=300_000) as served, await H2Client.connect(served.url) as client:
            written = 0
            while (await ask(client, "Put", key=b"k", value=b"x" * 10_000)).code == 0:
                written += 1
                assert written < 40
            assert written > 10
            assert await alarms(client) == [(MEMBER_ID, NOSPACE)]
            assert await refused(client, "Put", key=b"small") == "etcdserver: mvcc: database space exceeded"
            assert await refused(client, "LeaseGrant", TTL=9) == "etcdserver: mvcc: database space exceeded"
            revision = (await get(client, "Range", key=b"k")).header.revision
            await get(client, "Compact", revision=revision)
            while served.backend.machine.compact_some(64):
                pass
            assert await refused(client, "Put", key=b"small"), "the alarm stays until it is disarmed"
            await get(client, "Alarm", action=2, memberID=MEMBER_ID, alarm=NOSPACE)
            await get(client, "Put", key=b"small")
            status = await get(client, "Status")
            assert status.dbSizeQuota == 300_000 and not status.errors

    run(work())


def test_space_that_others_took_raises_our_alarm_too(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", quota_bytes=50_000) as served, await H2Client.connect(served.url) as client:
            machine: KvMachine = served.backend.machine
            from oarlock.machines.kv.commands import Put, encode

            served.backend.propose(encode(Put(b"k", b"x" * 60_000)), lambda result: None)
            await served.until(lambda: machine.revision == 2, "the write")
            served.server.service.refresh()
            await served.until(lambda: machine.alarms.is_active(MEMBER_ID, NOSPACE), "the alarm")
            assert await refused(client, "Put", key=b"k")

    run(work())


def test_a_member_in_quarantine_shows_nothing(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "Put", key=b"k", value=b"v")
            await get(client, "LeaseGrant", TTL=60, ID=7)
            streams = [
                client.start("/etcdserverpb.Watch/Watch"),
                client.start("/etcdserverpb.Lease/LeaseKeepAlive"),
            ]
            await served.until(lambda: served.server.open_streams == 2, "the streams")
            served.backend.quarantined = True
            served.server.service.refresh()
            for stream_id in streams:
                answer = await client.finish(stream_id)
                assert (answer.code, answer.text) == (Code.DATA_LOSS, "etcdserver: corrupt cluster")
            for rpc, fields in (
                ("Put", {"key": b"x"}),
                ("Range", {"key": b"k"}),
                ("Range", {"key": b"k", "serializable": True}),
                ("Range", {"key": b"k", "range_end": b"z"}),
                ("DeleteRange", {"key": b"x"}),
                ("Txn", txn(b"x")),
                ("Txn", {}),
                ("Compact", {"revision": 1}),
                ("LeaseGrant", {"TTL": 60}),
                ("LeaseRevoke", {"ID": 7}),
                ("LeaseTimeToLive", {"ID": 7}),
                ("LeaseLeases", {}),
            ):
                assert await refused(client, rpc, **fields) == "etcdserver: corrupt cluster", (rpc, fields)
            alive = m("LeaseKeepAliveRequest", ID=7).SerializeToString()
            answer = await client.stream("/etcdserverpb.Lease/LeaseKeepAlive", [alive])
            assert answer.text == "etcdserver: corrupt cluster"
            answer = await client.stream("/etcdserverpb.Maintenance/Snapshot", [b""])
            assert answer.text == "etcdserver: corrupt cluster"
            await get(client, "Status")
            await get(client, "HashKV")
            assert await alarms(client) == []

    run(work())


def test_hash_kv_gives_the_numbers_of_etcd(run: Any, serving: Any) -> None:
    """What etcd 3.5.1 answered after the same requests."""

    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "Put", key=b"a", value=b"1")
            await get(client, "Put", key=b"b", value=b"2")
            await get(client, "Put", key=b"x", value=b"y")
            one = m("TxnRequest")
            one.success.add().request_put.key = b"x"
            await get(client, "Txn", success=one.success)
            await get(client, "Txn", **txn(deletes=b"x"))
            await get(client, "Put", key=b"x", value=b"y")
            for revision, number in (
                (0, 585472868),
                (7, 585472868),
                (2, 2587454935),
                (1, 1084519789),
                (-1, 1084519789),
            ):
                answer = await get(client, "HashKV", revision=revision)
                assert (answer.hash, answer.compact_revision, answer.header.revision) == (number, -1, 7), revision
            assert "future revision" in await refused(client, "HashKV", revision=99)
            await get(client, "Compact", revision=3)
            answer = await get(client, "HashKV")
            assert (answer.hash, answer.compact_revision, answer.hash_revision) == (585472868, 3, 7)
            for revision in (2, 3):
                assert "has been compacted" in await refused(client, "HashKV", revision=revision)

    run(work())


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_a_snapshot_is_the_capture_and_its_hash(run: Any, serving: Any, engine: str, size: int) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for number in range(3):
                await get(client, "Put", key=b"%d" % number, value=b"v" * (size // 3))
            answer = await client.stream("/etcdserverpb.Maintenance/Snapshot", [b""])
            assert answer.code == 0
            parts = [m("SnapshotResponse").FromString(raw) for raw in answer.messages]
            data = b"".join(part.blob for part in parts[:-1])
            assert max(len(part.blob) for part in parts) <= 32 * 1024
            left = len(data)
            for part in parts[:-1]:
                left -= len(part.blob)
                assert (part.remaining_bytes, part.version) == (left, "3.5.0")
            assert parts[-1].blob == hashlib.sha256(data).digest() and parts[-1].remaining_bytes == 0
            assert len(data) % 512 == 0, "etcdctl would miss the hash"
            backup = BackupFile(io.BytesIO(data + parts[-1].blob), "snapshot")
            assert b"".join(backup.chunks()) == b"".join(served.backend.machine.capture().chunks())
            assert (backup.header.revision, backup.header.member_id, backup.header.term) == (4, MEMBER_ID, 2)
            served.backend.fail_with = raft_errors.Stopped("x")
            answer = await client.stream("/etcdserverpb.Maintenance/Snapshot", [b""])
            assert answer.text == "etcdserver: server stopped"

    run(work())


def test_versions_and_defragmentation(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            for version in ("3.4.0", "3.4", "3.3.0", "3.6.0"):
                for action in (0, 1):
                    text = await refused(client, "Downgrade", action=action, version=version)
                    assert text == "etcdserver: invalid downgrade target version"
            assert await refused(client, "Downgrade", version="x") == (
                "etcdserver: wrong downgrade target version format"
            )
            assert await refused(client, "Downgrade", action=2) == "etcdserver: no inflight downgrade job"
            answer = await ask(client, "Defragment")
            assert (answer.code, answer.messages) == (0, [b""])
            first = (await get(client, "Hash")).hash
            await get(client, "Put", key=b"k")
            assert (await get(client, "Hash")).hash != first

    run(work())
