"""Disks that fail under a running member: it stops with a clear error and never tries a sync again; nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.support.clusters import assert_all_equal, cluster_of, find_leader, runs_etcd, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.support.workload import Workload, assert_nothing_lost

from oarlock.cli.exits import Exit
from oarlock.cli.local_cluster import LocalCluster, MemberProcess

TMPFS_MB = 900  # the log, the history of the store and a snapshot of it are to fit when the filler is gone
FILLER = "filler"


@contextlib.contextmanager
def injected(
    member: MemberProcess, calls: str, what: str, *, paths: list[Path], log: Path, only: str = ""
) -> Iterator[None]:
    """Tamper with the member's system calls `calls` on `paths` (or with those of them that are in `only`) from now on;
    needs strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    if os.geteuid() != 0:
        pytest.skip("attaching strace to a process that is not our child needs root")
    command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(member.pid), "-e", f"trace={calls}"]
    command += ["-e", f"inject={only or calls}:{what}"]
    for path in paths:
        command += ["-P", str(path)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGTERM)
        try:
            tracer.wait(60)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait()
        assert tracer.stderr is not None
        tracer.stderr.close()


def log_files(member: MemberProcess) -> list[Path]:
    """The member's log segments, present and spare."""
    return sorted(path for path in member.data_dir.rglob("*") if path.is_file() and "wal" in str(path))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["leader", "follower"])
@pytest.mark.parametrize(
    "calls",
    ["io_submit,fdatasync,fsync", "write,pwrite64,writev,pwritev,pwritev2"],
    ids=["EIO-on-sync", "EIO-on-write"],
)
def test_eio_stops_the_member_and_only_it(calls: str, victim: str, tmp_path: Path) -> None:
    with cluster_of(3, steady=False) as cluster:
        leader = find_leader(cluster)
        failing = leader if victim == "leader" else next(member for member in cluster.members if member is not leader)
        trace = tmp_path / "trace"
        with Workload(cluster.endpoints, clients=4) as workload:
            workload.wait_progress(100)
            # A sync fails whatever its file; a failing write must not hit the sockets, so the files are named.
            paths = [] if "sync" in calls else log_files(failing)
            with injected(failing, calls, "error=EIO", paths=paths, log=trace):
                code = failing.wait_exit()
            assert code != 0
            if not runs_etcd():
                assert code == Exit.STORAGE, f"ended with {code}\n{failing.log_tail()}"
                assert "input/output error" in failing.log().lower(), failing.log_tail()
                if "sync" in calls:
                    failures = [line for line in trace.read_text().splitlines() if "INJECTED" in line]
                    files = {line.split("(", 1)[1].split(")", 1)[0] for line in failures}
                    assert len(failures) == len(files), f"a failed sync was tried again: {failures}"
            workload.wait_progress(100)
            failing.start()
            failing.wait_ready()
            workload.wait_progress(100)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_eio_of_a_sync_that_the_kernel_does_by_itself_stops_the_member(tmp_path: Path) -> None:
    """The end of the sync says EIO: what io_getevents(2) wrote is overwritten, in the fields of struct io_event."""
    with cluster_of(3) as cluster:
        if runs_etcd():
            pytest.skip("etcd's syncs are system calls that wait")
        failing = find_leader(cluster)
        trace = tmp_path / "trace"
        with Workload(cluster.endpoints, clients=4) as workload:
            workload.wait_progress(100)
            event = "poke_exit=@arg4=" + bytes(16).hex() + (-5).to_bytes(8, "little", signed=True).hex()
            calls = "io_getevents,io_submit,fdatasync,fsync"
            with injected(failing, calls, event, paths=[], log=trace, only="io_getevents"):
                code = failing.wait_exit(seconds=60)
            assert code == Exit.STORAGE, f"ended with {code}\n{failing.log_tail()}"
            assert "input/output error" in failing.log().lower(), failing.log_tail()
            seen = trace.read_text()
            after = seen[seen.index("INJECTED") :] if "INJECTED" in seen else ""
            assert after and "io_submit" not in after and "fdatasync" not in after, f"tried again: {seen[-3000:]}"
            workload.wait_progress(100)
            failing.start()
            failing.wait_ready()
            workload.wait_progress(100)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size at `place`; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave not one free block."""
    with (place / FILLER).open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_disk_stops_at_most_its_member_and_loses_nothing(tmp_path: Path) -> None:
    """One member's disk fills up while clients write large values: the others go on; with space again it catches up."""
    with small_disk(tmp_path / "disk", TMPFS_MB) as disk, cluster_of(3, start=False, steady=False) as cluster:
        failing = cluster.members[2]
        failing.data_dir = disk / "data"
        cluster.start()
        with Workload(cluster.endpoints, clients=4) as workload:
            workload.wait_progress(100)
            fill(disk)
            healthy = [member for member in cluster.members if member is not failing]
            writes_large_values(cluster, healthy[0], 150)
            if not failing.running and not runs_etcd():
                assert failing.exit_code == Exit.STORAGE, failing.log_tail()
                assert "no space left" in failing.log().lower(), failing.log_tail()
            workload.wait_progress(100)
            assert all(member.running for member in healthy), "the full disk of one member stopped another"
            (disk / FILLER).unlink()
            if not failing.running:
                failing.start()
            failing.wait_ready(seconds=300)
            workload.wait_progress(100)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)


def writes_large_values(cluster: LocalCluster, member: MemberProcess, megabytes: int) -> None:
    """So much that a segment which was allocated ahead is used up. The same keys, so that stores stay small."""
    with EtcdClient(member.endpoint) as client:
        for number in range(megabytes):

            def put(number: int = number) -> bool:
                try:
                    client.put(b"large/%d" % (number % 20), bytes(1_000_000), timeout=5)
                except grpc.RpcError:  # the leader may be the one whose disk is full
                    return False
                return True

            wait_until(put, 120, f"large value {number} accepted")
