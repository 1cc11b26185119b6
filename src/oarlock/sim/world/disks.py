"""The simulated disk of one member, with what an observer may ask of it; and a durable store for machines on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from zlib import crc32

import msgspec

from oarlock.errors import Corrupt
from oarlock.machines.memory_store import MemoryReplacement, MemoryStore, MemoryTable, MemoryView
from oarlock.storage.disk import SECTOR_BYTES, parent_of
from oarlock.storage.sim_disk import SimDisk, _Directory, _Inode

STORE_FILE: Final = "machine.db"
CRC_BYTES: Final = 4  # the store of pages has a checksum for every value: this one for the whole file


class WorldDisk(SimDisk):
    """A `SimDisk` that can say what a power loss could still take."""

    def volatile_files(self, path: str) -> list[str]:
        """Files in the directory with contents that are not durable, and names that are not."""
        node = self._find(path)
        if not isinstance(node, _Directory):
            return []
        names = sorted(
            n for n, inode in node.volatile.items() if isinstance(inode, _Inode) and (inode.dirty or inode.size_dirty)
        )
        return names + sorted({come or gone for gone, come, _ in node.pending})

    def rot_places(self, paths: Iterable[str]) -> list[tuple[str, int]]:
        """(file, bytes that are not trailing zeros) of everything durable in these directories."""
        found: list[tuple[str, int]] = []
        for path in paths:
            node = self._find(path)
            if isinstance(node, _Directory):
                for name in sorted(node.durable):
                    inode = node.durable[name]
                    if isinstance(inode, _Inode):
                        size = len(bytes(inode.durable).rstrip(b"\0"))
                        if size:
                            found.append((f"{path}/{name}", size))
        return found

    def sector_count(self, path: str) -> int:
        return -(-len(self._inode(path).durable) // SECTOR_BYTES)


class CheckpointedStore(MemoryStore):
    """A durable store for machines: tables in memory, and on the disk what the last completed checkpoint froze."""

    durable = True

    def __init__(self, disk: WorldDisk, path: str, tables: Iterable[str]) -> None:
        super().__init__(tables)
        self._disk = disk
        self._path = f"{path}/{STORE_FILE}"
        self._dirty = 0
        self._frozen: dict[str, dict[bytes, bytes]] = {name: {} for name in self.tables}
        self._frozen_index = 0
        disk.mkdir(path)
        if disk.exists(self._path):
            file = disk.open(self._path, write=False)
            data = file.pread(0, file.size())
            file.close()
            if crc32(data[CRC_BYTES:]).to_bytes(CRC_BYTES, "little") != data[:CRC_BYTES]:
                raise Corrupt(f"{self._path} is not as it was written", path=self._path)
            index, contents = msgspec.msgpack.decode(
                memoryview(data)[CRC_BYTES:], type=tuple[int, dict[str, list[tuple[bytes, bytes]]]]
            )
            for name, pairs in contents.items():
                for key, value in pairs:
                    self.tables[name].put(key, value)
            self._applied_index = index
            self._frozen_index = index
            self._frozen = {name: table.copy() for name, table in self.tables.items()}
        self._base = {name: table.copy() for name, table in self.tables.items()}  # at the last checkpoint
        self._stored = {name: table.copy() for name, table in self.tables.items()}  # what the file holds

    def commit(self, index: int, nbytes: int = 0) -> None:
        self._dirty += nbytes
        super().commit(index, nbytes)

    def view(self) -> MemoryView:
        return MemoryView(self._frozen_index, self._frozen)

    def replacement(self, index: int) -> MemoryReplacement:
        return _DurableReplacement(self, index)

    def dirty_bytes(self) -> int:
        return self._dirty

    def checkpoint(self) -> StoreCheckpoint:
        """What changed since the last one, as a store on pages writes it."""
        self._dirty = 0
        contents = {name: table.copy() for name, table in self.tables.items()}
        changed: dict[str, dict[bytes, bytes | None]] = {}
        for name, pairs in contents.items():
            before = self._base[name]
            changed[name] = {key: value for key, value in pairs.items() if before.get(key) != value}
            changed[name].update((key, None) for key in before if key not in pairs)
        self._base = contents
        return StoreCheckpoint(self, self.applied_index, contents, changed)

    def checkpointed(self, checkpoint: object) -> None:
        assert isinstance(checkpoint, StoreCheckpoint)
        self._frozen, self._frozen_index = checkpoint.contents, checkpoint.index

    def save_changes(self, index: int, changed: dict[str, dict[bytes, bytes | None]]) -> None:
        """Bring what is on the disk up to date."""
        for name, pairs in changed.items():
            stored = self._stored[name]
            for key, value in pairs.items():
                if value is None:
                    stored.pop(key, None)
                else:
                    stored[key] = value
        self.save(index, self._stored)

    def save(self, index: int, contents: dict[str, dict[bytes, bytes]]) -> None:
        """Replace the file, atomically and durably."""
        data = msgspec.msgpack.encode((index, {name: sorted(pairs.items()) for name, pairs in contents.items()}))
        temporary = self._path + ".tmp"
        file = self._disk.create(temporary)
        file.pwrite(0, crc32(data).to_bytes(CRC_BYTES, "little") + data)
        file.datasync()
        file.close()
        self._disk.rename(temporary, self._path)
        self._disk.sync_dir(parent_of(self._path))

    def replace(self, index: int, tables: dict[str, MemoryTable]) -> None:
        contents = {name: table.copy() for name, table in tables.items()}
        self.save(index, contents)
        super().replace(index, tables)
        self._frozen, self._frozen_index = contents, index
        self._base = contents
        self._stored = {name: dict(pairs) for name, pairs in contents.items()}
        self._dirty = 0


class _DurableReplacement(MemoryReplacement):
    """`commit` goes through `CheckpointedStore.replace`, which makes it durable."""


class StoreCheckpoint:
    """What was applied when it was taken."""

    def __init__(
        self,
        store: CheckpointedStore,
        index: int,
        contents: dict[str, dict[bytes, bytes]],
        changed: dict[str, dict[bytes, bytes | None]],
    ) -> None:
        self._store = store
        self._changed = changed
        self.index = index
        self.contents = contents

    def write(self) -> None:
        self._store.save_changes(self.index, self._changed)
