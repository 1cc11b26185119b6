"""What storage asks of a disk, and nothing more. `RealDisk` and `SimDisk` pass the same contract tests.

Three facts shape the protocol. A write is durable only after `datasync` of its file; a name (created, renamed, removed)
only after `sync_dir` of its directory; and after a failed sync nobody knows what the kernel kept, so a file that failed
to sync refuses everything but `close` (ATC'20, "Can applications recover from fsync failures?").

Every method may raise `StorageError`: `DiskFull` for ENOSPC and EDQUOT, `SyncFailed` for any failed sync, the base
class for the rest. Paths are plain strings with `/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview

SECTOR_BYTES = 512
"""The unit in which a disk is believed to write: after a power loss each sector is decided on its own."""


class KernelSyncs(Protocol):
    """Whoever syncs descriptors while we do other things: `KernelSync`."""

    def begin(self, fd: int) -> None:
        """Raises `OSError` if it cannot; then nothing was begun."""


class File(Protocol):
    """An open file. Offsets and sizes are bytes."""

    @property
    def path(self) -> str:
        """Where it was opened; a rename does not change this."""

    def pwrite(self, offset: int, data: Bytes | Sequence[Bytes]) -> None:
        """Write all of `data` (a list is written as if joined), extending the file as needed. After an error any part
        of it may have been written."""

    def pread(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None:
        """Cut or extend (with zeros) to `size` bytes."""

    def fill_zeros(self, offset: int, size: int) -> None:
        """Write `size` real zeros, so that the blocks exist and a later write there needs no new space."""

    def datasync(self) -> None:
        """Make contents and size durable. On `SyncFailed` the file is unusable; it must never be tried again."""

    def begin_datasync(self, kernel: KernelSyncs) -> bool:
        """Have `kernel` begin what `datasync` does; `end_datasync` is called when it has ended, and nothing else until
        then. False if it takes no sync now: nothing was begun."""

    def end_datasync(self, code: int) -> None:
        """The sync that was begun has ended, with 0 or with an `errno`. Raises what `datasync` would have raised."""

    def close(self) -> None:
        """Give the file back. Does not sync. Closing twice is allowed."""


class Lock(Protocol):
    """Exclusive use of something; ends with `release` or with the process."""

    def release(self) -> None: ...


class Disk(Protocol):
    """Names and files."""

    def open(self, path: str, *, write: bool = True) -> File:
        """Open an existing file."""

    def create(self, path: str) -> File:
        """Create `path`, or empty it if it is there, and open it for writing."""

    def rename(self, old: str, new: str) -> None:
        """Atomically give a file another name in the same directory, replacing what had that name."""

    def unlink(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    def mkdir(self, path: str) -> None:
        """Make sure that `path` is a directory that only we can enter, creating it and its parents (mode 0700)."""

    def exists(self, path: str) -> bool: ...

    def sync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""

    def lock(self, path: str) -> Lock:
        """Take the lock file `path`, creating it. Raises `DirectoryInUse` if somebody holds it; never waits."""

    def is_locked(self, path: str) -> bool:
        """Whether somebody holds the lock file. Changes nothing."""

    def free_bytes(self, path: str) -> int:
        """How much could still be written to the file system that holds `path`."""


def parent_of(path: str) -> str:
    """The directory that holds `path`."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head if head else (slash or ".")


def aligned(offset: int) -> int:
    """`offset`, rounded up to a sector."""
    return (offset + SECTOR_BYTES - 1) // SECTOR_BYTES * SECTOR_BYTES
