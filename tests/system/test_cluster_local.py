"""`LocalCluster`, on which tests, benchmarks and the demonstration stand."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest
from tests.support.clusters import assert_all_equal, cluster_of, find_leader, status_of
from tests.support.etcd_wire import EtcdClient

from oarlock.cli.local_cluster import ClusterError, LocalCluster, Program, ProgramMissing, free_ports, wait_until


def test_ports_are_given_once() -> None:
    ports = free_ports(50) + free_ports(50)
    assert len(set(ports)) == 100
    assert all(10240 <= port <= 32000 for port in ports)


def test_program_that_ends_at_once_is_reported_with_its_log() -> None:
    program = Program("broken", (sys.executable, "-c", "import sys; sys.exit('no such luck')"))
    with LocalCluster(program, 1) as cluster:
        with pytest.raises(ClusterError, match="ended with 1 before it was ready") as caught:
            cluster.start()
        assert "no such luck" in str(caught.value)


def test_program_that_never_gets_ready_is_reported_and_killed() -> None:
    program = Program("slow", (sys.executable, "-c", "import time; time.sleep(60)"))
    with LocalCluster(program, 1) as cluster:
        with pytest.raises(ClusterError, match=r"not ready after 0\.5 s"):
            cluster.start(ready_seconds=0.5)
        assert not cluster.members[0].running


def test_program_that_is_not_there() -> None:
    with LocalCluster(Program("nothing", ("/nonexistent/server",)), 1) as cluster:
        with pytest.raises(ProgramMissing, match="/nonexistent/server"):
            cluster.start()


def test_cluster_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        LocalCluster(Program("nothing", ("true",)), 0)


def test_wait_names_what_it_waited_for() -> None:
    with pytest.raises(ClusterError, match=r"waited 0\.1 s in vain: rain"):
        wait_until(lambda: False, 0.1, "rain")


def test_directory_goes_with_the_cluster_unless_it_is_the_callers(tmp_path: Path) -> None:
    program = Program("sleeper", (sys.executable, "-c", "import time; time.sleep(60)"))
    with LocalCluster(program, 1) as cluster:
        own = cluster.directory
        cluster.members[0].start()
    assert not own.exists()
    with LocalCluster(program, 1, directory=tmp_path / "kept") as cluster:
        cluster.members[0].start()
    assert (tmp_path / "kept" / "m1.log").exists()


def test_members_outlive_the_thread_that_started_them() -> None:
    """The kernel kills a child when the thread that forked it ends; a thread of the cluster's own does the forking."""
    program = Program("sleeper", (sys.executable, "-c", "import time; time.sleep(60)"))
    with LocalCluster(program, 1) as cluster:
        thread = threading.Thread(target=cluster.members[0].start)
        thread.start()
        thread.join()
        with pytest.raises(ClusterError, match="still runs after"):
            cluster.members[0].wait_exit(seconds=0.3)
        with pytest.raises(ClusterError, match="runs already"):
            cluster.members[0].start()


@pytest.mark.timeout(400)
def test_members_are_killed_frozen_and_restarted() -> None:
    with cluster_of(3, steady=False) as cluster:
        with EtcdClient(cluster.endpoints[0]) as client:
            client.put(b"k", b"v")
        leader = find_leader(cluster)
        leader.kill()
        assert leader.exit_code == -signal.SIGKILL
        assert status_of(leader) is None
        successor = find_leader(cluster)
        assert successor is not leader
        leader.start()
        leader.wait_ready()
        successor.signal(signal.SIGSTOP)
        assert not successor.healthy(timeout=0.3)
        successor.signal(signal.SIGCONT)
        successor.wait_ready()
        rows = assert_all_equal(cluster)
        assert [row[:2] for row in rows] == [(b"k", b"v")]
        assert leader.starts == 2
        assert leader.log().count("--- start") == 2
