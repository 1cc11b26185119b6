"""`etcdctl alarm`, `endpoint status`, `endpoint hashkv`, `defrag`, `snapshot save`, 3.5 and 3.4, against clusters."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import grpc
import pytest
from tests.support.clusters import cluster_of, find_leader, status_of, wait_level, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.system.test_etcdctl_cluster import Ctl, cluster, ctl

from oarlock.cli.local_cluster import LocalCluster
from oarlock.machines.kv.backup import BackupFile

__all__ = ["cluster", "ctl"]  # fixtures

NOSPACE = "alarm:NOSPACE"


def test_the_hash_is_the_same_on_all_members(cluster: LocalCluster, ctl: Ctl) -> None:
    for number in range(20):
        ctl("put", f"hash/{number % 7}", f"{number}")
    ctl("del", "hash/3")

    def hashes() -> list[tuple[int, int]]:
        told = json.loads(ctl("endpoint", "hashkv", "-w", "json"))
        return [(one["HashKV"]["hash"], one["HashKV"]["header"]["revision"]) for one in told]

    wait_until(lambda: len(set(hashes())) == 1, 120, "all members at one revision with one hash")
    told = hashes()
    assert len(told) == 3 and told[0][0] != 0
    ctl("put", "hash/3", "again")
    wait_until(lambda: len(set(hashes())) == 1, 120, "all members at one revision with one hash")
    assert hashes()[0] != told[0]


def test_status_and_defrag(cluster: LocalCluster, ctl: Ctl) -> None:
    told = json.loads(ctl("endpoint", "status", "-w", "json"))
    leaders = {one["Status"]["leader"] for one in told}
    assert len(told) == 3 and len(leaders) == 1
    for one in told:
        status = one["Status"]
        assert status["version"].startswith("3.5.") and status["raftTerm"] > 0
        assert 0 < status["dbSizeInUse"] <= status["dbSize"] and "errors" not in status
        assert status["raftAppliedIndex"] <= status["raftIndex"]
    assert ctl("defrag").count("Finished defragmenting etcd member") == 3


def test_snapshot_save(cluster: LocalCluster, ctl: Ctl, tmp_path: Path) -> None:
    ctl("put", "saved", "value of saved")
    path = tmp_path / "snapshot.db"
    endpoint = cluster.members[1].endpoint

    def has_it() -> bool:
        with EtcdClient(endpoint) as client:
            return bool(client.get(b"saved", serializable=True).kvs)

    wait_until(has_it, 120, "the member that is asked has the key")
    ctl("snapshot", "save", str(path), endpoints=[endpoint])
    data = path.read_bytes()
    assert len(data) % 512 == 32
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()
    with path.open("rb") as file:
        state = b"".join(BackupFile(file, str(path)).whole_chunks())
    assert b"value of saved" in state, "the capture is older than the request"


def test_alarms_by_hand(cluster: LocalCluster, ctl: Ctl) -> None:
    status = status_of(cluster.members[2])
    assert status is not None
    member = status.header.member_id
    assert ctl("alarm", "list") == ""
    with EtcdClient(cluster.endpoints[0]) as client:
        client.call("Alarm", action=1, memberID=member, alarm=1)
    wait_level(cluster)  # statuses and health are each member's own
    assert ctl("alarm", "list") == f"memberID:{member} {NOSPACE} \n"
    assert "database space exceeded" in ctl("put", "a", "b", fails=True)
    assert "database space exceeded" in ctl("lease", "grant", "60", fails=True)
    ctl("del", "a")
    for one in json.loads(ctl("endpoint", "status", "-w", "json")):
        assert one["Status"]["errors"] == [f"memberID:{member} {NOSPACE} "]
    for endpoint in cluster.endpoints:
        with pytest.raises(HTTPError) as unhealthy:
            urllib.request.urlopen(f"http://{endpoint}/health", timeout=120)
        assert json.loads(unhealthy.value.read()) == {"health": "false", "reason": "ALARM NOSPACE"}
        with urllib.request.urlopen(f"http://{endpoint}/health?exclude=NOSPACE", timeout=120) as answer:
            assert json.loads(answer.read())["health"] == "true"
    assert ctl("alarm", "disarm") == f"memberID:{member} {NOSPACE} \n"
    wait_level(cluster)
    assert ctl("alarm", "list") == ctl("alarm", "disarm") == ""
    assert ctl("put", "a", "b") == "OK\n"


@pytest.fixture(scope="module", params=["lmdb", "memory"])
def small(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Members with a quota of 4 MiB, and history of two seconds."""
    flags = ["--quota-backend-bytes=4194304", "--auto-compaction-retention=2s", f"--storage={request.param}"]
    with cluster_of(3, *flags) as started:
        yield started


@pytest.mark.timeout(400)
def test_the_quota_stops_writes_until_space_is_freed(small: LocalCluster) -> None:
    with EtcdClient(small.endpoints[0]) as client:
        client.put(b"tick/0", b"")
        written = 0
        with pytest.raises(grpc.RpcError) as full:
            while written < 2000:
                client.put(b"big/%d" % written, b"x" * 10_000)
                written += 1
        assert full.value.details() == "etcdserver: mvcc: database space exceeded"  # type: ignore[attr-defined]
        assert 150 <= written <= 600, written
        alarms = client.call("Alarm").alarms
        assert {alarm.alarm for alarm in alarms} == {1}
        with EtcdClient(small.endpoints[1]) as other, pytest.raises(grpc.RpcError):
            other.put(b"small", b"")
        # The restart of a member does not lift it.
        leader = find_leader(small)
        other_one = next(member for member in small.members[1:] if member is not leader)
        other_one.kill()
        other_one.start()
        wait_level(small)
        assert any("NOSPACE" in error for error in status_of(other_one).errors)  # type: ignore[union-attr]
        client.call("DeleteRange", key=b"big/", range_end=b"big0")
        client.delete(b"tick/0")  # what the newest compacted revision replaced stays until the next compaction
        # History goes by itself after two seconds, and its space without anything else happening.
        wait_until(
            lambda: status_of(small.members[0]).dbSizeInUse < 2_000_000,  # type: ignore[union-attr]
            180,
            "space that comes free",
        )
        for alarm in client.call("Alarm").alarms:
            client.call("Alarm", action=2, memberID=alarm.memberID, alarm=alarm.alarm)
        client.put(b"small", b"fits again")
