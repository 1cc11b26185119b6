"""The ordered store on disk: LMDB under a layer of recent writes.

Writes go to a dict in memory. A checkpoint freezes that dict, and its `write` puts it into LMDB together with the
applied index in one synced transaction, on a thread of its own; reads look through the recent writes, the frozen ones
and LMDB, in this order. The disk is touched by nothing else, so opening loads nothing and a crash costs only what the
write-ahead log has anyway.

On disk (the directory is the store's own):

- `CURRENT`: the name of the data file in use and a newline. It is replaced by renaming, which is what makes a restore
  atomic; data files that it does not name are left-overs and are deleted on opening.
- `state-<n>.lmdb`, `state-<n>.lmdb-lock`: an LMDB 0.9 environment with one named database a table, and `.store` with
  the format's version and the applied index.
- Every value is followed by the CRC-32 of key and value, little-endian, for LMDB itself has no checksums. It is checked
  on every read: bytes that rotted are reported and never served.
- LMDB keys have at most 511 bytes. A key over `KEY_BYTES_DIRECT` is kept with all others that begin alike in one
  record, the *bucket*: under its first `KEY_BYTES_DIRECT` bytes and a zero byte stands the MessagePack encoding of the
  ordered list of [rest of the key, value]. A bucket is read and written whole.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import lmdb
import msgspec

from oarlock.errors import Corrupt, DiskFull, StorageError, WrongDirectory
from oarlock.machines.base import Checkpoint
from oarlock.machines.ordered import OrderedMap
from oarlock.machines.store import nearest, page_end

KEY_BYTES_DIRECT = 490
"""The longest key with an LMDB record of its own."""

MAP_BYTES = 1 << 40
"""Address space reserved for the data file, which itself grows as it is written: its bound until the map grows."""

MAP_BYTES_MIN = 1 << 28
"""Where the search for a reservation that the system grants ends: under a limit on address space the map is smaller."""

READERS_MAX = 126
"""Views open at once, the store's own one included."""

RELEASE_ENTRIES = 128
"""How many entries of a completed checkpoint each commit lets go: all at once would stop the machine for tens of ms."""

RESTORE_BATCH_BYTES = 8 << 20
"""How much a restore writes in one transaction: the bound of its memory."""

FORMAT_VERSION = 2
"""2 may hold tables that 1 has not; what is older is marked as 2 when it is opened."""


_BUCKET_KEY_BYTES = KEY_BYTES_DIRECT + 1
_CRC_RESIDUE = 0x2144DF1C  # the CRC-32 of anything followed by its own CRC-32
_CRC_BYTES = 4
_STORE_DB = b".store"
_INDEX_KEY = b"applied index"
_FORMAT_KEY = b"format version"
_BUCKETS_KEY = b"tables with buckets"
_U64 = struct.Struct("<Q")
_pack_crc = struct.Struct("<I").pack
_first = itemgetter(0)
_encode_bucket = msgspec.msgpack.Encoder().encode
_decode_bucket = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode
_ABSENT: Any = object()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 1 << 20


def _seal(key: bytes, value: bytes) -> bytes:
    """A value as it goes to disk."""
    return value + _pack_crc(crc32(value, crc32(key)))


def _rotten(table: str, key: bytes, path: str) -> Corrupt:
    return Corrupt(
        f"the record of key {key[:64]!r} in table {table} of {path} has a wrong checksum: the disk changed it. Keep "
        "the files for study, remove the member's state directory and let it fetch a snapshot from its group",
        path=path,
    )


def _storage_error(error: lmdb.Error, what: str, path: str) -> StorageError:
    """Ours for an exception of the binding, which has the error number only in its text."""
    text = str(error)
    full = isinstance(error, lmdb.DiskError) or any(os.strerror(number) in text for number in _FULL)
    if full or (os.strerror(errno.EIO) in text and _is_full(path)):
        return DiskFull(f"{what} {path}: {text}. Free some space; nothing that was durable is lost", path=path)
    if isinstance(error, lmdb.MapFullError):
        return DiskFull(f"{what} {path}: the file has reached the size of its map ({text})", path=path)
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.PanicError):
        return Corrupt(f"{what} {path}: {text}", path=path)
    return StorageError(f"{what} {path}: {text}", path=path)


