"""The kernel syncs by itself, says how it ended once, and what cannot do it says so before anything is at stake."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import pytest

from oarlock.node import kernel_sync
from oarlock.node.kernel_sync import KernelSync
from oarlock.raft.types import Entry, HardState
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.records import Identity
from oarlock.storage.wal import WriteAheadLog


def ended(kernel: KernelSync) -> int:
    assert select.select([kernel.fileno()], [], [], 20)[0], "the sync does not end"
    return kernel.result()


def test_many_syncs_one_after_the_other(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    kernel = KernelSync()
    try:
        assert kernel.result() == -1, "nothing was begun"
        for n in range(50):
            os.pwrite(fd, b"x" * 100, 100 * n)
            kernel.begin(fd)
            assert ended(kernel) == 0
            assert not select.select([kernel.fileno()], [], [], 0)[0] and kernel.result() == -1
    finally:
        kernel.close()
        kernel.close()
        os.close(fd)


def test_what_cannot_be_synced_is_refused_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    kernel = KernelSync()
    read, write = os.pipe()
    try:
        for descriptor, code in ((write, errno.EINVAL), (99_999, errno.EBADF)):
            with pytest.raises(OSError) as caught:
                kernel.begin(descriptor)
            assert caught.value.errno == code and not kernel.under_way
        fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
        kernel.begin(fd)
        assert ended(kernel) == 0
        os.close(fd)
    finally:
        kernel.close()
        os.close(read)
        os.close(write)


def test_no_descriptor_and_no_context_is_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(300):  # the kernel has 65,536 contexts for all processes
        KernelSync().close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["machine", "refused", "old"])
def test_where_it_cannot_be_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    if what == "machine":
        monkeypatch.setattr(kernel_sync.platform, "machine", lambda: "sparc")
    elif what == "refused":
        monkeypatch.setattr(kernel_sync, "_NUMBERS", {kernel_sync.platform.machine(): (99_999,) * 4})
    else:
        monkeypatch.setattr(kernel_sync, "_FDSYNC", 77)

    with pytest.raises(OSError):
        KernelSync()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_log_on_a_real_disk(tmp_path: Path) -> None:
    log = WriteAheadLog.create(RealDisk(), f"{tmp_path}/wal", Identity(1, 2, 3), segment_bytes=4096)
    kernel = KernelSync()
    for n in range(1, 9):
        log.append(0, HardState(1, 1, n - 1), [Entry(1, n, 0, b"%d" % n)])
        assert log.begin_sync(kernel)
        log.append(0, None, [])  # appended meanwhile: the next batch
        log.end_sync(ended(kernel))
    kernel.close()
    assert not log.begin_sync(kernel), "closed: it takes none"
    log.sync()
    log.close()
    again, recovered = WriteAheadLog.open(RealDisk(), f"{tmp_path}/wal", segment_bytes=4096)
    assert [e.payload for e in recovered.groups[0].entries] == [b"%d" % n for n in range(1, 9)]
    again.close()
