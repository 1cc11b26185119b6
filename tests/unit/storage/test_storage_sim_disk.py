"""The simulated disk's own rules: what survives a power loss, a kill, a failed sync."""

from __future__ import annotations

from random import Random

import pytest

from oarlock.errors import DiskFull, StorageError, SyncFailed
from oarlock.storage.sim_disk import Fault, PowerCut, SimDisk


def durable_file(disk: SimDisk, content: bytes) -> None:
    disk.mkdir("d")
    file = disk.create("d/a")
    file.pwrite(0, content)
    file.datasync()
    disk.sync_dir("d")


def test_unsynced_sectors_take_every_fate() -> None:
    fates = set()
    for seed in range(60):
        disk = SimDisk()
        durable_file(disk, b"o" * 512)
        disk.open("d/a").pwrite(0, b"n" * 512)
        disk.power_loss(Random(seed))
        left = disk.read_raw("d/a")
        fates.add({b"o": "old", b"n": "new", b"\0": "zero"}.get(left[:1] if len(set(left)) == 1 else b"?", "garbage"))
    assert fates == {"old", "new", "zero", "garbage"}


def test_synced_bytes_and_names_survive_and_unsynced_names_may_not() -> None:
    kept, renamed = set(), set()
    for seed in range(30):
        disk = SimDisk()
        durable_file(disk, b"x" * 2000)
        disk.create("d/b").datasync()
        disk.rename("d/a", "d/c")
        disk.power_loss(Random(seed))
        names = disk.listdir("d")
        assert ("a" in names) != ("c" in names), "a rename is atomic"
        assert disk.read_raw("d/a" if "a" in names else "d/c") == b"x" * 2000
        kept.add("b" in names)
        renamed.add("c" in names)
    assert kept == renamed == {True, False}


def test_an_unsynced_size_is_old_or_new() -> None:
    sizes = set()
    for seed in range(30):
        disk = SimDisk()
        durable_file(disk, b"x" * 100)
        disk.open("d/a").pwrite(100, b"y" * 1000)
        disk.power_loss(Random(seed))
        sizes.add(len(disk.read_raw("d/a")))
        assert disk.read_raw("d/a")[:0] == b""
    assert sizes == {100, 1100}


def test_kill_keeps_everything_but_handles_and_locks() -> None:
    disk = SimDisk()
    durable_file(disk, b"x")
    file = disk.open("d/a")
    file.pwrite(0, b"y")
    disk.lock("d/lock")
    disk.kill()
    assert disk.read_raw("d/a") == b"y" and not disk.is_locked("d/lock")
    with pytest.raises(StorageError, match="closed"):
        file.pread(0, 1)


def test_a_failed_sync_leaves_clean_pages_and_lies_afterwards() -> None:
    disk = SimDisk()
    durable_file(disk, b"o" * 512)
    file = disk.open("d/a")
    file.pwrite(0, b"n" * 512)
    disk.inject("sync", Fault.EIO)
    with pytest.raises(SyncFailed):
        file.datasync()
    with pytest.raises(SyncFailed, match="not used any more"):
        file.datasync()
    other = disk.open("d/a")
    other.datasync()  # says that all is well ...
    assert other.pread(0, 1) == b"n"
    disk.power_loss(Random(1))
    assert disk.read_raw("d/a") == b"o" * 512  # ... and it never was


def test_dropping_the_cache_shows_what_a_failed_sync_left() -> None:
    disk = SimDisk()
    durable_file(disk, b"o" * 512)
    file = disk.open("d/a")
    file.pwrite(0, b"n" * 512)
    disk.inject("sync", Fault.EIO)
    with pytest.raises(SyncFailed):
        file.datasync()
    disk.drop_caches()
    assert disk.read_raw("d/a") == b"o" * 512


def test_faults_hit_the_operation_that_was_asked_for() -> None:
    disk = SimDisk()
    durable_file(disk, b"")
    file = disk.open("d/a")
    disk.inject("write", Fault.EIO, after=1)
    file.pwrite(0, b"first")
    with pytest.raises(StorageError, match="input/output"):
        file.pwrite(0, b"second")
    file.pwrite(0, b"third")
    disk.inject("write", Fault.SHORT, path_part="d/a")
    with pytest.raises(DiskFull):
        file.pwrite(0, b"ABCDEF")
    assert file.pread(0, 9) == b"ABCrd"
    disk.inject("rename", Fault.ENOSPC, sticky=True)
    for _ in range(3):
        with pytest.raises(DiskFull):
            disk.rename("d/a", "d/b")
    disk.clear_faults()
    disk.rename("d/a", "d/b")
    disk.read_only = True
    with pytest.raises(StorageError, match="read-only"):
        disk.create("d/c")


def test_a_full_disk() -> None:
    disk = SimDisk(capacity_bytes=1000)
    durable_file(disk, b"x" * 600)
    file = disk.open("d/a")
    with pytest.raises(DiskFull):
        file.pwrite(600, b"y" * 500)
    assert disk.free_bytes("d") == 0
    file.truncate(0)
    file.pwrite(0, b"z" * 1000)


def test_the_power_goes_before_the_operation_asked_for() -> None:
    disk = SimDisk()
    durable_file(disk, b"x")
    file = disk.open("d/a")
    disk.cut_at = disk.operations + 1
    file.pwrite(0, b"1")
    with pytest.raises(PowerCut):
        file.pwrite(0, b"2")
    with pytest.raises(PowerCut, match="off"):
        disk.listdir("d")
    disk.kill()
    assert disk.read_raw("d/a") == b"1"


def test_rot() -> None:
    disk = SimDisk()
    durable_file(disk, b"a" * 512 + b"b" * 512)
    disk.flip_bit("d/a", 3, 1)
    assert disk.read_raw("d/a")[3] == ord("a") ^ 2
    disk.misdirect("d/a", 1, "d/a", 0)
    assert disk.read_raw("d/a") == b"b" * 1024
    disk.put_sector("d/a", 1)
    disk.power_loss(Random(0))
    assert disk.read_raw("d/a") == b"b" * 512 + bytes(512)
    file = disk.open("d/a")
    file.pwrite(0, b"c" * 512)
    file.datasync()
    assert disk.stale_sector("d/a", 0) and disk.read_raw("d/a")[:1] == b"b"
    assert not disk.stale_sector("d/a", 9)


def test_the_same_seed_gives_the_same_disk() -> None:
    left = []
    for _ in range(2):
        disk = SimDisk()
        durable_file(disk, b"o" * 9000)
        disk.open("d/a").pwrite(100, b"n" * 20000)
        disk.power_loss(Random(42))
        left.append(disk.read_raw("d/a"))
    assert left[0] == left[1]
