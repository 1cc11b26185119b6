"""Captures of the key-value machine: its whole state as a stream of bytes that does not depend on the store.

The stream, cut into chunks of at most 1 MiB wherever a chunk is full:

- `OARLOCK\\x01KV` and the format's version (2 bytes);
- the header: applied index, revision, compacted revision, number of keys (8 bytes each, signed), digest (16 bytes);
- records: table (1 byte: 1 annex, 2 current, 3 tombstones, 4 log, and in format 2 also 5 leases, 6 lease_keys, 7 auth,
  8 alarms), length of key and of value (4 bytes each), key, value; tables in this order, keys ascending;
- the end: a zero byte, the number of records (8 bytes), BLAKE2b-256 of all bytes before it.

Numbers are little-endian. What compaction has made unreachable but not yet purged is left out, so members at one index
write the same bytes however far each of them has purged. A state without leases, users and alarms is written in
format 1, which older versions read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from oarlock.machines.kv.layout import (
    ALARMS,
    ANNEX,
    AUTH,
    CURRENT,
    LEASE_KEYS,
    LEASES,
    LOG,
    META,
    PLACE,
    STATE_KEY,
    TOMBSTONES,
    State,
    pack_state,
    unpack_state,
)
from oarlock.machines.store import Replacement, View

CHUNK_BYTES = 1 << 20
FORMAT_VERSION = 2
"""The newest format; every older one is read too."""

RECORD_BYTES_MAX = 64 << 20
"""The longest key or value that a capture is believed to hold: a length from a bad stream reserves no memory."""

_MAGIC = b"OARLOCK\x01KV"
_VERSION = struct.Struct("<H")
_HEADER = struct.Struct("<qqqq16s")
_RECORD = struct.Struct("<BII")
_LENGTHS = struct.Struct("<II")  # of a record, behind its table
_COUNT = struct.Struct("<Q")
_DIGEST_BYTES = 32
_PIECES_AT_ONCE = 256
_ORDER_1 = ((1, ANNEX), (2, CURRENT), (3, TOMBSTONES), (4, LOG))
_ORDER_2 = ((5, LEASES), (6, LEASE_KEYS), (7, AUTH), (8, ALARMS))
_NAMES_OF_FORMAT = {1: dict(_ORDER_1), 2: dict(_ORDER_1 + _ORDER_2)}


class KvCapture:
    """A machine's state at `index`. Holds what the store's view holds until `close`."""

    def __init__(self, view: View) -> None:
        self._view = view

    @property
    def index(self) -> int:
        return self._view.index

    @property
    def revision(self) -> int:
        return unpack_state(self._view.get(META, STATE_KEY)).revision

    def chunks(self) -> Iterator[bytes]:
        """The stream. Raises `oarlock.errors.Corrupt` if the disk does not give back what it was given."""
        digest = blake2b(digest_size=_DIGEST_BYTES)
        buffer = bytearray()
        pieces = self._pieces()
        while batch := b"".join(islice(pieces, _PIECES_AT_ONCE)):
            digest.update(batch)
            buffer += batch
            while len(buffer) >= CHUNK_BYTES:
                yield bytes(memoryview(buffer)[:CHUNK_BYTES])
                del buffer[:CHUNK_BYTES]
        buffer += digest.digest()
        for at in range(0, len(buffer), CHUNK_BYTES):
            yield bytes(memoryview(buffer)[at : at + CHUNK_BYTES])

    def _pieces(self) -> Iterator[bytes]:
        view = self._view
        state = unpack_state(view.get(META, STATE_KEY))
        version = 2 if any(True for _, name in _ORDER_2 for _ in view.items(name)) else 1
        yield _MAGIC + _VERSION.pack(version)
        yield _HEADER.pack(view.index, state.revision, state.compact_revision, state.keys, state.digest)
        pack = _RECORD.pack
        count = 0
        for tag, name in _ORDER_1 + _ORDER_2 if version == 2 else _ORDER_1:
            for key, value in view.items(name):
                if name == TOMBSTONES and PLACE.unpack(value)[0] <= state.compact_revision:
                    continue
                if name == LOG and PLACE.unpack(key)[0] < state.compact_revision:
                    continue
                count += 1
                yield pack(tag, len(key), len(value)) + key + value
        yield b"\0" + _COUNT.pack(count)

    def close(self) -> None:
        self._view.close()


class _Stream:
    """Chunks read as one string of bytes, hashed on the way."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._data = b""
        self._at = 0
        self._digest = blake2b(digest_size=_DIGEST_BYTES)

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises `ValueError` where the stream ends before."""
        end = self._at + size
        if end > len(self._data):
            parts = [self._data[self._at :]]
            have = len(parts[0])
            while have < size:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise ValueError(f"not a whole capture: it ends {size - have} bytes too early")
                parts.append(chunk)
                have += len(chunk)
            self._data = b"".join(parts)
            self._at, end = 0, size
        taken = self._data[self._at : end]
        self._at = end
        self._digest.update(taken)
        return taken

    def finish(self) -> None:
        """Check the digest and that nothing follows it."""
        computed = self._digest.digest()
        if self.take(_DIGEST_BYTES) != computed:
            raise ValueError("the capture's digest is wrong: it was changed on its way")
        if self._at != len(self._data) or any(self._chunks):
            raise ValueError("bytes follow the capture's end")


def read_capture(index: int, chunks: Iterable[bytes], replacement: Replacement) -> None:
    """Fill `replacement` from a stream. Raises `ValueError` for one that no capture wrote, or not at `index`."""
    stream = _Stream(chunks)
    if stream.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a capture of a key-value machine")
    (version,) = _VERSION.unpack(stream.take(_VERSION.size))
    names = _NAMES_OF_FORMAT.get(version)
    if names is None:
        raise ValueError(
            f"the capture has format {version}, and this version of Oarlock reads formats 1 to {FORMAT_VERSION}"
        )
    at, revision, compact_revision, keys, digest = _HEADER.unpack(stream.take(_HEADER.size))
    if at != index:
        raise ValueError(f"the capture was taken at index {at}, not at {index}")
    counts = dict.fromkeys(names.values(), 0)
    last = 0
    while tag := stream.take(1)[0]:
        if tag not in names or tag < last:
            raise ValueError(f"table {tag} follows table {last} in the capture")
        last = tag
        key_size, value_size = _LENGTHS.unpack(stream.take(_LENGTHS.size))
        if key_size > RECORD_BYTES_MAX or value_size > RECORD_BYTES_MAX:
            raise ValueError(f"the capture has a record of {key_size} + {value_size} bytes")
        data = stream.take(key_size + value_size)
        replacement.put(names[tag], data[:key_size], data[key_size:])
        counts[names[tag]] += 1
    (count,) = _COUNT.unpack(stream.take(_COUNT.size))
    stream.finish()
    if count != sum(counts.values()) or keys != counts[CURRENT]:
        raise ValueError(f"the capture has {sum(counts.values())} records and says {count}")
    state = State(revision, compact_revision, keys, counts[TOMBSTONES], digest)
    replacement.put(META, STATE_KEY, pack_state(state))


class CaptureSummary(NamedTuple):
    """What a capture holds."""

    revision: int
    compact_revision: int
    keys: int


class _Nowhere:
    """A `Replacement` that keeps the state's record only."""

    def __init__(self) -> None:
        self.state = State()

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if table == META and key == STATE_KEY:
            self.state = unpack_state(value)

    def commit(self) -> None: ...

    def abort(self) -> None: ...


def summarize(index: int, chunks: Iterable[bytes]) -> CaptureSummary:
    """Read the whole of a capture taken at `index`. Raises `ValueError` as `read_capture` does."""
    nowhere = _Nowhere()
    read_capture(index, chunks, nowhere)
    return CaptureSummary(nowhere.state.revision, nowhere.state.compact_revision, nowhere.state.keys)
