"""A simulated disk that forgets, tears, fills up, fails and rots on demand, and always in the same way.

The model: a file is a row of 512-byte sectors, each with what the program sees (volatile) and what a power loss would
leave (durable); a directory has volatile and durable names. `datasync` and `sync_dir` copy the one to the other. A
power loss decides every dirty sector on its own (old, new, zero, garbage: 45/35/15/5 %), a changed size (old or new)
and every directory change not yet synced (done or not done; one rename is one change). `kill` ends the process only:
the volatile side stays.

A misdirected write lands one sector behind where it belongs, and reports success.

A failed `datasync` leaves the dirty sectors *clean*: the program reads its new bytes, a later sync writes nothing and
says that all is well, and after a power loss the old bytes are back. A failed `sync_dir` changes nothing.

There is no randomness in here except the generator that `power_loss` is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from random import Random
from typing import Final, Literal, TypeAlias

from oarlock.errors import DirectoryInUse, DiskFull, StorageError, SyncFailed
from oarlock.storage.disk import SECTOR_BYTES, Bytes, KernelSyncs, parent_of

Operation: TypeAlias = Literal["write", "read", "sync", "sync_dir", "create", "rename", "unlink", "truncate", "mkdir"]
CHANGES: Final = frozenset({"write", "sync", "sync_dir", "create", "rename", "unlink", "truncate", "mkdir"})
ZERO_SECTOR: Final = bytes(SECTOR_BYTES)
LOG_OPERATIONS_MAX: Final = 1000  # how many of the last changes `SimDisk.log` remembers


class PowerCut(Exception):
    """The operation that `cut_at` named was reached; the disk answers nothing until `power_loss` or `kill`."""


class Fault(Enum):
    """How an operation fails."""

    EIO = "input/output error"
    ENOSPC = "no space left on device"
    SHORT = "no space left on device after half of the bytes"
    EROFS = "read-only file system"
    MISDIRECTED = "written one sector too far, and nobody told"


@dataclass(slots=True)
class _Injection:
    operation: Operation
    fault: Fault
    skip: int  # how many matching operations still succeed
    sticky: bool
    path_part: str


@dataclass(slots=True)
class _Inode:
    number: int
    volatile: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)
    size_dirty: bool = False
    previous: dict[int, bytes] = field(default_factory=dict)  # what a sector held before its last sync


@dataclass(slots=True)
class _Directory:
    volatile: dict[str, _Inode | _Directory] = field(default_factory=dict)
    durable: dict[str, _Inode | _Directory] = field(default_factory=dict)
    # changes since the last sync: (name that goes, name that comes, what it names)
    pending: list[tuple[str, str, _Inode | _Directory | None]] = field(default_factory=list)

    def change(self, gone: str, come: str, node: _Inode | _Directory | None) -> None:
        _apply(self.volatile, gone, come, node)
        self.pending.append((gone, come, node))


def _apply(names: dict[str, _Inode | _Directory], gone: str, come: str, node: _Inode | _Directory | None) -> None:
    if gone:
        names.pop(gone, None)
    if come and node is not None:
        names[come] = node


class SimFile:
    """An open file of a `SimDisk`."""

    __slots__ = ("_disk", "_epoch", "_failed", "_inode", "_open", "_path", "_writable")

    def __init__(self, disk: SimDisk, inode: _Inode, path: str, writable: bool) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._writable = writable
        self._epoch = disk.epoch
        self._open = True
        self._failed = False

    @property
    def path(self) -> str:
        return self._path

    def pwrite(self, offset: int, data: Bytes | Sequence[Bytes]) -> None:
        self._usable(write=True)
        joined = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
        fault = self._disk.step("write", self._path)
        if fault is Fault.MISDIRECTED:
            self._store(offset + SECTOR_BYTES, joined)
            return
        if fault is Fault.SHORT:
            self._store(offset, joined[: len(joined) // 2])
        self._disk.refuse(fault, "write", self._path)
        room = self._disk.room_for(offset + len(joined) - len(self._inode.volatile))
        if room < 0:
            self._store(offset, joined[: max(0, len(joined) + room)])
            self._disk.refuse(Fault.ENOSPC, "write", self._path)
        self._store(offset, joined)

    def pread(self, offset: int, size: int) -> bytes:
        self._usable()
        self._disk.refuse(self._disk.step("read", self._path), "read", self._path)
        return bytes(self._inode.volatile[offset : offset + size])

    def size(self) -> int:
        self._usable()
        return len(self._inode.volatile)

    def truncate(self, size: int) -> None:
        self._usable(write=True)
        self._disk.refuse(self._disk.step("truncate", self._path), "truncate", self._path)
        inode = self._inode
        if size < len(inode.volatile):
            del inode.volatile[size:]
            inode.dirty = {sector for sector in inode.dirty if sector * SECTOR_BYTES < size}
        else:
            inode.volatile.extend(bytes(size - len(inode.volatile)))
        inode.size_dirty = True
        self._disk.touched(inode)

    def fill_zeros(self, offset: int, size: int) -> None:
        self.pwrite(offset, bytes(size))

    def datasync(self) -> None:
        self._usable(write=True)
        inode = self._inode
        fault = self._disk.step("sync", self._path)
        if fault is not None:
            inode.dirty.clear()
            inode.size_dirty = False
            self._failed = True
            raise SyncFailed(f"cannot sync {self._path}: {fault.value}", path=self._path)
        size = len(inode.volatile)
        if inode.size_dirty:
            _resize(inode.durable, size)
            inode.size_dirty = False
        volatile, durable, previous = inode.volatile, inode.durable, inode.previous
        for sector in inode.dirty:
            start = sector * SECTOR_BYTES
            end = min(start + SECTOR_BYTES, size)
            if len(durable) < end:
                _resize(durable, end)
            previous[sector] = bytes(durable[start:end])
            durable[start:end] = volatile[start:end]
        inode.dirty.clear()

    def begin_datasync(self, kernel: KernelSyncs) -> bool:
        """Nothing is durable before the end: the worst that a kernel may do."""
        self._usable(write=True)
        return True

    def end_datasync(self, code: int) -> None:
        if code:
            self._failed = True
            self._inode.dirty.clear()
            self._inode.size_dirty = False
            raise SyncFailed(f"cannot sync {self._path}: error {code}", path=self._path)
        self.datasync()

    def close(self) -> None:
        self._open = False

    def _store(self, offset: int, data: bytes) -> None:
        if not data:
            return
        inode = self._inode
        end = offset + len(data)
        if end > len(inode.volatile):
            inode.volatile.extend(bytes(end - len(inode.volatile)))
            inode.size_dirty = True
        inode.volatile[offset:end] = data
        inode.dirty.update(range(offset // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1))
        self._disk.touched(inode)

    def _usable(self, *, write: bool = False) -> None:
        if self._failed:
            raise SyncFailed(f"{self._path} failed to sync before and is not used any more", path=self._path)
        if not self._open or self._epoch != self._disk.epoch:
            raise StorageError(f"{self._path} is closed", path=self._path)
        if write and not self._writable:
            raise StorageError(f"{self._path} was opened for reading", path=self._path)


class SimLock:
    """A lock of a `SimDisk`; `kill` and `power_loss` drop it."""

    __slots__ = ("_disk", "_path")

    def __init__(self, disk: SimDisk, path: str) -> None:
        self._disk = disk
        self._path = path

    def release(self) -> None:
        if self._disk.locks.get(self._path) is self:
            del self._disk.locks[self._path]


class SimDisk:
    """One machine's disk. `capacity_bytes` bounds the sum of file sizes.

    `operations` counts everything that changes the disk (`CHANGES`). Set `cut_at` to stop before the operation of that
    number (counting from 0): it raises `PowerCut`, and so does everything after it until `power_loss` or `kill`.
    """

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.operations = 0
        self.cut_at: int | None = None
        self.log: deque[tuple[Operation, str]] = deque(maxlen=LOG_OPERATIONS_MAX)
        self.epoch = 0  # handles of an earlier life are closed
        self.locks: dict[str, SimLock] = {}
        self.capacity_bytes = capacity_bytes
        self.read_only = False
        self._cut = False
        self._root = _Directory()
        self._injections: list[_Injection] = []
        self._inodes = 0
        self._touched: dict[int, _Inode] = {}

    # ------------------------------------------------------------ the Disk protocol

    def open(self, path: str, *, write: bool = True) -> SimFile:
        self._alive()
        node = self._find(path)
        if not isinstance(node, _Inode):
            raise StorageError(f"cannot open {path}: no such file", path=path)
        if write and self.read_only:
            self.refuse(Fault.EROFS, "open", path)
        return SimFile(self, node, path, write)

    def create(self, path: str) -> SimFile:
        directory, name = self._directory_of(path)
        self.refuse(self.step("create", path), "create", path)
        present = directory.volatile.get(name)
        if isinstance(present, _Directory):
            raise StorageError(f"cannot create {path}: it is a directory", path=path)
        if present is None:
            self._inodes += 1
            present = _Inode(self._inodes)
            directory.change("", name, present)
        elif present.volatile:
            present.volatile.clear()
            present.dirty.clear()
            present.size_dirty = True
            self.touched(present)
        return SimFile(self, present, path, True)

    def rename(self, old: str, new: str) -> None:
        directory, name = self._directory_of(old)
        target, new_name = self._directory_of(new)
        if directory is not target:
            raise StorageError(f"{old} and {new} are not in one directory", path=old)
        self.refuse(self.step("rename", old), f"rename to {new}", old)
        node = directory.volatile.get(name)
        if node is None:
            raise StorageError(f"cannot rename {old}: no such file", path=old)
        directory.change(name, new_name, node)

    def unlink(self, path: str) -> None:
        directory, name = self._directory_of(path)
        self.refuse(self.step("unlink", path), "remove", path)
        if not isinstance(directory.volatile.get(name), _Inode):
            raise StorageError(f"cannot remove {path}: no such file", path=path)
        directory.change(name, "", None)

    def listdir(self, path: str) -> list[str]:
        self._alive()
        node = self._find(path)
        if not isinstance(node, _Directory):
            raise StorageError(f"cannot list {path}: no such directory", path=path)
        return sorted(node.volatile)

    def mkdir(self, path: str) -> None:
        self._alive()
        node = self._root
        for name in _parts(path):
            present = node.volatile.get(name)
            if present is None:
                self.refuse(self.step("mkdir", path), "create the directory", path)
                present = _Directory()
                node.volatile[name] = node.durable[name] = present  # RealDisk syncs the parent, too
            if not isinstance(present, _Directory):
                raise StorageError(f"cannot create the directory {path}: {name} is a file", path=path)
            node = present

    def exists(self, path: str) -> bool:
        self._alive()
        return self._find(path) is not None

    def sync_dir(self, path: str) -> None:
        self._alive()
        node = self._find(path)
        if not isinstance(node, _Directory):
            raise StorageError(f"cannot sync the directory {path}: no such directory", path=path)
        fault = self.step("sync_dir", path)
        if fault is not None:
            raise SyncFailed(f"cannot sync the directory {path}: {fault.value}", path=path)
        node.durable = dict(node.volatile)
        node.pending.clear()

    def lock(self, path: str) -> SimLock:
        self._alive()
        if path in self.locks:
            raise DirectoryInUse(f"{parent_of(path)} is in use by another process", path=path)
        if not self.exists(path):
            self.create(path)
        elif self.read_only:
            self.refuse(Fault.EROFS, "lock", path)
        lock = self.locks[path] = SimLock(self, path)
        return lock

    def is_locked(self, path: str) -> bool:
        return path in self.locks

    def free_bytes(self, path: str) -> int:
        return 1 << 50 if self.capacity_bytes is None else max(0, self.capacity_bytes - self._used())

    # ------------------------------------------------------------ faults

    def inject(
        self, operation: Operation, fault: Fault, *, after: int = 0, sticky: bool = False, path_part: str = ""
    ) -> None:
        """Let the operation after `after` more of its kind fail, on paths that contain `path_part`; `sticky`: and all
        that follow."""
        self._injections.append(_Injection(operation, fault, after, sticky, path_part))

    def clear_faults(self) -> None:
        self._injections.clear()
        self.read_only = False

    def kill(self) -> None:
        """End the process: handles and locks are gone, everything written stays."""
        self.epoch += 1
        self.locks.clear()
        self.cut_at = None
        self._cut = False

    def power_loss(self, rng: Random) -> None:
        """Cut the power and come back: see the module's text for what is left."""
        self.kill()
        for number in sorted(self._touched):
            _lose(self._touched[number], rng)
        self._touched.clear()
        _lose_names(self._root, rng)

    def drop_caches(self) -> None:
        """Evict clean pages: what a failed sync left behind is read from the disk again, that is, old."""
        for inode in self._files():
            if not inode.dirty and not inode.size_dirty:
                inode.volatile = bytearray(inode.durable)

    def flip_bit(self, path: str, offset: int, bit: int = 0) -> None:
        """Rot: one bit changes, on the disk and in what is read."""
        inode = self._inode(path)
        for content in (inode.volatile, inode.durable):
            if offset < len(content):
                content[offset] ^= 1 << bit

    def put_sector(self, path: str, sector: int, content: bytes = ZERO_SECTOR) -> None:
        """Rot: a whole sector is replaced (default: zeroed)."""
        inode = self._inode(path)
        start = sector * SECTOR_BYTES
        for held in (inode.volatile, inode.durable):
            end = min(start + SECTOR_BYTES, len(held))
            held[start:end] = content[: max(0, end - start)]

    def stale_sector(self, path: str, sector: int) -> bool:
        """A lost write: the sector shows what it held before its last sync. False if it was synced only once."""
        inode = self._inode(path)
        if sector not in inode.previous:
            return False
        self.put_sector(path, sector, inode.previous[sector].ljust(SECTOR_BYTES, b"\0"))
        return True

    def misdirect(self, path: str, sector: int, target: str, target_sector: int) -> None:
        """A write that went to the wrong place: the target sector holds the bytes of another one."""
        start = sector * SECTOR_BYTES
        self.put_sector(target, target_sector, bytes(self._inode(path).volatile[start : start + SECTOR_BYTES]))

    def read_raw(self, path: str) -> bytes:
        """A file's contents as the program would see them; counts as no operation."""
        return bytes(self._inode(path).volatile)

    def write_raw(self, path: str, content: bytes) -> None:
        """Replace a file, durably, as somebody with a text editor would; counts as no operation."""
        directory, name = self._directory_of(path)
        self._inodes += 1
        inode = _Inode(self._inodes, bytearray(content), bytearray(content))
        directory.volatile[name] = directory.durable[name] = inode

    def remove_raw(self, path: str) -> None:
        """Remove a file, durably; counts as no operation."""
        directory, name = self._directory_of(path)
        directory.volatile.pop(name, None)
        directory.durable.pop(name, None)

    # ------------------------------------------------------------ for SimFile

    def step(self, operation: Operation, path: str) -> Fault | None:
        """Count an operation; the fault that the caller must raise, if one was injected. Raises `PowerCut`."""
        self._alive()
        if operation in CHANGES:
            if self.cut_at is not None and self.operations >= self.cut_at:
                self._cut = True
                raise PowerCut(f"before operation {self.operations}: {operation} {path}")
            self.operations += 1
            self.log.append((operation, path))
            if self.read_only:
                return Fault.EROFS
        for injection in self._injections:
            if injection.operation == operation and injection.path_part in path:
                if injection.skip > 0:
                    injection.skip -= 1
                    continue
                if not injection.sticky:
                    self._injections.remove(injection)
                return injection.fault
        return None

    def refuse(self, fault: Fault | None, what: str, path: str) -> None:
        """Raise what `fault` stands for."""
        if fault in (Fault.ENOSPC, Fault.SHORT):
            raise DiskFull(f"cannot {what} {path}: {fault.value}", path=path)
        if fault is not None:
            raise StorageError(f"cannot {what} {path}: {fault.value}", path=path)

    def room_for(self, growth: int) -> int:
        """How much would still be free after `growth` more bytes; negative if they do not fit."""
        if self.capacity_bytes is None or growth <= 0:
            return 0
        return self.capacity_bytes - self._used() - growth

    def touched(self, inode: _Inode) -> None:
        self._touched[inode.number] = inode

    # ------------------------------------------------------------ names

    def _alive(self) -> None:
        if self._cut:
            raise PowerCut("the power is off")

    def _find(self, path: str) -> _Inode | _Directory | None:
        node: _Inode | _Directory | None = self._root
        for name in _parts(path):
            if not isinstance(node, _Directory):
                return None
            node = node.volatile.get(name)
        return node

    def _inode(self, path: str) -> _Inode:
        node = self._find(path)
        if not isinstance(node, _Inode):
            raise StorageError(f"no such file: {path}", path=path)
        return node

    def _directory_of(self, path: str) -> tuple[_Directory, str]:
        *above, name = _parts(path)
        node = self._find("/".join(above))
        if not isinstance(node, _Directory):
            raise StorageError(f"no such directory: {parent_of(path)}", path=path)
        return node, name

    def _files(self) -> list[_Inode]:
        found: list[_Inode] = []
        todo = [self._root]
        while todo:
            for node in todo.pop().volatile.values():
                if isinstance(node, _Directory):
                    todo.append(node)
                else:
                    found.append(node)
        return found

    def _used(self) -> int:
        return sum(len(inode.volatile) for inode in self._files())


