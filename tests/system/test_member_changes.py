"""Membership by stock etcdctl against real processes: add, start, promote, remove, replace, grow and shrink.

`OARLOCK_TEST_SERVER=etcd` runs what is common to both against etcd itself, to show that the expectations are fair.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from typing import Any

import pytest
from tests.support.clusters import assert_all_equal, cluster_of, find_leader, passing, runs_etcd, status_of, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.system.test_etcdctl_cluster import etcdctl_path

from oarlock.cli.local_cluster import LocalCluster, MemberProcess

pytestmark = pytest.mark.timeout(400)


ATTEMPTS = 5


class Ctl:
    """etcdctl of one version on one cluster; what fails only for the moment is asked again."""

    def __init__(self, cluster: LocalCluster, version: str = "3.5") -> None:
        self.cluster = cluster
        self._path = etcdctl_path(version)

    def run(self, *arguments: str, at: MemberProcess | None = None) -> subprocess.CompletedProcess[str]:
        running = [m.endpoint for m in self.cluster.members if m.running]
        endpoints = at.endpoint if at is not None else ",".join(running)
        command = [self._path, f"--endpoints={endpoints}", "--dial-timeout=20s", "--command-timeout=20s", *arguments]
        for _ in range(ATTEMPTS):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0 or not passing(done.stderr):
                break
        return done

    def __call__(self, *arguments: str, at: MemberProcess | None = None) -> str:
        done = self.run(*arguments, at=at)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, *arguments: str, at: MemberProcess | None = None) -> str:
        done = self.run(*arguments, at=at)
        assert done.returncode != 0, f"{arguments}\n{done.stdout}"
        return done.stderr

    def members(self, at: MemberProcess | None = None) -> dict[str, Any]:
        """By peer URL."""
        found = json.loads(self("member", "list", "-w", "json", at=at))["members"]
        return {member["peerURLs"][0]: member for member in found}

    def id_of(self, member: MemberProcess) -> str:
        return f"{self.members()[member.peer_url]['ID']:x}"

    def add(self, name: str, *flags: str, at: MemberProcess | None = None) -> MemberProcess:
        """`member add`, and a process laid out as etcdctl's answer says."""
        member = self.cluster.add(name)
        told = self("member", "add", name, f"--peer-urls={member.peer_url}", *flags, at=at)
        settings = dict(re.findall(r'^(ETCD_\w+)="(.*)"$', told, re.MULTILINE))
        assert settings["ETCD_NAME"] == name
        assert settings["ETCD_INITIAL_CLUSTER_STATE"] == "existing"
        member.initial_cluster = settings["ETCD_INITIAL_CLUSTER"]
        return member

    def gone(self, member: MemberProcess) -> None:
        self.cluster.members.remove(member)


@pytest.mark.parametrize("version", ["3.5", "3.4"])
def test_add_a_learner_start_it_and_promote_it(version: str) -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster, version)
        ctl("put", "before", "1")
        learner = ctl.add("m4", "--learner")
        assert "too many learner members in cluster" in ctl.fails(
            "member", "add", "m5", "--learner", "--peer-urls=http://127.0.0.1:1"
        )
        listed = ctl.members()[learner.peer_url]
        assert listed["isLearner"] is True
        assert listed.get("name", "") == ""
        if not runs_etcd():  # etcd promotes a learner that never started while the log is short
            assert "in sync with leader" in ctl.fails("member", "promote", f"{listed['ID']:x}")
        learner.start()
        wait_until(
            lambda: (s := status_of(learner)) is not None and s.raftAppliedIndex > 0, 120, "the learner has state"
        )
        assert "rpc not supported for learner" in ctl.fails("get", "before", at=learner)
        wait_until(lambda: ctl.run("member", "promote", f"{listed['ID']:x}").returncode == 0, 120, "promoted")
        assert not ctl.members()[learner.peer_url].get("isLearner")
        assert "can only promote a learner member" in ctl.fails("member", "promote", f"{listed['ID']:x}")
        wait_until(lambda: ctl.run("get", "before", at=learner).stdout == "before\n1\n", 120, "it serves")
        assert_all_equal(cluster)


def test_what_is_refused_is_refused_as_etcd_does() -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        time.sleep(6 if runs_etcd() else 0)  # etcd calls a cluster unhealthy for its first five seconds
        first = cluster.members[0]
        texts = {
            ("member", "add", "x", f"--peer-urls={first.peer_url}"): "etcdserver: Peer URLs already exists",
            ("member", "remove", "abc123"): "etcdserver: member not found",
            ("member", "promote", "abc123"): "etcdserver: member not found",
            ("member", "update", "abc123", "--peer-urls=http://127.0.0.1:1"): "etcdserver: member not found",
            ("member", "promote", ctl.id_of(first)): "etcdserver: can only promote a learner member",
            ("member", "update", ctl.id_of(first), f"--peer-urls={cluster.members[1].peer_url}"): (
                "etcdserver: Peer URLs already exists"
            ),
        }
        for arguments, text in texts.items():
            told = ctl.fails(*arguments)
            assert text in told, f"{arguments}: {told}"
        cluster.members[2].kill()
        wait_until(
            lambda: "unhealthy cluster" in ctl.run("member", "add", "x", "--peer-urls=http://127.0.0.1:1").stderr,
            120,
            "an addition is refused while a member is down",
        )
        assert "unhealthy cluster" in ctl.fails("member", "remove", ctl.id_of(cluster.members[1]))


