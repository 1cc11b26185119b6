"""Clusters of real processes for tests: of this server, or of a real etcd to show that a test is fair.

`OARLOCK_TEST_SERVER=etcd` runs every test of the harness against etcd's own binary. What a test needs beyond
`LocalCluster` (who leads, are all members level) is here; it is asked over the public API only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from tests.support.etcd_wire import EtcdClient

from oarlock.cli.local_cluster import (
    ClusterError,
    LocalCluster,
    MemberProcess,
    Program,
    etcd_program,
    oarlock_program,
    wait_until,
)

# How long the helpers wait for what is sure to come: only a machine that is very busy needs more than a second or two.
LEADER_SECONDS = 120.0
LEVEL_SECONDS = 120.0

STEADY = ("--heartbeat-interval=100", "--election-timeout=5000")
"""Flags with which members wait five seconds for a silent leader: a machine that is busy elsewhere then does not change
who leads in the middle of a test that is about something else. The first leader comes as soon as without them."""

_PASSING = ("leader changed", "no leader", "request timed out", "connection refused", "context deadline exceeded")


def passing(error: str) -> bool:
    """Whether the text of an error says that the same call may well succeed in a moment: the group was choosing its
    leader, or the machine was too busy to answer in time. What a test expects is never one of these."""
    return any(text in error for text in _PASSING)


def program_under_test(*flags: str) -> Program:
    """The server that `OARLOCK_TEST_SERVER` names (`oarlock`, the default, or `etcd`), with further flags."""
    name = os.environ.get("OARLOCK_TEST_SERVER", "oarlock")
    program = {"oarlock": oarlock_program, "etcd": etcd_program}[name]()
    return program.with_flags(*flags)


def runs_etcd() -> bool:
    """Whether the tests run against a real etcd: a few texts and exit codes are our own."""
    return program_under_test().name == "etcd"


@contextlib.contextmanager
def cluster_of(
    size: int = 3, *flags: str, directory: Path | None = None, start: bool = True, steady: bool = True
) -> Iterator[LocalCluster]:
    """A cluster of the server under test; the ends of all logs are shown when the test fails.

    `steady=False` is for tests in which leaders die: another one is to be there after a second or two.
    """
    timing = () if not steady or any(flag.startswith("--election-timeout") for flag in flags) else STEADY
    with LocalCluster(program_under_test(*timing, *flags), size, directory=directory) as cluster:
        try:
            if start:
                cluster.start()
            yield cluster
        except BaseException:
            print(cluster.logs(), file=sys.stderr)
            raise


def status_of(member: MemberProcess, *, timeout: float = 10.0) -> Any | None:
    """The member's `Maintenance.Status`; `None` while it does not answer."""
    if not member.running:
        return None
    with EtcdClient(member.endpoint, timeout=timeout) as client:
        try:
            return client.status()
        except grpc.RpcError:
            return None


def find_leader(cluster: LocalCluster, *, seconds: float = LEADER_SECONDS) -> MemberProcess:
    """The running member that calls itself the leader in the highest term. Raises `ClusterError`."""
    found: list[tuple[int, MemberProcess]] = []

    def look() -> bool:
        for member in cluster.members:
            status = status_of(member)
            if status is not None and status.leader == status.header.member_id != 0:
                found.append((status.raftTerm, member))
        return bool(found)

    wait_until(look, seconds, "a member that leads")
    return max(found, key=lambda pair: pair[0])[1]


def wait_level(cluster: LocalCluster, *, seconds: float = LEVEL_SECONDS) -> None:
    """Wait until every member has applied what any has committed. Raises `ClusterError`."""

    def level() -> bool:
        statuses = [status_of(member) for member in cluster.members]
        known = [status for status in statuses if status is not None]
        if len(known) < len(statuses):
            return False
        committed = max(status.raftIndex for status in known)
        return all(status.raftAppliedIndex >= committed for status in known)

    wait_until(level, seconds, "all members level")


def contents(member: MemberProcess) -> tuple[int, list[tuple[bytes, bytes, int, int, int]]]:
    """The member's own revision and every key with value, create revision, mod revision and version."""
    with EtcdClient(member.endpoint) as client:
        answer = client.everything(serializable=True)
    rows = [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in answer.kvs]
    assert len(rows) == answer.count
    return answer.header.revision, rows


def assert_all_equal(cluster: LocalCluster) -> list[tuple[bytes, bytes, int, int, int]]:
    """Wait until the members are level and compare all that they hold; returns it."""
    wait_level(cluster)
    revision, rows = contents(cluster.members[0])
    for member in cluster.members[1:]:
        other_revision, other_rows = contents(member)
        assert other_revision == revision, f"{member.name} is at revision {other_revision}, not {revision}"
        if other_rows != rows:
            differing = sorted(set(rows).symmetric_difference(other_rows))[:5]
            raise AssertionError(f"{member.name} and {cluster.members[0].name} differ, first at {differing}")
    return rows


__all__ = [
    "ClusterError",
    "LocalCluster",
    "MemberProcess",
    "Program",
    "STEADY",
    "assert_all_equal",
    "cluster_of",
    "contents",
    "find_leader",
    "passing",
    "program_under_test",
    "runs_etcd",
    "status_of",
    "wait_level",
    "wait_until",
]
