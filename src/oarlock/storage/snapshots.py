"""The snapshot store: one file a snapshot, framed and checksummed, published only when it is whole and durable.

A file is the *stream* (what `SnapshotMeta.size` and `digest` describe and what travels between members) followed by a
footer with the metadata. The stream depends on the machine's chunks alone, so equal states make equal bytes on every
member. docs/reference/file-formats.md describes both.

Names: `<group>-<index>-<term>.snap`; `.tmp` while it is written; `.partial` while it is received; `.corrupt` once rot
was found in it. The store shares no state between its writers, readers and receivers: each may be on a thread of its
own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final
from zlib import crc32

from oarlock.errors import Corrupt, Overloaded, StorageError
from oarlock.raft.types import Configuration, GroupId, Index, SnapshotMeta, Term
from oarlock.storage.disk import Disk, File
from oarlock.storage.records import pack_mark, unpack_mark

STREAM_FORMAT: Final = 1
STREAM_MAGIC: Final = b"OARLKSNP" + STREAM_FORMAT.to_bytes(4, "little")
FOOTER_MAGIC: Final = b"OARLKEND"
CHUNK_BYTES_MAX: Final = 16 << 20
FOOTER_BYTES_MAX: Final = 1 << 20
WRITE_BYTES: Final = 1 << 20  # what a writer collects before it writes
SYNC_EVERY_BYTES: Final = (
    32 << 20
)  # a writer syncs this often, so that the last sync does not hold up the disk for long

CHUNK: Final = 1
END: Final = 2

_FRAME = struct.Struct("<IIQI")  # kind, length, sequence, CRC of these and of the bytes
_FRAME_BODY = struct.Struct("<IIQ")
_FOOTER = struct.Struct("<IIII8s")  # group, mark length, format, CRC of the mark and these, magic

SUFFIX: Final = ".snap"


def _frame(kind: int, sequence: int, data: bytes) -> bytes:
    body = _FRAME_BODY.pack(kind, len(data), sequence)
    return body + crc32(data, crc32(body)).to_bytes(4, "little")


class SnapshotStore:
    """The snapshots of all groups of one member, in the directory `path`, which is created if it is missing.

    Open the write-ahead log first: its lock is what keeps a second process away from here too.
    """

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        disk.mkdir(path)

    def begin(self, group: GroupId, index: Index, term: Term, configuration: Configuration) -> SnapshotWriter:
        """Write a snapshot of the state after the entry `term.index`."""
        return SnapshotWriter(
            self._disk, self._base(group, index, term), group, SnapshotMeta(index, term, configuration)
        )

    def newest(self, group: GroupId) -> SnapshotMeta | None:
        """The newest whole snapshot; None if there never was one.

        Raises `Corrupt` if a newer one is or was found rotten (it is kept as `.corrupt`): an older state must not be
        taken for the newest. A snapshot received from the leader with that index or a later one heals this.
        """
        best: SnapshotMeta | None = None
        rotten: tuple[Index, Term, str] | None = None
        names = sorted(
            ((*key, name) for name in self._disk.listdir(self._path) if (key := _parse(name, group))), reverse=True
        )
        for index, term, name in names:
            if name.endswith(".corrupt"):
                rotten = max(rotten or (0, 0, ""), (index, term, name))
            elif name.endswith(SUFFIX) and best is None:
                path = f"{self._path}/{name}"
                try:
                    best = self._read_meta(path, group, (index, term))
                except Corrupt as error:
                    kept = quarantine(self._disk, path)
                    raise Corrupt(f"{error}; the file is kept as {kept}", path=kept, offset=error.offset) from error
        if rotten is not None and (best is None or rotten[:2] > (best.index, best.term)):
            raise Corrupt(
                f"{self._path}/{rotten[2]}: the newest snapshot of group {group} was found rotten and set aside. "
                "Fetch it again "
                "from another member (a leader does so by itself), or restore a backup",
                path=f"{self._path}/{rotten[2]}",
            )
        return best

    def open(self, group: GroupId, meta: SnapshotMeta) -> SnapshotReader:
        """Read a published snapshot. Raises `StorageError` if it is not here, `Corrupt` if the file is another one."""
        path = self._base(group, meta.index, meta.term) + SUFFIX
        if not self._disk.exists(path):
            aside = path.rpartition("/")[2] + "."
            kept = [n for n in self._disk.listdir(self._path) if n.startswith(aside) and n.endswith(".corrupt")]
            if kept:  # an earlier life found it, and may have died before anybody heard of it
                raise Corrupt(
                    f"the snapshot {meta.term}.{meta.index} of group {group} was found rotten and set aside as "
                    f"{self._path}/{kept[-1]}",
                    path=f"{self._path}/{kept[-1]}",
                )
            raise StorageError(
                f"there is no snapshot {meta.term}.{meta.index} of group {group}: {path} does not exist", path=path
            )
        found = self._read_meta(path, group, (meta.index, meta.term))
        if (found.size, found.digest) != (meta.size, meta.digest):
            raise Corrupt(
                f"{path}: the file holds {found.size} bytes with digest {found.digest.hex()[:16]}, but {meta.size} "
                "bytes with digest "
                f"{meta.digest.hex()[:16]} were expected",
                path=path,
            )
        return SnapshotReader(self._disk, self._disk.open(path, write=False), meta)

    def receiver(self, group: GroupId, meta: SnapshotMeta) -> SnapshotReceiver:
        """Receive the snapshot `meta`; goes on where an earlier receiver of the same one stopped."""
        return SnapshotReceiver(self._disk, self._base(group, meta.index, meta.term), group, meta)

    def prune(self, group: GroupId, keep_index: Index) -> None:
        """Remove what is older than `keep_index`: snapshots, and files that were never finished. Never a `.corrupt`
        one, and never the newest snapshot."""
        newest = max(
            (key for name in self._disk.listdir(self._path) if name.endswith(SUFFIX) and (key := _parse(name, group))),
            default=(0, 0),
        )
        for name in self._disk.listdir(self._path):
            key = _parse(name, group)
            if key is None or key[0] >= keep_index or name.endswith(".corrupt"):
                continue
            if name.endswith(SUFFIX) and key == newest:
                continue
            self._disk.unlink(f"{self._path}/{name}")
        self._disk.sync_dir(self._path)

    def _base(self, group: GroupId, index: Index, term: Term) -> str:
        return f"{self._path}/{group:08x}-{index:016x}-{term:016x}"

    def _read_meta(self, path: str, group: GroupId, key: tuple[Index, Term]) -> SnapshotMeta:
        file = self._disk.open(path, write=False)
        try:
            return _read_footer(file, group, key)
        finally:
            file.close()


class SnapshotWriter:
    """Writes one snapshot. Nothing is visible before `finish` returns."""

    def __init__(self, disk: Disk, base: str, group: GroupId, meta: SnapshotMeta) -> None:
        self._disk = disk
        self._base = base
        self._group = group
        self._meta = meta
        self._file = disk.create(base + ".tmp")
        self._hash = hashlib.sha256()
        self._offset = 0
        self._synced = 0
        self._chunks = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._put(STREAM_MAGIC)

    def write(self, chunk: bytes) -> None:
        """Add one of the machine's chunks; the reader yields the same chunks. At most `CHUNK_BYTES_MAX` bytes."""
        if len(chunk) > CHUNK_BYTES_MAX:
            raise Overloaded("CHUNK_BYTES_MAX", CHUNK_BYTES_MAX)
        self._put(_frame(CHUNK, self._chunks, chunk))
        self._put(chunk)
        self._chunks += 1
        if self._buffered >= WRITE_BYTES:
            self._flush()
            if self._offset - self._synced >= SYNC_EVERY_BYTES:
                self._file.datasync()
                self._synced = self._offset

    def finish(self) -> SnapshotMeta:
        """Make the snapshot durable and visible."""
        self._put(_frame(END, self._chunks, b""))
        self._flush()
        meta = SnapshotMeta(
            self._meta.index, self._meta.term, self._meta.configuration, self._offset, self._hash.digest()
        )
        _publish(self._disk, self._file, self._base + ".tmp", self._base + SUFFIX, self._group, meta)
        return meta

    def abort(self) -> None:
        """Give up and remove what was written."""
        # sometimes: a snapshot is given up
        self._file.close()
        self._disk.unlink(self._base + ".tmp")

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._buffer.append(data)
        self._buffered += len(data)

    def _flush(self) -> None:
        if self._buffer:
            self._file.pwrite(self._offset, self._buffer)
            self._offset += self._buffered
            self._buffer = []
            self._buffered = 0


