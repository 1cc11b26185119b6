"""The ordered store in memory: for the simulator, for tests, and for small embedded groups.

Its only persistence are the snapshots that the owner takes. A key costs its bytes and its value's bytes, one dict slot
and one list slot: nothing that the garbage collector follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oarlock.machines.base import Checkpoint
from oarlock.machines.ordered import OrderedMap
from oarlock.machines.store import page_end

ENTRY_BYTES = 200
"""What a pair takes beside its own bytes: two object headers, the dict's slot and index, the place in the order."""


class MemoryTable:
    """One table of a `MemoryStore`."""

    __slots__ = ("_data", "_map", "nbytes", "settle")

    counts_quickly = True

    def __init__(self) -> None:
        self._map: OrderedMap[bytes] = OrderedMap()
        self._data = self._map.data
        self.settle = self._map.settle
        self.nbytes = 0  # of keys and values

    def get(self, key: bytes) -> bytes | None:
        return self._data.get(key)

    def put(self, key: bytes, value: bytes, /) -> None:
        old = self._data.get(key)
        self.nbytes += len(value) - len(old) if old is not None else len(key) + len(value)
        self._data[key] = value

    def delete(self, key: bytes) -> None:
        old = self._data.get(key)
        if old is not None:
            self.nbytes -= len(key) + len(old)
            self._map.remove(key)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        data = self._data
        return [(key, data[key]) for key in self._map.keys(start, end, limit, reverse)]

    def values(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[bytes]:
        return list(map(self._data.__getitem__, self._map.keys(start, end, limit, reverse)))

    def page(
        self, start: bytes, end: bytes | None, limit: int, bytes_max: int, *, reverse: bool = False
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        data = self._data  # values are shared, so their size costs nothing
        keys = self._map.keys(start, end, limit, reverse)
        pairs = [(key, data[key]) for key in keys]
        return pairs, page_end(keys, limit, reverse)

    def page_keys(self, start: bytes, end: bytes | None, limit: int) -> tuple[list[bytes], bytes | None]:
        keys = self._map.keys(start, end, limit)
        return keys, page_end(keys, limit)

    def count(self, start: bytes = b"", end: bytes | None = None) -> int:
        return self._map.count(start, end)

    def copy(self) -> dict[bytes, bytes]:
        return self._data.copy()

    def bytes_in_use(self) -> int:
        return self.nbytes + len(self._data) * ENTRY_BYTES


class MemoryView:
    """Copied dicts: the keys and values themselves are shared with the store."""

    def __init__(self, index: int, tables: dict[str, dict[bytes, bytes]]) -> None:
        self.index = index
        self._tables: dict[str, dict[bytes, bytes]] | None = tables

    def _table(self, name: str) -> dict[bytes, bytes]:
        if self._tables is None:
            raise RuntimeError("this view is closed: take a new one")
        return self._tables[name]

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._table(table).get(key)

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        data = self._table(table)
        for key in sorted(data):
            self._table(table)  # raises once the view is closed
            yield key, data[key]

    def close(self) -> None:
        self._tables = None


class MemoryReplacement:
    """New tables, filled beside the old ones."""

    def __init__(self, store: MemoryStore, index: int) -> None:
        self._store = store
        self._index = index
        self._tables: dict[str, MemoryTable] = {name: MemoryTable() for name in store.tables}
        self._last: dict[str, bytes] = dict.fromkeys(self._tables, b"")

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if key <= self._last[table]:
            raise ValueError(f"keys out of order in table {table}: {key[:32]!r} does not come after the one before it")
        self._last[table] = key
        self._tables[table].put(key, value)

    def commit(self) -> None:
        self._store.replace(self._index, self._tables)

    def abort(self) -> None:
        self._tables = {}


class MemoryStore:
    """Tables in memory. `durable` is False: there are no checkpoints."""

    durable = False

    def __init__(self, tables: Iterable[str]) -> None:
        self.tables: dict[str, MemoryTable] = {name: MemoryTable() for name in tables}
        self._applied_index = 0

    @property
    def applied_index(self) -> int:
        return self._applied_index

    def table(self, name: str) -> MemoryTable:
        return self.tables[name]

    def commit(self, index: int, nbytes: int = 0) -> None:
        self._applied_index = index
        for table in self.tables.values():
            table.settle()

    def view(self) -> MemoryView:
        return MemoryView(self._applied_index, {name: table.copy() for name, table in self.tables.items()})

    def replacement(self, index: int) -> MemoryReplacement:
        return MemoryReplacement(self, index)

    def replace(self, index: int, tables: dict[str, MemoryTable]) -> None:
        """For `MemoryReplacement`: take these tables and this index from now on. `table` has to be asked again."""
        self.tables = tables
        self._applied_index = index

    def dirty_bytes(self) -> int:
        return 0

    def size(self) -> int:
        return self.size_in_use()

    def size_in_use(self) -> int:
        return sum(table.bytes_in_use() for table in self.tables.values())

    def checkpoint(self) -> Checkpoint:
        raise RuntimeError("a store in memory has no checkpoints: persist it through captures")

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        raise RuntimeError("a store in memory has no checkpoints: persist it through captures")

    def close(self) -> None:
        self.tables = {}
