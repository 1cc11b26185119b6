"""The `Disk` of the operating system: `os`, `fcntl`, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from oarlock.errors import DirectoryInUse, DiskFull, StorageError, SyncFailed
from oarlock.storage.disk import Bytes, KernelSyncs, parent_of

IOV_MAX = 1024  # Linux's limit of buffers for one pwritev
ZERO_BLOCK = bytes(1 << 20)


def storage_error(error: OSError, what: str, path: str) -> StorageError:
    """The storage error that an operating system error stands for; the text says what to do."""
    reason = f"cannot {what} {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{reason}; free some space or raise the quota, then start again", path=path)
    if error.errno == errno.EROFS:
        return StorageError(
            f"{reason}; mount the file system writable (a kernel remounts read-only after disk errors)", path=path
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(f"{reason}; the user that runs Oarlock (uid {os.geteuid()}) must own it", path=path)
    if error.errno == errno.EIO:
        return StorageError(
            f"{reason}; the device reports a failure, look at the kernel's log and replace it", path=path
        )
    return StorageError(reason, path=path)


class RealFile:
    """A file descriptor. After a failed sync every method but `close` raises `SyncFailed`."""

    __slots__ = ("_failed", "_fd", "_path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._failed = False

    @property
    def path(self) -> str:
        return self._path

    def pwrite(self, offset: int, data: Bytes | Sequence[Bytes]) -> None:
        self._usable()
        buffers: Sequence[Bytes] = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        if len(buffers) > IOV_MAX:
            buffers = [b"".join(buffers)]
        total = sum(map(len, buffers))
        try:
            written = os.pwritev(self._fd, buffers, offset)
            if written < total:  # a signal or a nearly full disk: the rest, until it is written or an error says why
                rest = memoryview(b"".join(buffers))
                while written < total:
                    written += os.pwrite(self._fd, rest[written:], offset + written)
        except OSError as error:
            raise storage_error(error, "write", self._path) from error

    def pread(self, offset: int, size: int) -> bytes:
        self._usable()
        parts: list[bytes] = []
        try:
            while size > 0:
                part = os.pread(self._fd, size, offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                size -= len(part)
        except OSError as error:
            raise storage_error(error, "read", self._path) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def size(self) -> int:
        self._usable()
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise storage_error(error, "inspect", self._path) from error

    def truncate(self, size: int) -> None:
        self._usable()
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise storage_error(error, "truncate", self._path) from error

    def fill_zeros(self, offset: int, size: int) -> None:
        while size > 0:
            block = ZERO_BLOCK if size >= len(ZERO_BLOCK) else ZERO_BLOCK[:size]
            self.pwrite(offset, block)
            offset += len(block)
            size -= len(block)

    def datasync(self) -> None:
        self._usable()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._sync_failed(error) from error

    def _sync_failed(self, error: OSError) -> SyncFailed:
        self._failed = True
        return SyncFailed(
            f"cannot sync {self._path}: {error.strerror or error}; what was written since the last sync may be lost, "
            "so the member stops. Look at the kernel's log, replace the device if it fails, then start again",
            path=self._path,
        )

    def begin_datasync(self, kernel: KernelSyncs) -> bool:
        self._usable()
        try:
            kernel.begin(self._fd)
        except OSError:  # it has no memory or no right for it: whoever asked waits for `datasync` instead
            return False
        return True

    def end_datasync(self, code: int) -> None:
        self._usable()
        if code:
            raise self._sync_failed(OSError(code, os.strerror(code)))

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as error:
            raise storage_error(error, "close", self._path) from error

    def _usable(self) -> None:
        if self._failed:
            raise SyncFailed(f"{self._path} failed to sync before and is not used any more", path=self._path)
        if self._fd < 0:
            raise StorageError(f"{self._path} is closed", path=self._path)


class RealLock:
    """An exclusive `flock`; the kernel drops it when the process ends in whatever way."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class RealDisk:
    """The file systems of this machine. Has no state of its own."""

    __slots__ = ()

    def open(self, path: str, *, write: bool = True) -> RealFile:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            return RealFile(os.open(path, flags), path)
        except OSError as error:
            raise storage_error(error, "open", path) from error

    def create(self, path: str) -> RealFile:
        try:
            return RealFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), path)
        except OSError as error:
            raise storage_error(error, "create", path) from error

    def rename(self, old: str, new: str) -> None:
        if parent_of(old) != parent_of(new):
            raise StorageError(f"{old} and {new} are not in one directory", path=old)
        try:
            os.rename(old, new)
        except OSError as error:
            raise storage_error(error, f"rename to {new}", old) from error

    def unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            raise storage_error(error, "remove", path) from error

    def listdir(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise storage_error(error, "list", path) from error

    def mkdir(self, path: str) -> None:
        try:
            if not os.path.isdir(path):
                missing = [path]
                while not os.path.isdir(parent := parent_of(missing[-1])):
                    missing.append(parent)
                for directory in reversed(missing):
                    os.mkdir(directory, 0o700)
                    self.sync_dir(parent_of(directory))
            status = os.stat(path)
        except OSError as error:
            raise storage_error(error, "create the directory", path) from error
        if status.st_uid != os.geteuid():
            raise StorageError(
                f"{path} belongs to uid {status.st_uid}, but Oarlock runs as uid {os.geteuid()}: "
                "run it as the owner, or chown the directory",
                path=path,
            )
        if loose := stat.S_IMODE(status.st_mode) & 0o077:
            raise StorageError(
                f"{path} can be entered by others (mode {stat.S_IMODE(status.st_mode):04o}, excess {loose:03o}): "
                f"run `chmod 700 {path}`",
                path=path,
            )

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, "inspect", path) from error
        return True

    def sync_dir(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(error, "open the directory", path) from error
        try:
            os.fsync(fd)
        except OSError as error:
            raise SyncFailed(f"cannot sync the directory {path}: {error.strerror or error}", path=path) from error
        finally:
            os.close(fd)

    def lock(self, path: str) -> RealLock:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, "create the lock file", path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)  # only for the message below
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace")
            os.close(fd)
            raise DirectoryInUse(
                f"{parent_of(path)} is in use by process {holder or 'unknown'}: stop that one, or give each member "
                "a directory of its own",
                path=path,
            ) from error
        except OSError as error:
            os.close(fd)
            raise storage_error(error, "lock", path) from error
        return RealLock(fd)

    def is_locked(self, path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, "open the lock file", path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            raise storage_error(error, "lock", path) from error
        finally:
            os.close(fd)
        return False

    def free_bytes(self, path: str) -> int:
        try:
            status = os.statvfs(path)
        except OSError as error:
            raise storage_error(error, "inspect", path) from error
        return status.f_bavail * status.f_frsize
