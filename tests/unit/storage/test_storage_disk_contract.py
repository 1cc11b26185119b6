"""What every `Disk` must do: the same tests for the real one and the simulated one."""

from __future__ import annotations

import errno
import select
from pathlib import Path

import pytest

from oarlock.errors import DirectoryInUse, StorageError, SyncFailed
from oarlock.node.kernel_sync import KernelSync
from oarlock.storage.disk import Disk
from oarlock.storage.real_disk import IOV_MAX, RealDisk
from oarlock.storage.sim_disk import SimDisk


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    disk: Disk = RealDisk() if request.param == "real" else SimDisk()
    root = f"{tmp_path}/data" if request.param == "real" else "/data"
    disk.mkdir(root)
    return disk, root


def test_bytes_come_back(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.pwrite(0, b"hello")
    file.pwrite(5, [b" ", bytearray(b"wor"), memoryview(b"ld")])
    file.datasync()
    assert (file.pread(0, 100), file.pread(6, 3), file.pread(100, 3), file.size()) == (b"hello world", b"wor", b"", 11)
    file.close()
    file.close()
    again = disk.open(f"{root}/a", write=False)
    assert again.pread(0, 100) == b"hello world" and again.path == f"{root}/a"
    again.close()


def test_write_past_the_end_leaves_zeros_between(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.pwrite(3, b"x")
    assert file.pread(0, 10) == b"\0\0\0x"
    file.close()


def test_more_buffers_than_one_call_takes(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    buffers = [bytes([n % 251]) * 3 for n in range(IOV_MAX * 2 + 5)]
    file.pwrite(7, buffers)
    assert file.pread(7, 1 << 20) == b"".join(buffers)
    file.close()


def test_truncate_and_fill(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.pwrite(0, b"abcdef")
    file.truncate(2)
    assert file.pread(0, 9) == b"ab"
    file.truncate(4)
    assert file.pread(0, 9) == b"ab\0\0"
    file.fill_zeros(1, 3_000_000)
    assert file.size() == 3_000_001 and file.pread(0, 2) == b"a\0"
    file.close()


def test_create_empties_what_is_there(place: tuple[Disk, str]) -> None:
    disk, root = place
    for content in (b"first", b"2"):
        file = disk.create(f"{root}/a")
        file.pwrite(0, content)
        file.close()
    assert disk.open(f"{root}/a").pread(0, 9) == b"2"


def test_names(place: tuple[Disk, str]) -> None:
    disk, root = place
    for name in ("b", "a", "c"):
        disk.create(f"{root}/{name}").close()
    disk.rename(f"{root}/b", f"{root}/a")
    disk.unlink(f"{root}/c")
    disk.sync_dir(root)
    assert disk.listdir(root) == ["a"] and disk.exists(f"{root}/a") and not disk.exists(f"{root}/b")
    disk.mkdir(f"{root}/x/y")
    disk.mkdir(f"{root}/x/y")
    assert disk.listdir(root) == ["a", "x"]
    assert disk.free_bytes(root) > 0


def test_an_open_file_survives_its_name(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.pwrite(0, b"old")
    disk.create(f"{root}/b").close()
    disk.rename(f"{root}/b", f"{root}/a")
    assert file.pread(0, 9) == b"old" and disk.open(f"{root}/a").pread(0, 9) == b""
    file.close()


def test_a_lock_is_exclusive_and_ends(place: tuple[Disk, str]) -> None:
    disk, root = place
    assert not disk.is_locked(f"{root}/lock")
    lock = disk.lock(f"{root}/lock")
    assert disk.is_locked(f"{root}/lock")
    with pytest.raises(DirectoryInUse, match="in use"):
        disk.lock(f"{root}/lock")
    lock.release()
    lock.release()
    assert not disk.is_locked(f"{root}/lock")
    disk.lock(f"{root}/lock").release()


@pytest.mark.parametrize("what", ["open", "unlink", "rename", "listdir", "sync_dir", "create", "across", "file as dir"])
def test_what_is_not_there_is_a_storage_error(place: tuple[Disk, str], what: str) -> None:
    disk, root = place
    disk.mkdir(f"{root}/d")
    disk.create(f"{root}/f").close()
    missing = f"{root}/missing"
    with pytest.raises(StorageError) as caught:
        match what:
            case "open":
                disk.open(missing)
            case "unlink":
                disk.unlink(missing)
            case "rename":
                disk.rename(missing, f"{root}/b")
            case "listdir":
                disk.listdir(missing)
            case "sync_dir":
                disk.sync_dir(missing)
            case "create":
                disk.create(f"{missing}/a")
            case "across":
                disk.rename(f"{root}/f", f"{root}/d/f")
            case _:
                disk.mkdir(f"{root}/f/x")
    assert root in str(caught.value) and caught.value.path.startswith(root)


def test_a_closed_file_refuses(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.close()
    with pytest.raises(StorageError, match="closed"):
        file.pwrite(0, b"x")
    reader = disk.open(f"{root}/a", write=False)
    with pytest.raises(StorageError):
        reader.pwrite(0, b"x")
    reader.close()


def test_a_sync_in_two_halves(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")
    file.pwrite(0, b"hello")
    kernel = KernelSync()
    try:
        assert file.begin_datasync(kernel)
        if kernel.under_way:
            assert select.select([kernel.fileno()], [], [], 20)[0]
            assert kernel.result() == 0 and kernel.result() == -1
        file.end_datasync(0)
        file.pwrite(5, b"!")
        assert file.pread(0, 9) == b"hello!"
    finally:
        kernel.close()
        file.close()


def test_a_sync_in_two_halves_that_failed_is_never_tried_again(place: tuple[Disk, str]) -> None:
    disk, root = place
    file = disk.create(f"{root}/a")

    class Kernel:
        def begin(self, fd: int) -> None: ...

    assert file.begin_datasync(Kernel())
    with pytest.raises(SyncFailed, match="cannot sync"):
        file.end_datasync(errno.EIO)
    for use in (file.datasync, lambda: file.begin_datasync(Kernel()), lambda: file.pwrite(0, b"x")):
        with pytest.raises(StorageError):
            use()
    file.close()
