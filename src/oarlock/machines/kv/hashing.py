"""The hash of key-values up to a revision, as Maintenance.HashKV gives it: CRC-32C over what etcd has in its table.

etcd stores each change under its place (main revision, `_`, sub revision, and `t` for a deletion), with the key-value
as it was then. Our log is an undo log, so those key-values are found by following it back from the present. Of what is
compacted there counts what a compaction at the hash's revision would keep: the last put of each key that has not been
replaced or deleted since. So the number says the same as etcd's, however far the purge of either has come.

A `HashReading` gathers a `HashSource` on the machine's thread, in steps; `digest` may be called on another one.
"""

from __future__ import annotations

from typing import Final

from oarlock.machines.kv.encoding import key_of, mod_revision_of, varint
from oarlock.machines.kv.layout import DELETED, PLACE, PLACE_BYTES, PUT_AFTER_DELETE, PUT_NEW
from oarlock.machines.kv.reading import PAGE_BYTES, PAGE_KEYS, Source, Stepped, Steps
from oarlock.machines.store import Table

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, reflected


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE: Final = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32 with the Castagnoli polynomial (RFC 3720), going on from `crc`.

    >>> hex(crc32c(b"123456789")), hex(crc32c(b"6789", crc32c(b"12345")))
    ('0xe3069283', '0xe3069283')
    """
    crc ^= 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _place_bytes(main: int, sub: int, deleted: bool) -> bytes:
    return main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + (b"t" if deleted else b"")


class HashSource:
    """Everything that the hash at `revision` needs: `current` as the present has it, and the log from after
    `compact_revision` on."""

    def __init__(
        self, revision: int, compact_revision: int, current: list[tuple[bytes, bytes]], log: list[tuple[bytes, bytes]]
    ) -> None:
        self.revision = revision
        self.compact_revision = compact_revision
        self._current = current
        self._log = log

    def digest(self) -> int:
        """The hash. Takes time in proportion to the bytes of the state and its history."""
        crc = crc32c(b"key")
        for place, value in self._pieces():
            crc = crc32c(place + value, crc)
        return crc

    def _pieces(self) -> list[tuple[bytes, bytes]]:
        """Place and value of all changes up to the revision, in order."""
        state: dict[bytes, bytes] = dict(self._current)
        pieces: list[tuple[bytes, bytes]] = []
        touched: set[bytes] = set()  # changed after the compacted revision, up to the hash's
        alive = -1  # keys at the hash's revision
        for raw, entry in reversed(self._log):
            main, sub = PLACE.unpack(raw)
            kind = entry[0]
            wanted = main <= self.revision
            if wanted and alive < 0:
                alive = len(state)
            if kind == DELETED:
                previous = entry[1:]
                key = key_of(previous)
                if wanted:
                    touched.add(key)
                    pieces.append((_place_bytes(main, sub, True), b"\x0a" + varint(len(key)) + key))
                state[key] = previous
                continue
            if kind == PUT_NEW:
                key, before = entry[1:], None
            elif kind == PUT_AFTER_DELETE:
                key, before = entry[1 + PLACE_BYTES :], None
            else:
                before = entry[1:]
                key = key_of(before)
            if wanted:
                touched.add(key)
                pieces.append((_place_bytes(main, sub, False), state[key]))
            if before is None:
                del state[key]
            else:
                state[key] = before
        # What is left is the state at the compacted revision; of sub revisions nothing is known any more.
        if not alive:
            touched.clear()  # where nothing would be kept, etcd leaves nothing out
        kept = sorted((mod_revision_of(record), key, record) for key, record in state.items() if key not in touched)
        pieces += [
            (_place_bytes(main, 0, False), record) for main, _, record in reversed(kept) if main <= self.revision
        ]
        pieces.reverse()
        return pieces


class HashReading(Stepped[HashSource]):
    """What the hash up to `revision` is made of, which is not compacted and not in the future."""

    def __init__(self, source: Source, log: Table, revision: int) -> None:
        self._log = log
        self._revision = revision
        super().__init__(source)

    def _read(self) -> Steps[HashSource]:
        compact_revision = self._source.compact_revision
        self._now = self._source.revision
        self._oldest = max(compact_revision, 0)
        self.begun = True
        current: list[tuple[bytes, bytes]] = []
        start: bytes | None = b"\0"
        while start is not None:
            records, start = yield from self._page(start, None, False, self._now)
            current += [(key_of(record), record) for record in records]
            if self._left <= 0:
                yield
        log: list[tuple[bytes, bytes]] = []
        end = PLACE.pack(self._now + 1, 0)
        start = PLACE.pack(max(compact_revision, 0) + 1, 0)
        while start is not None:
            entries, start = self._log.page(start, end, PAGE_KEYS, PAGE_BYTES)
            log += entries
            if self._spend(1 + len(entries)):
                yield
        return HashSource(self._revision or self._now, compact_revision, current, log)
