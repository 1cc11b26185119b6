"""A member that must not start: it ends by itself, with the right exit code and a text that names what to change."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.clusters import cluster_of, program_under_test, runs_etcd
from tests.support.etcd_wire import EtcdClient

from oarlock.cli.exits import Exit
from oarlock.cli.local_cluster import LocalCluster, MemberProcess
from oarlock.storage.records import PREAMBLE_BYTES, pack_preamble, unpack_preamble

pytestmark = pytest.mark.skipif(runs_etcd(), reason="exit codes and texts of our own")
START_SECONDS = 60.0


@pytest.fixture
def single() -> Iterator[LocalCluster]:
    """One member with one key, stopped in order."""
    with cluster_of(1) as cluster:
        with EtcdClient(cluster.endpoints[0]) as client:
            client.put(b"k", b"v")
        assert cluster.members[0].terminate() == Exit.CLEAN
        yield cluster


def refuses_to_start(member: MemberProcess, code: Exit, *words: str) -> str:
    """Start it; it must end with `code` after saying all `words` in its last lines, without a traceback."""
    before = len(member.log())
    member.start()
    ended = member.wait_exit(seconds=START_SECONDS)
    said = "\n".join(line for line in member.log()[before:].splitlines() if not line.startswith("---"))
    assert ended == code, f"ended with {ended}, not {code!r}:\n{said}"
    for word in words:
        assert word.lower() in said.lower(), f"{word!r} is not in:\n{said}"
    assert "Traceback" not in said, said
    return said


def starts_again(member: MemberProcess) -> None:
    member.start()
    member.wait_ready()
    with EtcdClient(member.endpoint) as client:
        assert client.get(b"k").kvs[0].value == b"v"


def test_unknown_flag(single: LocalCluster) -> None:
    member = single.members[0]
    member.extra_flags = ("--heartbeat-intervall=100",)
    refuses_to_start(member, Exit.CONFIGURATION, "--heartbeat-intervall", "--heartbeat-interval")
    member.extra_flags = ()
    starts_again(member)


def test_value_that_is_none(single: LocalCluster) -> None:
    member = single.members[0]
    for flag, word in [("--election-timeout=soon", "election-timeout"), ("--initial-cluster-state=old", "existing")]:
        member.extra_flags = (flag,)
        refuses_to_start(member, Exit.CONFIGURATION, word)


def test_two_members_with_one_directory() -> None:
    """The second is refused, the first does not notice."""
    with cluster_of(1) as cluster, LocalCluster(program_under_test(), 1) as second:
        second.members[0].data_dir = cluster.members[0].data_dir
        refuses_to_start(second.members[0], Exit.STORAGE, str(cluster.members[0].data_dir))
        with EtcdClient(cluster.endpoints[0]) as client:
            client.put(b"k", b"v")


def test_directory_of_another_cluster(single: LocalCluster) -> None:
    with LocalCluster(program_under_test(), 1, token="another") as other:
        other.members[0].data_dir = single.members[0].data_dir
        refuses_to_start(other.members[0], Exit.STORAGE, "cluster", str(single.members[0].data_dir))
    starts_again(single.members[0])


def test_directory_of_another_member() -> None:
    with cluster_of(3) as cluster:
        for member in cluster.members:
            assert member.terminate() == Exit.CLEAN
        first, second = cluster.members[:2]
        own = second.data_dir
        second.data_dir = first.data_dir
        refuses_to_start(second, Exit.STORAGE, "member", str(first.data_dir))
        second.data_dir = own
        cluster.start()


def test_directory_from_a_newer_version(single: LocalCluster) -> None:
    """One log segment says that it has the next format; the bytes stay as they are."""
    member = single.members[0]
    segment = sorted(member.data_dir.rglob("*.wal"))[-1]
    before = segment.read_bytes()
    found = unpack_preamble(before[:PREAMBLE_BYTES])
    assert not isinstance(found, str), found
    newer, _ = pack_preamble(replace(found[0], format=found[0].format + 1))
    segment.write_bytes(newer + before[PREAMBLE_BYTES:])
    refuses_to_start(member, Exit.STORAGE, "format", segment.name)
    assert segment.read_bytes()[:PREAMBLE_BYTES] == newer
    segment.write_bytes(before)
    starts_again(member)


def test_rotten_log_is_refused_with_file_and_offset(single: LocalCluster) -> None:
    """A flipped bit in what was synced: the file and the place are named, nothing is cut."""
    member = single.members[0]
    segment = sorted(member.data_dir.rglob("*.wal"))[0]
    before = segment.read_bytes()
    place = before.index(b"k") if b"k" in before else PREAMBLE_BYTES + 64
    place = max(place, PREAMBLE_BYTES + 16)
    rotten = bytearray(before)
    rotten[place] ^= 4
    segment.write_bytes(rotten)
    refuses_to_start(member, Exit.STORAGE, segment.name, "offset")
    assert segment.read_bytes() == rotten, "the evidence was touched"
    segment.write_bytes(before)
    starts_again(member)


def test_data_directory_that_is_a_file(single: LocalCluster, tmp_path: Path) -> None:
    member = single.members[0]
    member.data_dir = tmp_path / "file"
    member.data_dir.write_text("not a directory")
    refuses_to_start(member, Exit.STORAGE, str(member.data_dir))


def test_read_only_directory(single: LocalCluster, tmp_path: Path) -> None:
    """Root may write anywhere but on a file system mounted read-only; others not in a directory without permission."""
    member = single.members[0]
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() == 0:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    else:
        place.chmod(0o500)
    try:
        member.data_dir = place / "data"
        refuses_to_start(member, Exit.STORAGE, str(place))
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(place)], check=True)
        else:
            place.chmod(0o700)


def test_address_in_use(single: LocalCluster) -> None:
    with cluster_of(1) as other:
        member = single.members[0]
        free = member.client_port
        member.client_port = other.members[0].client_port
        refuses_to_start(member, Exit.ADDRESS, str(member.client_port))
        member.client_port = free
    starts_again(member)


def test_member_that_is_not_in_the_initial_cluster(single: LocalCluster) -> None:
    member = single.members[0]
    shutil.rmtree(member.data_dir)
    member.name = "stranger"
    refuses_to_start(member, Exit.CONFIGURATION, "stranger", "initial-cluster")
