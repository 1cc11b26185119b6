"""What only the real disk does: permissions, owners, and the mapping of operating system errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from oarlock.errors import DirectoryInUse, DiskFull, StorageError, SyncFailed
from oarlock.raft.types import Entry, HardState, SnapshotMeta
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.records import Identity
from oarlock.storage.wal import WriteAheadLog


def failing(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_new_directories_are_private(tmp_path: Path) -> None:
    RealDisk().mkdir(f"{tmp_path}/a/b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o711])
def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(StorageError, match="chmod 700"):
        RealDisk().mkdir(f"{tmp_path}/a")


def test_a_foreign_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    monkeypatch.setattr("oarlock.storage.real_disk.os.geteuid", lambda: 4711)
    with pytest.raises(StorageError, match="runs as uid 4711"):
        RealDisk().mkdir(f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "free some space"),
        (errno.EDQUOT, DiskFull, "quota"),
        (errno.EIO, StorageError, "device"),
        (errno.EROFS, StorageError, "writable"),
        (errno.EACCES, StorageError, "must own it"),
    ],
)
def test_write_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type, words: str) -> None:
    file = RealDisk().create(f"{tmp_path}/a")
    monkeypatch.setattr("oarlock.storage.real_disk.os.pwritev", failing(number))
    with pytest.raises(StorageError, match=words) as caught:
        file.pwrite(0, b"x")
    assert type(caught.value) is kind and caught.value.path == f"{tmp_path}/a"
    file.close()


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RealDisk().create(f"{tmp_path}/a")
    monkeypatch.setattr(
        "oarlock.storage.real_disk.os.pwritev", lambda fd, buffers, offset: os.pwrite(fd, b"".join(buffers)[:3], offset)
    )
    file.pwrite(2, [b"abcd", b"efgh"])
    assert file.pread(0, 99) == b"\0\0abcdefgh"
    file.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = RealDisk().create(f"{tmp_path}/a")
    monkeypatch.setattr("oarlock.storage.real_disk.os.fdatasync", failing(number))
    with pytest.raises(SyncFailed, match="cannot sync"):
        file.datasync()
    monkeypatch.undo()
    for use in (file.datasync, file.size, lambda: file.pwrite(0, b"x"), lambda: file.pread(0, 1)):
        with pytest.raises(SyncFailed, match="not used any more"):
            use()
    file.close()


def test_a_failed_directory_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oarlock.storage.real_disk.os.fsync", failing(errno.EIO))
    with pytest.raises(SyncFailed, match="sync the directory"):
        RealDisk().sync_dir(str(tmp_path))


def test_two_processes_on_one_directory(tmp_path: Path) -> None:
    log = WriteAheadLog.create(RealDisk(), f"{tmp_path}/wal", Identity(1, 2, 3), segment_bytes=4096)
    script = (
        "import sys\nfrom oarlock.storage.real_disk import RealDisk\nfrom oarlock.storage.wal import WriteAheadLog\n"
        "WriteAheadLog.open(RealDisk(), sys.argv[1])\n"
    )
    second = subprocess.run(
        [sys.executable, "-c", script, f"{tmp_path}/wal"], capture_output=True, text=True, timeout=200,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), check=False,
    )  # fmt: skip
    assert "DirectoryInUse" in second.stderr and str(os.getpid()) in second.stderr
    log.close()
    with pytest.raises(StorageError):
        log.sync()
    WriteAheadLog.open(RealDisk(), f"{tmp_path}/wal", segment_bytes=4096)[0].close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="must own it"):
        WriteAheadLog.create(RealDisk(), f"{tmp_path}/a", Identity(1, 2, 3))


def test_the_lock_of_a_second_log_in_one_process(tmp_path: Path) -> None:
    log = WriteAheadLog.create(RealDisk(), f"{tmp_path}/wal", Identity(1, 2, 3), segment_bytes=4096)
    with pytest.raises(DirectoryInUse):
        WriteAheadLog.open(RealDisk(), f"{tmp_path}/wal", segment_bytes=4096)
    log.close()


WRITER = """
import sys
from oarlock.raft.types import Entry, HardState, SnapshotMeta
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import Identity, WriteAheadLog
log = WriteAheadLog.create(RealDisk(), sys.argv[1], Identity(1, 2, 3), segment_bytes=16384)
for index in range(1, 1_000_000):
    log.append(0, HardState(1, 1, index - 1), [Entry(1, index, 0, b"%d" % index * 40)])
    if index % 100 == 0:
        log.append(0, None, (), snapshot=SnapshotMeta(index - 20, 1))
    log.sync()
    print(index, flush=True)
    if index % 100 == 0:
        log.release(0, index - 40)
        log.prepare_next()
"""


def test_sigkill_in_the_middle_of_writing(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, f"{tmp_path}/wal"],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(330)]
    writer.kill()
    acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
    writer.wait()
    writer.stdout.close()
    log, found = WriteAheadLog.open(RealDisk(), f"{tmp_path}/wal", expected=(1, 2), segment_bytes=16384)
    log.close()
    entries = found.groups[0].entries
    assert acknowledged[-1] <= entries[-1].index <= acknowledged[-1] + 1
    assert entries[0].index <= found.groups[0].snapshot.index - 19 and found.groups[0].snapshot.index >= 280
    assert all(entry.payload == b"%d" % entry.index * 40 for entry in entries)


def test_append_sync_and_upkeep_on_three_threads(tmp_path: Path) -> None:
    """The division of labour that the runtime uses; every hand-over is counted, nothing waits for a clock."""
    log = WriteAheadLog.create(RealDisk(), f"{tmp_path}/wal", Identity(1, 2, 3), segment_bytes=16384)
    appended: SimpleQueue[int] = SimpleQueue()
    synced: SimpleQueue[int] = SimpleQueue()
    total = 600

    def sync() -> None:
        while (index := appended.get()) <= total:
            log.sync()
            synced.put(index)
        synced.put(total + 1)

    def upkeep() -> None:
        while (index := synced.get()) <= total:
            log.release(0, index - 50)
            log.prepare_next()

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(sync), pool.submit(upkeep)]
        for index in range(1, total + 1):
            mark = SnapshotMeta(index - 30, 1) if index % 50 == 0 else None
            log.append(0, None, (), snapshot=mark)
            log.append(0, HardState(1, 1, index - 1), [Entry(1, index, 0, bytes(400))])
            appended.put(index)
        appended.put(total + 1)
        for job in work:
            job.result(timeout=200)
    assert log.segment_count < 10
    log.close()
    log, found = WriteAheadLog.open(RealDisk(), f"{tmp_path}/wal", segment_bytes=16384)
    log.close()
    assert found.groups[0].last_index == total and found.repaired == ""