class SnapshotReader:
    """Reads one published snapshot."""

    def __init__(self, disk: Disk, file: File, meta: SnapshotMeta) -> None:
        self._disk = disk
        self._file = file
        self._meta = meta

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the stream, for sending; fewer than `size` only at its end. Not checked: the receiver checks the
        digest."""
        return self._file.pread(offset, max(0, min(size, self._meta.size - offset)))

    def chunks(self) -> Iterator[bytes]:
        """The machine's chunks, each checked before it is yielded, and the digest of the whole at the end.

        Raises `Corrupt` for rot; the file is then renamed to `.corrupt` and kept.
        """
        try:
            for kind, data in _frames(self._file, self._meta.size, self._meta.digest):
                if kind == CHUNK:
                    yield data
        except Corrupt as error:
            kept = quarantine(self._disk, self._file.path)
            raise Corrupt(f"{error}; the file is kept as {kept}", path=kept, offset=error.offset) from error

    def verify(self) -> None:
        """Check everything, as `chunks` does: worth a call when a receiver found the digest wrong more than once."""
        for _ in self.chunks():
            pass

    def close(self) -> None:
        self._file.close()


class SnapshotReceiver:
    """Receives the stream of one snapshot, in order, into a partial file that survives restarts."""

    def __init__(self, disk: Disk, base: str, group: GroupId, meta: SnapshotMeta) -> None:
        self._disk = disk
        self._base = base
        self._group = group
        self._meta = meta
        self._partial = f"{base}-{meta.digest.hex()[:16]}.partial"
        self._finished = False
        if disk.exists(self._partial):
            # sometimes: a snapshot is received in two lives
            self._file = disk.open(self._partial)
            self._resume()
        else:
            self._file = disk.create(self._partial)
            self._start()

    @property
    def next_offset(self) -> int:
        """The byte of the stream that is wanted next."""
        return self._next

    def write(self, offset: int, data: bytes) -> int:
        """Take bytes of the stream; returns the new `next_offset`. What does not begin there, or would pass the end, is
        ignored."""
        if offset == self._next and offset + len(data) <= self._meta.size and not self._finished:
            self._file.pwrite(offset, data)
            self._hash.update(data)
            self._next += len(data)
        return self._next

    def finish(self) -> bool:
        """Publish the snapshot durably, if it is complete and its digest right. A wrong digest drops all that was
        received, so that `next_offset` is 0 again."""
        if self._finished:
            return True
        if self._next != self._meta.size:
            return False
        if self._hash.digest() != self._meta.digest:
            # sometimes: a received snapshot has the wrong digest
            self._file.truncate(0)
            self._start()
            return False
        _publish(self._disk, self._file, self._partial, self._base + SUFFIX, self._group, self._meta)
        self._finished = True
        return True

    def close(self) -> None:
        """Stop receiving; the partial file stays for the next receiver of the same snapshot."""
        if not self._finished:
            self._file.close()

    def _start(self) -> None:
        self._next = 0
        self._hash = hashlib.sha256()

    def _resume(self) -> None:
        """Keep the whole frames that check out; after a power loss the rest may be anything."""
        self._start()
        end = 0
        try:
            for end in _frame_ends(self._file, self._meta.size):  # noqa: B007 - the last good one is what counts
                pass
        except Corrupt:
            # sometimes: a partial snapshot ends in the middle of a frame
            pass  # expected: the partial file ends in the middle of a frame, or a power loss damaged it
        self._file.truncate(end)
        while self._next < end:
            data = self._file.pread(self._next, min(WRITE_BYTES, end - self._next))
            # Written once more: an earlier process may have failed to sync this file, which leaves what we read in the
            # page cache only, marked clean, and no later sync would ever write it.
            self._file.pwrite(self._next, data)
            self._hash.update(data)
            self._next += len(data)


def quarantine(disk: Disk, path: str) -> str:
    """Rename a rotten file, durably, so that nobody uses it and nobody loses it. Returns the new name."""
    # sometimes: a snapshot is found rotten
    kept = path + ".corrupt"
    number = 1
    while disk.exists(kept):
        number += 1
        kept = f"{path}.{number}.corrupt"
    disk.rename(path, kept)
    disk.sync_dir(path.rpartition("/")[0])
    return kept


def _publish(disk: Disk, file: File, temporary: str, name: str, group: GroupId, meta: SnapshotMeta) -> None:
    mark = pack_mark(meta)
    head = struct.pack("<III", group, len(mark), STREAM_FORMAT)
    crc = crc32(head, crc32(mark))
    file.pwrite(meta.size, mark + _FOOTER.pack(group, len(mark), STREAM_FORMAT, crc, FOOTER_MAGIC))
    file.datasync()
    file.close()
    disk.rename(temporary, name)
    disk.sync_dir(name.rpartition("/")[0])


def _read_footer(file: File, group: GroupId, key: tuple[Index, Term]) -> SnapshotMeta:
    size = file.size()
    at = size - _FOOTER.size
    if at < 0:
        raise Corrupt(f"{file.path}: the file has only {size} bytes", path=file.path, offset=0)
    found_group, length, version, crc, magic = _FOOTER.unpack(file.pread(at, _FOOTER.size))
    start = at - length
    mark = file.pread(start, length) if start >= 0 and length <= FOOTER_BYTES_MAX else b""
    if magic != FOOTER_MAGIC or crc32(struct.pack("<III", found_group, length, version), crc32(mark)) != crc:
        raise Corrupt(f"{file.path}, offset {at}: the footer is damaged", path=file.path, offset=at)
    if version > STREAM_FORMAT:
        raise StorageError(
            f"{file.path} has format {version}, this version of Oarlock reads formats up to {STREAM_FORMAT}: start "
            "a newer one",
            path=file.path,
        )
    try:
        meta = unpack_mark(mark)
    except ValueError as error:
        raise Corrupt(f"{file.path}, offset {start}: {error}", path=file.path, offset=start) from error
    if found_group != group or (meta.index, meta.term) != key or meta.size != start:
        raise Corrupt(
            f"{file.path}: the file holds snapshot {meta.term}.{meta.index} of group {found_group}, {meta.size} "
            "bytes: it was renamed or cut",
            path=file.path, offset=at,
        )  # fmt: skip
    return meta


def _read_frame(file: File, offset: int, limit: int, sequence: int) -> tuple[int, bytes, bytes]:
    """(kind, header, data) of the frame at `offset`, all of it before `limit`. Raises `Corrupt`."""
    header = file.pread(offset, _FRAME.size) if offset + _FRAME.size <= limit else b""
    if len(header) < _FRAME.size:
        raise Corrupt(
            f"{file.path}, offset {offset}: the stream ends in the middle of a frame", path=file.path, offset=offset
        )
    kind, length, number, crc = _FRAME.unpack(header)
    if (
        kind not in (CHUNK, END)
        or length > CHUNK_BYTES_MAX
        or offset + _FRAME.size + length > limit
        or number != sequence
    ):
        raise Corrupt(f"{file.path}, offset {offset}: a frame's header is damaged", path=file.path, offset=offset)
    data = file.pread(offset + _FRAME.size, length)
    if len(data) != length or crc32(data, crc32(header[: _FRAME_BODY.size])) != crc:
        raise Corrupt(f"{file.path}, offset {offset}: a frame's checksum is wrong", path=file.path, offset=offset)
    return kind, header, data


def _frames(file: File, size: int, digest: bytes) -> Iterator[tuple[int, bytes]]:
    magic = file.pread(0, len(STREAM_MAGIC))
    if magic != STREAM_MAGIC:
        raise Corrupt(
            f"{file.path}, offset 0: not a snapshot stream of format {STREAM_FORMAT}", path=file.path, offset=0
        )
    whole = hashlib.sha256(magic)
    offset = len(STREAM_MAGIC)
    sequence = 0
    while True:
        kind, header, data = _read_frame(file, offset, size, sequence)
        whole.update(header)
        whole.update(data)
        offset += len(header) + len(data)
        if kind == END:
            break
        sequence += 1
        yield kind, data
    if offset != size or whole.digest() != digest:
        raise Corrupt(f"{file.path}: the stream's digest is wrong", path=file.path, offset=offset)


def _frame_ends(file: File, size: int) -> Iterator[int]:
    """Where each whole, good frame of a partial stream ends. Raises `Corrupt` where the good part ends."""
    if file.pread(0, len(STREAM_MAGIC)) != STREAM_MAGIC:
        raise Corrupt(f"{file.path}: not the beginning of a stream", path=file.path, offset=0)
    offset = len(STREAM_MAGIC)
    yield offset
    sequence = 0
    kind = CHUNK
    while kind == CHUNK:
        kind, header, data = _read_frame(file, offset, size, sequence)
        offset += len(header) + len(data)
        sequence += 1
        yield offset


def _parse(name: str, group: GroupId) -> tuple[Index, Term] | None:
    """(index, term) if `name` is a file of this group's snapshots, whatever its state."""
    stem, dot, _ = name.partition(".")
    parts = stem.split("-")
    if not dot or len(parts) < 3 or [len(part) for part in parts[:3]] != [8, 16, 16]:
        return None
    try:
        found, index, term = (int(part, 16) for part in parts[:3])
    except ValueError:
        return None
    return (index, term) if found == group else None