def test_the_last_member_and_a_second_unstarted_one_are_refused() -> None:
    with cluster_of(1) as cluster:
        ctl = Ctl(cluster)
        time.sleep(6 if runs_etcd() else 0)
        text = "re-configuration failed due to not enough started members"
        assert text in ctl.fails("member", "remove", ctl.id_of(cluster.members[0]))
        second = ctl.add("m2")
        if runs_etcd():
            return  # without its majority until the second one starts
        assert text in ctl.fails("member", "add", "m3", "--peer-urls=http://127.0.0.1:1")
        assert ctl("put", "k", "v") == "OK\n"  # an added member that never starts costs nothing
        assert "Member" in ctl("member", "remove", ctl.id_of(second))
        assert len(ctl.members()) == 1


def test_grow_from_one_to_five_and_shrink_to_three_under_load_and_lose_nothing() -> None:
    with cluster_of(1) as cluster:
        ctl = Ctl(cluster)
        written: list[str] = []
        stop = threading.Event()
        known = {cluster.members[0].endpoint}

        def load() -> None:
            number = 0
            while not stop.is_set():
                for endpoint in sorted(known):
                    number += 1
                    try:
                        with EtcdClient(endpoint, timeout=5.0) as client:
                            client.put(f"load/{number:06}".encode(), b"%d" % number)
                    except Exception:
                        continue
                    written.append(f"load/{number:06}")
                time.sleep(0.01)

        worker = threading.Thread(target=load)
        worker.start()
        try:
            for number in range(2, 6):
                member = ctl.add(f"m{number}")
                member.start()
                member.wait_ready()
                known.add(member.endpoint)
                wait_until(
                    lambda member=member: ctl.members()[member.peer_url].get("name") == member.name,  # type: ignore[misc]
                    120,
                    f"{member.name} is a member with a name",
                )
            assert len(ctl.members()) == 5
            for _ in range(2):
                leader = find_leader(cluster)
                known.discard(leader.endpoint)
                other = next(m for m in cluster.members if m is not leader)
                leader_id = ctl.id_of(leader)
                wait_until(
                    lambda gone=leader_id, other=other: (  # type: ignore[misc]
                        (told := ctl.run("member", "remove", gone, at=other)).returncode == 0
                        or "member not found" in told.stderr  # it was done, and the answer got lost
                    ),
                    120,
                    "the leader is removed",
                )
                assert leader.wait_exit() != 0
                assert "was removed from the cluster" in leader.log()
                ctl.gone(leader)
        finally:
            stop.set()
            worker.join()
        assert len(ctl.members()) == 3
        held = {key.decode() for key, *_ in assert_all_equal(cluster)}
        assert len(written) > 20
        assert not set(written) - held


@pytest.mark.skipif(runs_etcd(), reason="exit codes and texts of our own")
def test_a_removed_member_stays_away_and_one_with_its_name_takes_its_place() -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        ctl("put", "kept", "1")
        leader = find_leader(cluster)
        lost = next(m for m in cluster.members if m is not leader)
        old_id = ctl.id_of(lost)
        assert f"Member {old_id} removed" in re.sub(r"\s+", " ", ctl("member", "remove", old_id, at=lost))
        assert lost.wait_exit() != 0
        assert "member not found" in ctl.fails("member", "remove", old_id, at=leader)
        for _ in range(2):  # again and again, with its old data
            lost.start()
            assert lost.wait_exit() != 0
        assert "must be added again" in lost.log()
        ctl.gone(lost)
        fresh = ctl.add(lost.name)
        fresh.start()
        fresh.wait_ready()
        assert ctl.id_of(fresh) != old_id
        wait_until(lambda: ctl.members()[fresh.peer_url].get("name") == lost.name, 120, "it has the name")
        assert_all_equal(cluster)


@pytest.mark.skipif(runs_etcd(), reason="an empty directory under an old id is an error of our own")
def test_joining_says_what_does_not_fit() -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        stranger = cluster.add("m9")
        stranger.initial_cluster = f"{cluster.initial_cluster},m9={stranger.peer_url}"
        stranger.start()
        assert stranger.wait_exit() == 1
        assert "add it first" in stranger.log()
        assert "etcdctl member add m9" in stranger.log()
        ctl.gone(stranger)

        added = ctl.add("m4")
        right = added.initial_cluster
        added.initial_cluster = ",".join(part for part in right.split(",") if not part.startswith("m1="))
        added.start()
        assert added.wait_exit() == 1
        assert "it lacks m1 at" in added.log()
        added.initial_cluster = right.replace("m1=", "mx=")
        added.start()
        assert added.wait_exit() == 1
        assert "its name is 'm1'" in added.log()
        added.initial_cluster = right
        added.start()
        added.wait_ready()

        wiped = cluster.member("m2")
        wiped.kill()
        shutil.rmtree(wiped.data_dir)
        wiped.initial_cluster, wiped.initial_cluster_state = right, "existing"
        wiped.start()
        assert wiped.wait_exit() == 1
        assert "has been started before, as 'm2'" in wiped.log()


@pytest.mark.skipif(runs_etcd(), reason="etcd needs its own second member to do this")
def test_peer_urls_change_at_run_time() -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        leader = find_leader(cluster)
        moved = next(m for m in cluster.members if m is not leader)
        member_id = ctl.id_of(moved)
        other = cluster.add("unused")
        cluster.members.remove(other)
        ctl("member", "update", member_id, f"--peer-urls={other.peer_url}")
        assert ctl.members()[other.peer_url]["ID"] == int(member_id, 16)
        moved.kill()
        moved.peer_port = other.peer_port
        moved.initial_cluster = f"{moved.name}={moved.peer_url}"  # is not looked at any more
        moved.start()
        moved.wait_ready()
        ctl("put", "k", "v", at=moved)
        assert_all_equal(cluster)
