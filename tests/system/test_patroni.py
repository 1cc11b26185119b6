"""Patroni with its etcd3 configuration, unchanged, fails a real PostgreSQL over on three members of ours.

examples/patroni/patroni.yml is what runs here, with shorter times.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from tests.support.clusters import LocalCluster, cluster_of, find_leader, wait_until
from tests.support.patroni import PatroniCluster, PatroniMember, Writer

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
PATIENCE_S = 120.0
FASTER = {"ttl: 30": "ttl: 20", "loop_wait: 10": "loop_wait: 1", "retry_timeout: 10": "retry_timeout: 4"}
"""20 s is the least lifetime of the leader's key that Patroni takes."""

LONGER_THAN_TTL_S = 25


@pytest.fixture(scope="module")
def oarlock() -> Iterator[LocalCluster]:
    with cluster_of(3, steady=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def patroni(oarlock: LocalCluster) -> Iterator[PatroniCluster]:
    with PatroniCluster(oarlock.endpoints, 2, FASTER) as cluster:
        first, *others = cluster.members
        first.start()
        assert cluster.primary(seconds=PATIENCE_S) is first
        with first.connect() as connection:
            connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY)")
        for member in others:
            member.start()
        wait_synchronous(others[0])
        yield cluster


@pytest.fixture(autouse=True)
def logs_when_it_fails(patroni: PatroniCluster, request: pytest.FixtureRequest) -> Iterator[None]:
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(patroni.logs(), file=sys.stderr)


def wait_synchronous(replica: PatroniMember) -> None:
    """Wait until the cluster's own record, in the store, says that every acknowledged row is on `replica` too."""
    wait_until(replica.synchronous, PATIENCE_S, f"{replica.name} is a synchronous replica", poll=0.2)


def rows(member: PatroniMember) -> set[int]:
    with member.connect() as connection:
        return {row[0] for row in connection.execute("SELECT number FROM rows")}


def timeline(member: PatroniMember) -> int:
    return int(member.status()["timeline"])


def not_in_failsafe_mode(member: PatroniMember) -> bool:
    status = member.status()
    return bool(status) and not status.get("failsafe_mode_is_active", False)


def wait_renewed(primary: PatroniMember) -> None:
    """Wait until Patroni has had answers of its store for some seconds from now on: three turns of its loop."""
    from_now_on = time.time() + 3
    wait_until(lambda: primary.status().get("dcs_last_seen", 0) > from_now_on, PATIENCE_S, "the lock is renewed")


def test_a_replica_is_promoted_and_no_acknowledged_row_is_lost(patroni: PatroniCluster) -> None:
    old = patroni.primary(seconds=PATIENCE_S)
    with Writer(patroni) as writer:
        writer.wait_more(50, seconds=PATIENCE_S)
        writer.wait_more(50, seconds=PATIENCE_S)
        old.kill()
        until_now = len(writer.acknowledged)
        new = patroni.primary(seconds=PATIENCE_S, other_than=old)
        old.start()
        writer.wait_more(50, seconds=PATIENCE_S)
    assert new is not old
    assert until_now >= 100
    assert set(writer.acknowledged) <= rows(new)
    wait_synchronous(old)
    wait_until(lambda: rows(old) == rows(new), PATIENCE_S, "the old primary has the new one's rows")


def test_a_switchover_is_asked_for_by_patronictl(patroni: PatroniCluster) -> None:
    old = patroni.primary(seconds=PATIENCE_S)
    new = next(member for member in patroni.members if member is not old)
    wait_synchronous(new)
    before = timeline(old)
    with Writer(patroni) as writer:
        writer.wait_more(20, seconds=PATIENCE_S)
        said = patroni.patronictl("switchover", "orders", "--leader", old.name, "--candidate", new.name, "--force")
        assert "Successfully switched over" in said
        assert patroni.primary(seconds=PATIENCE_S, other_than=old) is new
        wait_until(lambda: not old.leads(), PATIENCE_S, "the old primary knows")
        writer.wait_more(20, seconds=PATIENCE_S)
    assert timeline(new) == before + 1
    assert set(writer.acknowledged) <= rows(new)
    shown = patroni.patronictl("list", "orders")
    assert re.search(rf"\| {new.name} +\|[^|]*\| Leader ", shown), shown


def test_the_death_of_an_oarlock_leader_is_no_failover(oarlock: LocalCluster, patroni: PatroniCluster) -> None:
    primary = patroni.primary(seconds=PATIENCE_S)
    before = timeline(primary)
    with Writer(patroni) as writer:
        writer.wait_more(20, seconds=PATIENCE_S)
        for _ in range(2):
            victim = find_leader(oarlock)
            victim.kill()
            wait_renewed(primary)
            victim.start()
            victim.wait_ready()
        writer.wait_more(20, seconds=PATIENCE_S)
    assert primary.leads()
    assert timeline(primary) == before, "nobody was promoted"
    assert set(writer.acknowledged) <= rows(primary)


def test_without_a_majority_the_primary_goes_on_in_failsafe_mode(
    oarlock: LocalCluster, patroni: PatroniCluster
) -> None:
    primary = patroni.primary(seconds=PATIENCE_S)
    before = timeline(primary)
    with Writer(patroni) as writer:
        writer.wait_more(20, seconds=PATIENCE_S)
        down = oarlock.members[1:]
        for member in down:
            member.kill()
        wait_until(lambda: bool(primary.status().get("failsafe_mode_is_active")), PATIENCE_S, "failsafe mode")
        time.sleep(LONGER_THAN_TTL_S)
        writer.wait_more(20, seconds=PATIENCE_S)
        for member in down:
            member.start()
        for member in down:
            member.wait_ready()
        wait_until(lambda: not_in_failsafe_mode(primary), PATIENCE_S, "failsafe mode ends")
        assert patroni.primary(seconds=PATIENCE_S) is primary
        writer.wait_more(20, seconds=PATIENCE_S)
    assert timeline(primary) == before, "nobody was promoted"
    assert set(writer.acknowledged) <= rows(primary)


def test_patroni_hears_of_changes_by_watches(oarlock: LocalCluster, patroni: PatroniCluster) -> None:
    patroni.primary(seconds=PATIENCE_S)

    def watchers() -> int:
        found = 0
        for member in oarlock.members:
            with urllib.request.urlopen(f"{member.client_url}/metrics", timeout=10) as answer:
                counted = re.search(r"^etcd_debugging_mvcc_watcher_total ([0-9.]+)$", answer.read().decode(), re.M)
            assert counted is not None
            found += int(float(counted[1]))
        return found

    wait_until(lambda: watchers() == len(patroni.members), PATIENCE_S, "each Patroni watches, once")
