"""Backups, restores into new clusters, and recovery from a lost majority: real processes and real files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.clusters import (
    assert_all_equal,
    cluster_of,
    contents,
    find_leader,
    runs_etcd,
    wait_until,
)
from tests.support.etcd_wire import EtcdClient
from tests.system.test_member_changes import Ctl

from oarlock.cli.local_cluster import LocalCluster
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.backup import BackupHeader, encode_backup
from oarlock.machines.kv.machine import KvMachine
from oarlock.node.survivor import NOTE, recover

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(runs_etcd(), reason="formats and commands of our own")]


def cli(*arguments: str, code: int = 0) -> str:
    """Run `oarlock ARGUMENTS`; returns stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, "-m", "oarlock", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def restore_commands(cluster: LocalCluster, backup: Path, *more: str) -> list[list[str]]:
    return [
        [
            "snapshot", "restore", str(backup), f"--name={m.name}", f"--data-dir={m.data_dir}",
            f"--initial-cluster={cluster.initial_cluster}", f"--initial-cluster-token={cluster.token}",
            f"--initial-advertise-peer-urls={m.peer_url}", *more,
        ]
        for m in cluster.members
    ]  # fmt: skip


def write_backup(path: Path, *, keys: int = 50, size: int = 10) -> KvMachine:
    """A backup file that no server made; returns the machine with its state."""
    machine = KvMachine.in_memory()
    for n in range(1, keys + 1):
        machine.apply(Context(n, 2, n), [kv.encode(kv.Put(b"key/%05d" % (n % (keys // 2 + 1)), os.urandom(size)))])
    machine.annex_put(b"session/" + bytes(8), b"x")
    header = BackupHeader(1, 2, machine.applied_index, 2, machine.revision, "0")
    path.write_bytes(b"".join(encode_backup(header, machine.capture().chunks())))
    return machine


def state_of(machine: KvMachine) -> tuple[int, list[tuple[bytes, bytes, int, int, int]]]:
    found = machine.range(kv.Range(b"\0", b"\0"))
    assert isinstance(found, kv.RangeResult)
    from oarlock.api import proto

    rows = [proto.message("mvccpb.KeyValue").FromString(data) for data in found.kvs]
    return machine.revision, [(r.key, r.value, r.create_revision, r.mod_revision, r.version) for r in rows]


@pytest.mark.parametrize("storage", ["lmdb", "memory"])
def test_a_restored_cluster_has_every_key_and_revision_and_takes_new_members(tmp_path: Path, storage: str) -> None:
    backup = tmp_path / "backup.db"
    revision, rows = state_of(write_backup(backup))
    with cluster_of(3, f"--storage={storage}", start=False) as cluster:
        ids = set()
        for command in restore_commands(cluster, backup, f"--storage={storage}"):
            ids.add(cli(*command).split()[-1])
        assert len(ids) == 1, "all members are of one new cluster"
        cluster.start()
        for member in cluster.members:
            wait_until(lambda member=member: contents(member)[1] == rows, 120, "it has every key")  # type: ignore[misc]
            assert contents(member)[0] == revision
        ctl = Ctl(cluster)
        ctl("put", "after", "1")
        joined = ctl.add("m4")
        joined.start()
        joined.wait_ready()
        assert len(assert_all_equal(cluster)) == len(rows) + 1
        assert "is not empty" in cli(*restore_commands(cluster, backup)[0], code=1)


def test_a_raised_revision_ends_old_reads(tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    revision, rows = state_of(write_backup(backup))
    with cluster_of(1, start=False) as cluster:
        cli(*restore_commands(cluster, backup, "--bump-revision=1000000", "--mark-compacted")[0])
        cluster.start()
        assert contents(cluster.members[0]) == (revision + 1_000_000, rows)
        ctl = Ctl(cluster)
        assert "required revision has been compacted" in ctl.fails("get", "key/00001", f"--rev={revision}")
        ctl("put", "k", "v")
        assert json.loads(ctl("get", "k", "-w", "json"))["kvs"][0]["mod_revision"] == revision + 1_000_001


def test_a_damaged_backup_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    write_backup(backup)
    good = json.loads(cli("snapshot", "status", str(backup), "-w", "json"))
    assert good["totalKey"] == 26
    assert good["totalSize"] == backup.stat().st_size
    assert "| TOTAL KEYS |" in cli("snapshot", "status", str(backup), "-w", "table")
    data = bytearray(backup.read_bytes())
    data[len(data) // 2] ^= 1
    backup.write_bytes(data)
    for command in (
        ["snapshot", "status", str(backup)],
        ["snapshot", "restore", str(backup), f"--data-dir={tmp_path}/new"],
    ):
        told = cli(*command, code=2)
        assert "offset" in told
        assert "Take another copy" in told
    assert not (tmp_path / "new").exists()
    backup.write_bytes(data[:700])
    assert "too early" in cli("snapshot", "restore", str(backup), f"--data-dir={tmp_path}/new", code=2)
    assert not (tmp_path / "new").exists()


def test_a_restore_killed_at_any_moment_leaves_all_or_nothing(tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    revision, rows = state_of(write_backup(backup, keys=400, size=2000))
    chance = random.Random(7)
    killed = 0
    with cluster_of(1, start=False) as cluster:
        (command,) = restore_commands(cluster, backup)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "oarlock", *command], capture_output=True, check=True)
        whole = time.monotonic() - began
        assert b"restored" in done.stdout
        target = cluster.members[0].data_dir
        for number in range(60):
            if number >= 8 and killed:
                break
            target.rename(tmp_path / f"made-{number}") if target.exists() else None
            process = subprocess.Popen([sys.executable, "-m", "oarlock", *command], stdout=subprocess.DEVNULL)
            time.sleep(whole * (0.1 + 0.9 * chance.random()))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            if target.exists():  # then it is whole
                assert sorted(p.name for p in target.iterdir()) == ["kv", "wal"]
        assert killed
        if not target.exists():
            cli(*command)
        cluster.start()
        assert contents(cluster.members[0]) == (revision, rows)


def test_a_survivor_of_three_becomes_a_cluster_of_one_and_grows_again(tmp_path: Path) -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        for n in range(30):
            ctl("put", f"k{n}", "v")
        rows = assert_all_equal(cluster)
        leader = find_leader(cluster)
        survivor = next(m for m in cluster.members if m is not leader)
        old_cluster = json.loads(ctl("member", "list", "-w", "json"))["header"]["cluster_id"]
        cluster.kill_all()
        told = cli("recover", str(survivor.data_dir))
        assert "nothing was changed" in told
        assert "cannot be known from this disk" in told
        told = cli("recover", "--yes", str(survivor.data_dir))
        assert "the old directory is" in told
        kept = survivor.data_dir.with_name(survivor.data_dir.name + ".before-recovery-1")
        assert (kept / "wal").is_dir()
        others = [m for m in cluster.members if m is not survivor]
        cluster.members = [survivor]
        survivor.start()
        survivor.wait_ready()
        assert contents(survivor)[1] == rows
        ctl("put", "after", "1")
        listed = json.loads(ctl("member", "list", "-w", "json"))
        assert len(listed["members"]) == 1
        assert listed["header"]["cluster_id"] != old_cluster
        # An old member that comes back is of another cluster: neither hears the other.
        cluster.members = [survivor, others[0]]
        others[0].start()
        wait_until(lambda: "is of cluster" in others[0].log(), 120, "it is refused")
        others[0].kill()
        cluster.members = [survivor]
        grown = ctl.add("m9")
        grown.start()
        grown.wait_ready()
        assert len(assert_all_equal(cluster)) == 31
        cluster.members += others


def test_force_new_cluster_does_it_once(tmp_path: Path) -> None:
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        ctl("put", "k", "v")
        assert_all_equal(cluster)
        cluster.kill_all()
        survivor = cluster.members[1]
        survivor.extra_flags = ("--force-new-cluster",)
        survivor.start()
        survivor.wait_ready()
        with EtcdClient(survivor.endpoint) as client:
            assert client.get(b"k").kvs[0].value == b"v"
            first = client.status().header.cluster_id
        assert survivor.terminate() == 0
        survivor.start()  # the flag was left in the unit
        survivor.wait_ready()
        with EtcdClient(survivor.endpoint) as client:
            assert client.status().header.cluster_id == first
        assert "has nothing to do" in survivor.log()


def test_an_interrupted_recovery_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster_of(3) as cluster:
        Ctl(cluster)("put", "k", "v")
        assert_all_equal(cluster)
        cluster.kill_all()
        survivor = cluster.members[0]
        renames: list[Any] = []
        real = os.rename

        def rename(old: Any, new: Any) -> None:
            renames.append((old, new))
            if Path(new) == survivor.data_dir:
                raise KeyboardInterrupt
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            recover(str(survivor.data_dir))
        monkeypatch.undo()
        assert not survivor.data_dir.exists()
        assert "is finished" in cli("recover", "--yes", str(survivor.data_dir))
        assert (survivor.data_dir / NOTE).exists()
        survivor.start()
        survivor.wait_ready()
        assert len(contents(survivor)[1]) == 1


def test_recovery_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with cluster_of(1) as cluster:
        member = cluster.members[0]
        assert "in use" in cli("recover", "--yes", str(member.data_dir), code=2)
        member.kill()
        assert "cluster of one already" in cli("recover", "--yes", str(member.data_dir), code=1)
        assert "no log" in cli("recover", "--yes", str(tmp_path), code=2)


def test_a_backup_of_a_running_cluster_holds_keys_leases_and_users(tmp_path: Path) -> None:
    """Saved by `oarlock` and by stock etcdctl 3.4 and 3.5, at any member, with authentication on."""
    with cluster_of(3) as cluster:
        ctl = Ctl(cluster)
        lease = ctl("lease", "grant", "5000").split()[1]
        ctl("put", "leased", "1", f"--lease={lease}")
        for n in range(40):
            ctl("put", f"k{n % 13}", str(n))
        ctl("user", "add", "root:secret")
        ctl("user", "grant-role", "root", "root")
        ctl("user", "add", "reader:word")
        ctl("role", "add", "reads")
        ctl("role", "grant-permission", "reads", "read", "k1")
        ctl("user", "grant-role", "reader", "reads")
        ctl("auth", "enable")
        root = "--user=root:secret"
        for member in cluster.members:  # one that has not applied it yet would give no token
            wait_until(lambda member=member: ctl.run("get", "k1", root, at=member).returncode == 0, 120, "rights")  # type: ignore[misc]
        assert ctl("put", "last", "1", root) == "OK\n"
        rows = ctl("get", "", "--prefix", root)
        for member in cluster.members:  # a backup is of what its member has applied
            assert ctl("get", "last", root, at=member) == "last\n1\n"
        denied = tmp_path / "denied.db"
        assert "permission denied" in cli(
            "snapshot", "save", str(denied), f"--endpoints={cluster.endpoints[0]}", "--user=reader:word", code=1
        )
        assert not list(tmp_path.iterdir())
        files = []
        for number, member in enumerate(cluster.members):
            file = tmp_path / f"own-{number}.db"
            told = cli("snapshot", "save", str(file), f"--endpoints={member.endpoint}", root)
            assert "Snapshot saved at" in told
            assert file.stat().st_mode & 0o077 == 0
            files.append(file)
        for version in ("3.5", "3.4"):
            file = tmp_path / f"etcdctl-{version}.db"
            stock = Ctl(cluster, version)
            stock("snapshot", "save", str(file), root, at=cluster.members[1])
            files.append(file)
        reports = [json.loads(cli("snapshot", "status", str(file), "-w", "json")) for file in files]
        assert {report["revision"] for report in reports} == {43}
        assert {report["totalKey"] for report in reports} == {15}
        assert "exists: choose another name" in cli("snapshot", "save", str(files[0]), code=1)
    with cluster_of(1, start=False) as cluster:
        cli(*restore_commands(cluster, files[-1])[0])
        cluster.start()
        ctl = Ctl(cluster)
        assert "user name is empty" in ctl.fails("get", "k1")
        assert ctl("get", "", "--prefix", root) == rows
        assert ctl("get", "k1", "--user=reader:word").startswith("k1\n")
        assert "permission denied" in ctl.fails("get", "k2", "--user=reader:word")
        left = json.loads(ctl("lease", "timetolive", lease, "--keys", "-w", "json", root))
        assert left["ttl"] > 4900
        assert len(left["keys"]) == 1
        assert cli("snapshot", "save", str(tmp_path / "again.db"), f"--endpoints={cluster.endpoints[0]}", root)


def test_a_server_that_is_not_there_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    assert "cannot reach" in cli("snapshot", "save", str(file), "--endpoints=127.0.0.1:1", code=1)
    assert not list(tmp_path.iterdir())