def _is_full(path: str) -> bool:
    """Whether the file cannot grow. LMDB calls a write that was cut short, as on a full disk, an I/O error."""
    try:
        fd = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(fd, os.fstat(fd).st_size, _PROBE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in _FULL
    return False


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _expand(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Checked ascending records with their buckets laid out as the keys they hold."""
    for key, value in pairs:
        if len(key) == _BUCKET_KEY_BYTES:
            prefix = key[:KEY_BYTES_DIRECT]
            for rest, inner in _decode_bucket(value):
                yield prefix + rest, inner
        else:
            yield key, value


class _Env:
    """An open data file: the environment, its databases, and who still reads it."""

    def __init__(self, path: str, tables: Iterable[str], map_bytes: int, readahead: bool, durable: bool) -> None:
        self.path = path
        size = map_bytes
        while True:
            try:
                self.lmdb = lmdb.open(
                    path,
                    map_size=size,
                    subdir=False,
                    max_dbs=64,
                    max_readers=READERS_MAX,
                    max_spare_txns=2,
                    readahead=readahead,
                    meminit=False,
                    metasync=durable,
                    sync=durable,
                    lib_version=0,
                )
                break
            except (lmdb.MemoryError, lmdb.Error) as refused:
                if os.strerror(errno.ENOMEM) in str(refused) and size // 2 >= MAP_BYTES_MIN:
                    size //= 2
                    continue
                raise _storage_error(refused, "cannot open", path) from refused
        self.map_bytes = size
        try:
            self.store_db = self.lmdb.open_db(_STORE_DB)
            self.dbs = {name: self.lmdb.open_db(name.encode()) for name in tables}
        except lmdb.Error as error:
            self.lmdb.close()
            raise _storage_error(error, "cannot open the tables of", path) from error
        self.views: set[object] = set()
        self.retired = False

    def release(self, view: object) -> None:
        """A view has gone; the last one of a replaced file closes it."""
        self.views.discard(view)
        if self.retired and not self.views:
            self.lmdb.close()

    def retire(self) -> None:
        self.retired = True
        if not self.views:
            self.lmdb.close()

    def get_checked(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        """A record of the store's own database."""
        raw = txn.get(key, db=self.store_db)
        if raw is None:
            return None
        if crc32(raw, crc32(key)) != _CRC_RESIDUE:
            raise _rotten(_STORE_DB.decode(), key, self.path)
        return raw[:-_CRC_BYTES]


class LmdbTable:
    """One table of an `LmdbStore`."""

    counts_quickly = False

    put: Callable[[bytes, bytes], None]
    """Straight into the recent writes: the dict's own method, bound anew by every checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen: OrderedMap[bytes | None] | None = None
        self._start_recent()

    def _start_recent(self) -> None:
        self.recent: OrderedMap[bytes | None] = OrderedMap()
        self.settle = self.recent.settle
        self._recent_get = self.recent.data.get
        self.put = self.recent.data.__setitem__

    def attach(self, env: _Env, txn: lmdb.Transaction[bytes], has_buckets: bool) -> None:
        """Read from here on."""
        self._path = env.path
        self._db = env.dbs[self.name]
        self._txn = txn
        self._txn_get = txn.get
        self.has_buckets = has_buckets

    def freeze(self) -> None:
        self.frozen = self.recent
        self._start_recent()

    def thaw(self) -> None:
        self.frozen = None

    def forget(self) -> None:
        """Drop all that is not on disk."""
        self.frozen = None
        self._start_recent()

    def delete(self, key: bytes) -> None:
        self.recent.data[key] = None

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        found: Any = self._recent_get(key, _ABSENT)  # bytes, None for a tombstone, or that sentinel
        if found is not _ABSENT:
            return cast(bytes | None, found)
        if self.frozen is not None:
            found = self.frozen.data.get(key, _ABSENT)
            if found is not _ABSENT:
                return cast(bytes | None, found)
        size = len(key)
        if not 0 < size <= KEY_BYTES_DIRECT:
            return self._get_long(key) if size else None
        raw = self._txn_get(key, None, self._db)
        if raw is None:
            return None
        if crc32(raw, crc32(key)) != _CRC_RESIDUE:
            raise _rotten(self.name, key, self._path)
        return raw[:-_CRC_BYTES]

    def _get_long(self, key: bytes) -> bytes | None:
        bucket_key = key[:KEY_BYTES_DIRECT] + b"\0"
        raw = self._txn_get(bucket_key, None, self._db)
        if raw is None:
            return None
        if crc32(raw, crc32(bucket_key)) != _CRC_RESIDUE:
            raise _rotten(self.name, key, self._path)
        bucket = _decode_bucket(memoryview(raw)[:-_CRC_BYTES])
        rest = key[KEY_BYTES_DIRECT:]
        at = bisect_left(bucket, rest, key=_first)
        return bucket[at][1] if at < len(bucket) and bucket[at][0] == rest else None

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        patch = self._patch(start, end, limit, reverse)
        if not patch:
            return self._durable_items(start, end, limit, reverse)
        # What deletes in the patch take away must be made up for; puts can only push others out.
        deletes = sum(value is None for value in patch.values())
        found: dict[bytes, bytes] = dict(self._durable_items(start, end, limit + deletes if limit else 0, reverse))
        for key, value in patch.items():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        pairs = list(found.items())
        pairs.sort(key=_first, reverse=reverse)
        return pairs[:limit] if limit else pairs

    def values(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[bytes]:
        return [value for _, value in self.items(start, end, limit=limit, reverse=reverse)]

    def _patch(self, start: bytes, end: bytes | None, limit: int, reverse: bool) -> dict[bytes, bytes | None]:
        """The recent writes and deletes in a range: all of them, or enough to hold its first `limit` keys."""
        if not limit:
            patch: dict[bytes, bytes | None] = {}
            for layer in (self.frozen, self.recent):
                if layer:
                    data = layer.data
                    patch.update((key, data[key]) for key in layer.keys(start, end))
            return patch
        # Take more until `limit` keys with a value lie before the point up to which both layers have been read.
        want = limit
        while True:
            patch = {}
            horizon: bytes | None = None
            for layer in (self.frozen, self.recent):
                if not layer:
                    continue
                data = layer.data
                keys = layer.keys(start, end, want, reverse)
                patch.update((key, data[key]) for key in keys)
                if len(keys) == want:  # there may be more beyond
                    last = keys[-1]
                    if horizon is None or (last > horizon if reverse else last < horizon):
                        horizon = last
            if horizon is None:
                return patch
            kept = {key: value for key, value in patch.items() if (key >= horizon if reverse else key <= horizon)}
            # Keys past the horizon may be overlaid by writes not read yet: they are known only up to there. Enough
            # are known if the range's first `limit` keys end before it.
            if sum(value is not None for value in kept.values()) >= limit:
                return kept
            want *= 4

    def page(
        self, start: bytes, end: bytes | None, limit: int, bytes_max: int, *, reverse: bool = False
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        pairs = self._durable_items(start, end, limit, reverse, bytes_max)
        full = len(pairs) >= limit or sum(len(value) for _, value in pairs) >= bytes_max
        ends = [page_end([pairs[-1][0]], 1, reverse) if full else None]
        patch: dict[bytes, bytes | None] = {}
        for layer in (self.frozen, self.recent):
            if layer:
                data = layer.data
                keys = layer.keys(start, end, limit, reverse)
                patch.update((key, data[key]) for key in keys)
                ends.append(page_end(keys, limit, reverse))
        stop = nearest(ends, reverse)
        if not patch:
            return pairs, stop
        found: dict[bytes, bytes | None] = dict(pairs)
        found.update(patch)
        pairs = [
            (key, value)
            for key, value in found.items()
            if value is not None and (stop is None or (key >= stop if reverse else key < stop))
        ]
        pairs.sort(key=_first, reverse=reverse)
        return pairs, stop

    def page_keys(self, start: bytes, end: bytes | None, limit: int) -> tuple[list[bytes], bytes | None]:
        keys = self._durable_keys(start, end, limit)
        ends = [page_end(keys, limit)]
        patch: dict[bytes, bytes | None] = {}
        for layer in (self.frozen, self.recent):
            if layer:
                data = layer.data
                changed = layer.keys(start, end, limit)
                patch.update((key, data[key]) for key in changed)
                ends.append(page_end(changed, limit))
        stop = nearest(ends)
        if patch:
            found: dict[bytes, bytes | None] = dict.fromkeys(keys, b"")
            found.update(patch)
            keys = sorted(key for key, value in found.items() if value is not None and (stop is None or key < stop))
        return keys, stop

    def count(self, start: bytes = b"", end: bytes | None = None) -> int:
        patch = self._patch(start, end, 0, False)
        if not patch:
            return self._durable_count(start, end)
        keys = set(self._durable_keys(start, end))
        for key, value in patch.items():
            if value is None:
                keys.discard(key)
            else:
                keys.add(key)
        return len(keys)

    # -- reading what is on disk

    def _durable_items(
        self, start: bytes, end: bytes | None, limit: int, reverse: bool, bytes_max: int = 1 << 62
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` unless that is 0, and none after those that together have `bytes_max`."""
        if end is not None and end <= start:
            return []
        if self.has_buckets:
            return self._durable_items_with_buckets(start, end, limit, reverse, bytes_max)
        cursor = self._txn.cursor(self._db)
        found: list[tuple[bytes, bytes]] = []
        room = limit or -1
        if reverse:
            if not self._to_last_below(cursor, end):
                return found
            for key, raw in cursor.iterprev():
                if key < start:
                    break
                if crc32(raw, crc32(key)) != _CRC_RESIDUE:
                    raise _rotten(self.name, key, self._path)
                found.append((key, raw[:-_CRC_BYTES]))
                room -= 1
                bytes_max -= len(raw) - _CRC_BYTES
                if not room or bytes_max <= 0:
                    break
            return found
        if not self._to_first(cursor, start):
            return found
        for key, raw in cursor.iternext():
            if end is not None and key >= end:
                break
            if crc32(raw, crc32(key)) != _CRC_RESIDUE:
                raise _rotten(self.name, key, self._path)
            found.append((key, raw[:-_CRC_BYTES]))
            room -= 1
            bytes_max -= len(raw) - _CRC_BYTES
            if not room or bytes_max <= 0:
                break
        return found

    def _to_first(self, cursor: lmdb.Cursor[bytes], start: bytes) -> bool:
        """Move to the first record that may hold a key from `start` on."""
        if not start:
            return cursor.first()
        return cursor.set_range(start if len(start) <= KEY_BYTES_DIRECT else start[:KEY_BYTES_DIRECT] + b"\0")

    def _to_last_below(self, cursor: lmdb.Cursor[bytes], end: bytes | None) -> bool:
        """Move to the last record that may hold a key below `end`."""
        if end is None:
            return cursor.last()
        long = len(end) > KEY_BYTES_DIRECT
        sought = end[:KEY_BYTES_DIRECT] + b"\0" if long else end
        if not cursor.set_range(sought):
            return cursor.last()
        if long and cursor.key() == sought:
            return True
        return cursor.prev()

    def _durable_items_with_buckets(
        self, start: bytes, end: bytes | None, limit: int, reverse: bool, bytes_max: int = 1 << 62
    ) -> list[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(self._db)
        found: list[tuple[bytes, bytes]] = []
        if not (self._to_last_below(cursor, end) if reverse else self._to_first(cursor, start)):
            return found
        for key, raw in cursor.iterprev() if reverse else cursor.iternext():
            # A bucket's own key is not above any key in it, and not below any key before it.
            if not reverse and end is not None and key >= end:
                break
            if reverse and key < start[:_BUCKET_KEY_BYTES] and not start.startswith(key[:KEY_BYTES_DIRECT]):
                break
            if crc32(raw, crc32(key)) != _CRC_RESIDUE:
                raise _rotten(self.name, key, self._path)
            inner = list(_expand([(key, raw[:-_CRC_BYTES])]))
            low = bisect_left(inner, start, key=_first)
            high = len(inner) if end is None else bisect_left(inner, end, key=_first)
            inner = inner[low:high]
            found += reversed(inner) if reverse else inner
            bytes_max -= sum(len(value) for _, value in inner)
            if limit and len(found) >= limit:
                return found[:limit]
            if bytes_max <= 0:
                break
        return found

    def _durable_keys(self, start: bytes, end: bytes | None, limit: int = 0) -> list[bytes]:
        if self.has_buckets:
            return [key for key, _ in self._durable_items_with_buckets(start, end, limit, False)]
        cursor = self._txn.cursor(self._db)
        if (end is not None and end <= start) or not self._to_first(cursor, start):
            return []
        keys = cursor.iternext(keys=True, values=False)
        if limit:
            keys = islice(keys, limit)
        return list(keys) if end is None else list(takewhile(end.__gt__, keys))

    def _durable_count(self, start: bytes, end: bytes | None) -> int:
        if not start and end is None and not self.has_buckets:
            entries: int = self._txn.stat(self._db)["entries"]
            return entries
        return len(self._durable_keys(start, end))


class LmdbCheckpoint:
    """The frozen writes of all tables."""

    def __init__(self, store: LmdbStore, index: int) -> None:
        self.index = index
        self._store = store

    def write(self) -> None:
        """One synced transaction. After an exception nothing of it is on disk, and `write` may be called again.

        Raises `DiskFull` for a full disk or map, and `StorageError` for any other failure of the disk.
        """
        self._store.write_frozen(self.index)


class LmdbView:
    """A read transaction. While it is open the pages that it sees are not used again, so the file may grow."""

    def __init__(self, env: _Env) -> None:
        self._env = env
        try:
            self._txn = env.lmdb.begin()
        except lmdb.Error as error:
            raise _storage_error(error, "cannot read", env.path) from error
        env.views.add(self)
        self._open = True
        raw = env.get_checked(self._txn, _INDEX_KEY)
        assert raw is not None, "a data file has an applied index from its first transaction on"
        self.index = int(_U64.unpack(raw)[0])

    def get(self, table: str, key: bytes) -> bytes | None:
        """One value. Only for keys of up to `KEY_BYTES_DIRECT` bytes."""
        assert 0 < len(key) <= KEY_BYTES_DIRECT, len(key)
        raw = self._txn.get(key, None, self._env.dbs[table])
        if raw is None:
            return None
        if crc32(raw, crc32(key)) != _CRC_RESIDUE:
            raise _rotten(table, key, self._env.path)
        return raw[:-_CRC_BYTES]

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return _expand(self._checked(table))

    def _checked(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        path = self._env.path
        cursor = self._txn.cursor(self._env.dbs[table])
        for key, raw in cursor.iternext():
            if crc32(raw, crc32(key)) != _CRC_RESIDUE:
                raise _rotten(table, key, path)
            yield key, raw[:-_CRC_BYTES]

    def close(self) -> None:
        if self._open:
            self._open = False
            self._txn.abort()
            self._env.release(self)


class LmdbReplacement:
    """A new data file, filled in order and synced once at the end."""

    def __init__(self, store: LmdbStore, index: int, env: _Env) -> None:
        self._store = store
        self._index = index
        self._env: _Env | None = env
        self._pending: dict[str, list[tuple[bytes, bytes]]] = {name: [] for name in store.tables}
        self._pending_bytes = 0
        self._last: dict[str, bytes] = dict.fromkeys(self._pending, b"")
        self._bucket: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {}  # the one being filled, by table
        self._with_buckets: set[str] = set()

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if key <= self._last[table]:
            raise ValueError(f"keys out of order in table {table}: {key[:32]!r} does not come after the one before it")
        self._last[table] = key
        open_bucket = self._bucket.get(table)
        if open_bucket is not None and not (len(key) > KEY_BYTES_DIRECT and key.startswith(open_bucket[0])):
            self._close_bucket(table)
        if len(key) > KEY_BYTES_DIRECT:
            prefix = key[:KEY_BYTES_DIRECT]
            self._with_buckets.add(table)
            self._bucket.setdefault(table, (prefix, []))[1].append((key[KEY_BYTES_DIRECT:], value))
            return
        self._add(table, key, value)

    def _close_bucket(self, table: str) -> None:
        prefix, pairs = self._bucket.pop(table)
        self._add(table, prefix + b"\0", _encode_bucket(pairs))

    def _add(self, table: str, key: bytes, value: bytes) -> None:
        self._pending[table].append((key, _seal(key, value)))
        self._pending_bytes += len(key) + len(value)
        if self._pending_bytes > RESTORE_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._env is not None, "the replacement is over"
        try:
            with self._env.lmdb.begin(write=True) as txn:
                for name, pairs in self._pending.items():
                    if pairs:
                        txn.cursor(self._env.dbs[name]).putmulti(pairs, append=True)
        except lmdb.Error as error:
            raise _storage_error(error, "cannot write", self._env.path) from error
        for pairs in self._pending.values():
            pairs.clear()
        self._pending_bytes = 0

    def commit(self) -> None:
        assert self._env is not None, "the replacement is over"
        for table in list(self._bucket):
            self._close_bucket(table)
        self._flush()
        env = self._env
        try:
            with env.lmdb.begin(write=True) as txn:
                names = _encode_bucket(sorted(self._with_buckets))
                txn.put(_BUCKETS_KEY, _seal(_BUCKETS_KEY, names), db=env.store_db)
                index = _U64.pack(self._index)
                txn.put(_INDEX_KEY, _seal(_INDEX_KEY, index), db=env.store_db)
            env.lmdb.sync(True)
        except lmdb.Error as error:
            raise _storage_error(error, "cannot write", env.path) from error
        self._env = None
        env.lmdb.close()
        self._store.switch(Path(env.path).name)

    def abort(self) -> None:
        if self._env is not None:
            self._env.lmdb.close()
            _unlink(Path(self._env.path))
            self._env = None


def _unlink(path: Path) -> None:
    """Delete a data file and its lock."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + "-lock").unlink(missing_ok=True)


class LmdbStore:
    """Tables on disk in the directory `path`, which is made if missing; its parent exists.

    `map_bytes` is the address space first reserved for the data file; it doubles at a checkpoint that may not fit.
    `readahead` lets the kernel read neighbours of a page: off, because a state larger than the memory is read at random
    places. The directory must belong to one process at a time, which the owner sees to.

    Raises `WrongDirectory` for a state that a newer version wrote, `Corrupt` for damaged files, `StorageError` for
    a disk that fails.
    """

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Iterable[str],
        *,
        map_bytes: int = MAP_BYTES,
        readahead: bool = False,
    ) -> None:
        self.path = Path(path)
        self.tables: dict[str, LmdbTable] = {name: LmdbTable(name) for name in tables}
        self._map_bytes = map_bytes
        self._readahead = readahead
        self._open_checkpoint: LmdbCheckpoint | None = None
        self._dirty = 0
        self._frozen_dirty = 0
        self._released: list[dict[bytes, bytes | None]] = []  # of completed checkpoints, on their way out
        try:
            self._prepare_directory()
        except OSError as error:
            wrong = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise wrong(f"cannot prepare the state directory {self.path}: {error}", path=str(self.path)) from error
        self._attach()
        self._applied_index = self._durable_index

    # -- opening and switching files

    def _prepare_directory(self) -> None:
        if not self.path.exists():
            self.path.mkdir()
            _sync_directory(self.path.parent)
        pointer = self.path / "CURRENT"
        if pointer.exists():
            name = pointer.read_text(errors="replace").strip()
            if not (name.startswith("state-") and name.endswith(".lmdb") and (self.path / name).is_file()):
                raise Corrupt(f"{pointer} names {name!r}, and there is no such data file", path=str(pointer))
            self._file = name
        else:
            self._clear_all_but(None)
            self._file = "state-1.lmdb"
            env = self._create(self._file, 0)
            env.lmdb.sync(True)
            env.lmdb.close()
            self._point_to(self._file)
        self._clear_all_but(self._file)

    def _clear_all_but(self, name: str | None) -> None:
        for path in sorted(self.path.glob("state-*.lmdb*")):
            if name is None or path.name not in (name, name + "-lock"):
                path.unlink(missing_ok=True)
        (self.path / "CURRENT.new").unlink(missing_ok=True)

    def _create(self, name: str, index: int) -> _Env:
        """A new data file with empty tables. It is not synced."""
        env = _Env(str(self.path / name), self.tables, self._map_bytes, self._readahead, durable=False)
        try:
            with env.lmdb.begin(write=True) as txn:
                for key, value in (
                    (_FORMAT_KEY, _U64.pack(FORMAT_VERSION)),
                    (_INDEX_KEY, _U64.pack(index)),
                    (_BUCKETS_KEY, _encode_bucket([])),
                ):
                    txn.put(key, _seal(key, value), db=env.store_db)
        except lmdb.Error as error:
            env.lmdb.close()
            raise _storage_error(error, "cannot write", env.path) from error
        return env

    def _point_to(self, name: str) -> None:
        """Make `name` the data file that opening finds, durably."""
        new = self.path / "CURRENT.new"
        with open(new, "wb") as file:
            file.write(name.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(self.path)  # the data file's own entry, before anything names it
        os.replace(new, self.path / "CURRENT")
        _sync_directory(self.path)

    def _attach(self) -> None:
        """Open the data file in use and read from it."""
        self._env = _Env(str(self.path / self._file), self.tables, self._map_bytes, self._readahead, durable=True)
        try:
            self._begin_reading()
            raw = self._env.get_checked(self._txn, _FORMAT_KEY)
        except BaseException:
            self._env.lmdb.close()
            raise
        version = _U64.unpack(raw)[0] if raw is not None else 0
        if not 1 <= version <= FORMAT_VERSION:
            self._env.lmdb.close()
            raise WrongDirectory(
                f"{self._env.path} has format {version}, and this version of Oarlock reads formats 1 to "
                f"{FORMAT_VERSION}: start it with the version that wrote it",
                path=self._env.path,
            )
        if version < FORMAT_VERSION:
            # An older version would not see the newer tables: it must refuse this file from now on.
            self._txn.abort()
            try:
                with self._env.lmdb.begin(write=True) as txn:
                    txn.put(_FORMAT_KEY, _seal(_FORMAT_KEY, _U64.pack(FORMAT_VERSION)), db=self._env.store_db)
            except lmdb.Error as error:
                self._env.lmdb.close()
                raise _storage_error(error, "cannot write", self._env.path) from error
            self._begin_reading()

    def _begin_reading(self) -> None:
        """Read what is on disk now; the tables follow."""
        try:
            self._txn = self._env.lmdb.begin()
        except lmdb.Error as error:
            raise _storage_error(error, "cannot read", self._env.path) from error
        index = self._env.get_checked(self._txn, _INDEX_KEY)
        buckets = self._env.get_checked(self._txn, _BUCKETS_KEY)
        if index is None or buckets is None:
            raise Corrupt(f"{self._env.path} has no applied index: it was never completed", path=self._env.path)
        self._durable_index = int(_U64.unpack(index)[0])
        self._buckets: set[str] = set(msgspec.msgpack.decode(buckets, type=list[str]))
        for name, table in self.tables.items():
            table.attach(self._env, self._txn, name in self._buckets)

    def switch(self, name: str) -> None:
        """For `LmdbReplacement`: the complete and synced data file `name` takes the place of the present one."""
        try:
            self._point_to(name)
        except OSError as error:
            raise StorageError(f"cannot switch {self.path} to {name}: {error}", path=str(self.path)) from error
        old, old_path = self._env, self.path / self._file
        self._txn.abort()
        old.retire()
        for table in self.tables.values():
            table.forget()
        self._dirty = 0
        self._file = name
        _unlink(old_path)
        self._attach()
        self._applied_index = self._durable_index

    # -- the store

    @property
    def applied_index(self) -> int:
        return self._applied_index

    @property
    def durable_index(self) -> int:
        """The index of the last completed checkpoint."""
        return self._durable_index

    def table(self, name: str) -> LmdbTable:
        return self.tables[name]

    def commit(self, index: int, nbytes: int = 0) -> None:
        self._applied_index = index
        self._dirty += nbytes
        for table in self.tables.values():
            table.settle()
        if self._released:
            self._release_some()

    def _release_some(self) -> None:
        data = self._released[-1]
        for _ in range(min(RELEASE_ENTRIES, len(data))):
            data.popitem()
        if not data:
            self._released.pop()

    def view(self) -> LmdbView:
        return LmdbView(self._env)

    def replacement(self, index: int) -> LmdbReplacement:
        if self._open_checkpoint is not None:
            raise RuntimeError("a checkpoint is being written: wait for it before replacing the state")
        number = int(self._file[len("state-") : -len(".lmdb")]) + 1
        name = f"state-{number}.lmdb"
        _unlink(self.path / name)  # of a restore that did not come to its end
        return LmdbReplacement(self, index, self._create(name, index))

    def dirty_bytes(self) -> int:
        return self._dirty + self._frozen_dirty

    def size(self) -> int:
        info = self._env.lmdb.info()
        return (int(info["last_pgno"]) + 1) * int(self._env.lmdb.stat()["psize"]) + self.dirty_bytes()

    def size_in_use(self) -> int:
        page = int(self._env.lmdb.stat()["psize"])
        pages = 2  # the two meta pages
        for db in (self._env.store_db, *self._env.dbs.values()):
            stat = self._txn.stat(db)
            pages += int(stat["branch_pages"]) + int(stat["leaf_pages"]) + int(stat["overflow_pages"])
        return pages * page + self.dirty_bytes()

    def checkpoint(self) -> LmdbCheckpoint:
        if self._open_checkpoint is not None:
            raise RuntimeError("a checkpoint is open already: one at a time")
        self._released.clear()  # what few commits have left of the last one; its memory is bounded by one checkpoint
        self._grow_map()
        for table in self.tables.values():
            table.freeze()
        self._dirty, self._frozen_dirty = 0, self._dirty
        self._open_checkpoint = LmdbCheckpoint(self, self._applied_index)
        return self._open_checkpoint

    def _grow_map(self) -> None:
        """Double the map if this checkpoint might not fit. Not while a view is open: the next checkpoint will."""
        env = self._env
        page = int(env.lmdb.stat()["psize"])
        used = int(env.lmdb.info()["last_pgno"]) * page
        changes = sum(len(table.recent) for table in self.tables.values())
        need = used + self._dirty * 2 + (changes + 64) * page * 2  # every change may copy a page and split it
        size = env.map_bytes
        while size < need:
            size *= 2
        if size == env.map_bytes or env.views:
            return
        self._txn.abort()
        try:
            env.lmdb.set_mapsize(size)
            env.map_bytes = self._map_bytes = size
        except lmdb.Error as error:
            raise _storage_error(error, f"cannot grow the map to {size} bytes for", env.path) from error
        finally:
            self._begin_reading()

    def write_frozen(self, index: int) -> None:
        """For `LmdbCheckpoint`: put what is frozen on disk. Called on a thread of its own."""
        env = self._env
        with_buckets = set(self._buckets)
        try:
            with env.lmdb.begin(write=True) as txn:
                for name, table in self.tables.items():
                    if table.frozen and self._write_table(txn, env, name, table.frozen.data):
                        with_buckets.add(name)
                names = _encode_bucket(sorted(with_buckets))
                txn.put(_BUCKETS_KEY, _seal(_BUCKETS_KEY, names), db=env.store_db)
                value = _U64.pack(index)
                txn.put(_INDEX_KEY, _seal(_INDEX_KEY, value), db=env.store_db)
        except lmdb.Error as error:
            raise _storage_error(error, "cannot write", env.path) from error

    def _write_table(
        self, txn: lmdb.Transaction[bytes], env: _Env, name: str, changes: dict[bytes, bytes | None]
    ) -> bool:
        """Write one table's changes; whether there are buckets among them."""
        db = env.dbs[name]
        keys = sorted(changes)  # neighbours share pages
        if has_buckets := any(len(key) > KEY_BYTES_DIRECT for key in keys):
            self._write_buckets(txn, db, name, [key for key in keys if len(key) > KEY_BYTES_DIRECT], changes)
            keys = [key for key in keys if len(key) <= KEY_BYTES_DIRECT]
        for key in keys:
            if changes[key] is None:
                txn.delete(key, db=db)
        puts = (
            (key, value + _pack_crc(crc32(value, crc32(key)))) for key in keys if (value := changes[key]) is not None
        )
        if (first := next(puts, None)) is not None:
            cursor = txn.cursor(db)
            # Behind the last record pages are filled instead of split in halves. The pairs are made one by one because
            # the binding lets other threads run at every put: none of them waits for this one.
            append = not cursor.last() or cursor.key() < first[0]
            cursor.putmulti(chain((first,), puts), append=append)
        return has_buckets

    def _write_buckets(
        self, txn: lmdb.Transaction[bytes], db: Any, name: str, keys: list[bytes], changes: dict[bytes, bytes | None]
    ) -> None:
        at = 0
        while at < len(keys):
            prefix = keys[at][:KEY_BYTES_DIRECT]
            stop = bisect_right(keys, prefix, lo=at, key=lambda key: key[:KEY_BYTES_DIRECT])
            bucket_key = prefix + b"\0"
            raw = txn.get(bucket_key, None, db)
            if raw is not None and crc32(raw, crc32(bucket_key)) != _CRC_RESIDUE:
                raise _rotten(name, bucket_key, self._env.path)
            bucket: dict[bytes, bytes | None] = {}
            if raw is not None:
                bucket.update(_decode_bucket(memoryview(raw)[:-_CRC_BYTES]))
            bucket.update((key[KEY_BYTES_DIRECT:], changes[key]) for key in keys[at:stop])
            pairs = sorted((rest, value) for rest, value in bucket.items() if value is not None)
            if pairs:
                txn.put(bucket_key, _seal(bucket_key, _encode_bucket(pairs)), db=db)
            elif raw is not None:
                txn.delete(bucket_key, db=db)
            at = stop

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        if checkpoint is not self._open_checkpoint:
            raise RuntimeError("this is not the open checkpoint")
        self._txn.abort()  # so that it does not keep old pages from being used again
        for table in self.tables.values():
            if table.frozen:
                self._released.append(table.frozen.data)
            table.thaw()
        self._frozen_dirty = 0
        self._open_checkpoint = None
        self._begin_reading()
        assert self._durable_index == checkpoint.index, (self._durable_index, checkpoint.index)

    def close(self) -> None:
        """Let go of the file. What is not checkpointed is dropped: the log has it."""
        if self._env.retired:
            return
        self._txn.abort()
        self._env.retire()
