"""`etcdctl lease ...`, 3.5 and 3.4, against a three-member cluster, and leases across the death of a leader."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from tests.support.clusters import cluster_of, find_leader, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.system.test_etcdctl_cluster import Ctl, cluster, ctl, etcdctl_path

from oarlock.cli.local_cluster import LocalCluster

__all__ = ["cluster", "ctl"]  # fixtures


def grant(ctl: Ctl, ttl: int) -> str:
    told = ctl("lease", "grant", str(ttl))
    found = re.fullmatch(rf"lease ([0-9a-f]+) granted with TTL\({ttl}s\)\n", told)
    assert found, told
    return found.group(1)


def test_grant_attach_show_list_and_revoke(ctl: Ctl) -> None:
    lease = grant(ctl, 300)
    assert ctl("put", "lease/b", "1", "--lease", lease) == "OK\n"
    assert ctl("put", "lease/a", "1", f"--lease={lease}") == "OK\n"
    shown = ctl("lease", "timetolive", lease, "--keys")
    both = "(lease/a lease/b|lease/b lease/a)"  # etcd shows them in any order
    pattern = rf"lease {lease} granted with TTL\(300s\), remaining\((2[0-9][0-9]|300)s\), attached keys\(\[{both}\]\)\n"
    assert re.fullmatch(pattern, shown), shown
    assert lease in ctl("lease", "list").split()
    assert ctl("lease", "keep-alive", "--once", lease) == f"lease {lease} keepalived with TTL(300)\n"
    ctl("put", "lease/b", "2")  # without a lease: detached
    assert ctl("put", "lease/a", "2", "--ignore-lease") == "OK\n"
    assert "attached keys([lease/a])" in ctl("lease", "timetolive", lease, "--keys")
    assert ctl("lease", "revoke", lease) == f"lease {lease} revoked\n"
    assert ctl("get", "lease/", "--prefix") == "lease/b\n2\n"
    assert ctl("lease", "timetolive", lease) == f"lease {lease} already expired\n"
    assert "requested lease not found" in ctl("lease", "revoke", lease, fails=True)
    assert "requested lease not found" in ctl("put", "lease/x", "1", f"--lease={lease}", fails=True)
    assert "requested lease not found" in ctl("lease", "keep-alive", "--once", lease, fails=True)
    assert ctl("del", "lease/b") == "1\n"


def test_an_expired_lease_takes_its_keys(ctl: Ctl) -> None:
    lease = grant(ctl, 10)
    ctl("put", "soon", "gone", f"--lease={lease}")
    wait_until(lambda: not ctl("get", "soon"), 120, "the key of the lease is gone")
    assert ctl("lease", "timetolive", lease) == f"lease {lease} already expired\n"


def test_a_stock_keep_alive_keeps_a_lease(cluster: LocalCluster, ctl: Ctl) -> None:
    """Through every member at once: two of them pass it on."""
    ttl = 10
    lease = grant(ctl, ttl)
    ctl("put", "kept", "1", f"--lease={lease}")
    began = time.monotonic()
    keepers = [
        subprocess.Popen(
            [etcdctl_path("3.5"), f"--endpoints={endpoint}", "lease", "keep-alive", lease],
            stdout=subprocess.PIPE,
            text=True,
        )
        for endpoint in cluster.endpoints
    ]
    try:
        for keeper in keepers:
            assert keeper.stdout is not None
            for _ in range(3):
                assert keeper.stdout.readline() == f"lease {lease} keepalived with TTL({ttl})\n"
        time.sleep(max(0.0, began + 1.5 * ttl - time.monotonic()))  # without its keepers it would be over
        assert ctl("get", "kept", "--print-value-only") == "1\n"
    finally:
        for keeper in keepers:
            keeper.kill()
            keeper.communicate()


class KeptLease:
    """A client that renews one lease for as long as it can; `promised` is up to when it was told the lease lives."""

    def __init__(self, endpoints: list[str], lease: int, ttl: int, offset: int) -> None:
        self.endpoints, self.lease, self.ttl = endpoints, lease, ttl
        self.promised = 0.0
        self.lost_at = 0.0  # when it was told that the lease is over
        self.answers = 0
        self.stop = threading.Event()
        self._next = offset
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.stop.is_set():
            endpoint = self.endpoints[self._next % len(self.endpoints)]
            self._next += 1
            try:
                with EtcdClient(endpoint, timeout=2.0) as client:
                    while not self.stop.is_set():
                        sent = time.monotonic()
                        ttl = client.keep_alive(self.lease)[0].TTL
                        if ttl == 0:
                            self.lost_at = time.monotonic()
                            return
                        assert ttl == self.ttl
                        self.promised = sent + ttl
                        self.answers += 1
                        time.sleep(0.1)
            except grpc.RpcError:  # the member is gone or cannot answer: the next one
                time.sleep(0.05)


@pytest.fixture
def fresh() -> Iterator[LocalCluster]:
    with cluster_of(3, steady=False) as started:
        yield started


@pytest.mark.timeout(400)
def test_nothing_expires_early_when_leaders_are_killed(fresh: LocalCluster) -> None:
    """kill -9 on the leader, three times, while twelve clients keep their leases alive."""
    ttl = 10
    leases: list[KeptLease] = []
    with EtcdClient(fresh.endpoints[0], timeout=60.0) as client:
        for number in range(12):
            lease = client.lease_grant(ttl, 1000 + number)
            client.put(b"kept/%d" % number, b"", lease=lease)
            leases.append(KeptLease(list(fresh.endpoints), lease, ttl, number))
        idle = client.lease_grant(ttl, 999)
        idle_granted = time.monotonic()
        client.put(b"idle", b"", lease=idle)
    for kept in leases:
        kept.thread.start()
    gone_at = 0.0
    for _ in range(3):
        time.sleep(1.5)
        leader = find_leader(fresh)
        leader.kill()
        find_leader(fresh)
        leader.start()
    find_leader(fresh)
    deadline = time.monotonic() + 180
    while not gone_at:
        now = time.monotonic()
        assert now < deadline, "the lease that nobody renews is still there"
        try:
            with EtcdClient(find_leader(fresh).endpoint, timeout=5.0) as client:
                if not client.get(b"idle").kvs:
                    gone_at = now
                present = {kv.key for kv in client.get(b"kept/", range_end=b"kept0").kvs}
        except grpc.RpcError:
            continue
        for number, kept in enumerate(leases):
            assert not kept.lost_at or kept.lost_at >= kept.promised, f"{number} was over before its time"
            assert b"kept/%d" % number in present or now >= kept.promised, f"{number} expired early"
    for kept in leases:
        kept.stop.set()
    assert all(kept.answers > 10 for kept in leases)
    kept_on = [kept for kept in leases if not kept.lost_at]
    assert len(kept_on) > len(leases) / 2, "hardly a client got to renew its lease in time"
    assert gone_at - idle_granted >= ttl


@pytest.mark.timeout(400)
def test_keys_of_leases_that_nobody_renews_go_after_their_promise(fresh: LocalCluster) -> None:
    with EtcdClient(fresh.endpoints[1], timeout=60.0) as client:
        for number in range(200):
            lease = client.lease_grant(5, 0)
            client.put(b"many/%d" % number, b"", lease=lease)
        wait_until(
            lambda: not client.get(b"many/", range_end=b"many0", count_only=True).count, 180, "all keys gone", poll=0.2
        )