@lru_cache(maxsize=4096)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _lose(inode: _Inode, rng: Random) -> None:
    """Decide what a power loss leaves of one file."""
    size = len(inode.volatile) if inode.size_dirty and rng.random() < 0.5 else len(inode.durable)
    if not inode.size_dirty:  # a dirty sector past the durable end comes with the size that it needs
        size = max(size, len(inode.durable))
    left = bytearray(inode.durable)
    _resize(left, size)
    for sector in sorted(inode.dirty):
        start = sector * SECTOR_BYTES
        end = min(start + SECTOR_BYTES, size)
        choice = rng.random()
        if choice < 0.45 or end <= start:
            continue
        if choice < 0.80:
            fresh = bytes(inode.volatile[start:end])
            left[start:end] = fresh.ljust(end - start, b"\0")
        elif choice < 0.95:
            left[start:end] = bytes(end - start)
        else:
            left[start:end] = rng.randbytes(end - start)
    inode.durable = left
    inode.volatile = bytearray(left)
    inode.dirty.clear()
    inode.size_dirty = False


def _lose_names(directory: _Directory, rng: Random) -> None:
    for gone, come, node in directory.pending:
        if rng.random() < 0.5:
            _apply(directory.durable, gone, come, node)
    directory.pending.clear()
    directory.volatile = dict(directory.durable)
    for name in sorted(directory.durable):
        node = directory.durable[name]
        if isinstance(node, _Directory):
            _lose_names(node, rng)
