"""Backup files: a capture of the key-value machine with a header, framed and checked; `Maintenance.Snapshot` sends it.

- a header block of 512 bytes: `OARLOCK\\x01BKUP`, format (2 bytes), length of the text (4 bytes), a JSON text with
  cluster, member, index, term, revision and version, zeros, CRC-32 of all before it;
- frames: length (4 bytes), CRC-32 of what follows (4 bytes), number of the frame (8 bytes, from 0), a chunk of the
  capture; the last frame is empty;
- zeros up to a multiple of 512 bytes;
- SHA-256 of everything before it (32 bytes), as at the end of etcd's snapshots: stock clients look for it by size.

Numbers are little-endian. The capture inside has its own header and digest. (docs/reference/file-formats.md)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final
from zlib import crc32

import msgspec

from oarlock.errors import Corrupt

BLOCK_BYTES: Final = 512
DIGEST_BYTES: Final = 32
CHUNK_BYTES_MAX: Final = 16 << 20
FORMAT: Final = 1

_MAGIC: Final = b"OARLOCK\x01BKUP"
_LEAD: Final = struct.Struct("<12sHI")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<IIQ")
_NUMBER: Final = struct.Struct("<Q")
_BOLT_MAGIC: Final = bytes.fromhex("edda0ced")  # at offset 16 of etcd's own snapshots, little-endian


class BackupHeader(msgspec.Struct, frozen=True):
    """What a backup is of. `index` and `term` are the place in the log whose state it is, `version` the writer's."""

    cluster_id: int
    member_id: int
    index: int
    term: int
    revision: int
    version: str


def encode_backup(header: BackupHeader, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The file in pieces; the last one is the SHA-256 of all others, which etcd's clients want in a message of its own.
    `chunks` are those of the machine's capture at `header.index`, each at most `CHUNK_BYTES_MAX`."""
    digest = hashlib.sha256()
    text = msgspec.json.encode(header)
    block = (_LEAD.pack(_MAGIC, FORMAT, len(text)) + text).ljust(BLOCK_BYTES - _CRC.size, b"\0")
    assert len(block) == BLOCK_BYTES - _CRC.size, f"a header of {len(text)} bytes"
    block += _CRC.pack(crc32(block))
    digest.update(block)
    yield block
    size, number = BLOCK_BYTES, 0
    for chunk in chunks:
        if not chunk:
            continue
        frame = _frame(number, chunk) + chunk
        digest.update(frame)
        yield frame
        size += len(frame)
        number += 1
    tail = _frame(number, b"")
    tail += bytes(-(size + len(tail)) % BLOCK_BYTES)
    digest.update(tail)
    yield tail
    yield digest.digest()


def _frame(number: int, chunk: bytes) -> bytes:
    return _FRAME.pack(len(chunk), crc32(chunk, crc32(_NUMBER.pack(number))), number)


class BackupFile:
    """A backup file open for reading. Everything raises `Corrupt`, with the offset, for what `encode_backup` did not
    write; `chunks` may be read once. Digest and frames are checked on the way, and `sha256` is set at the end."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self.path = path
        self._hash = hashlib.sha256()
        self._offset = 0
        self.sha256 = b""
        self.header = self._read_header()

    @property
    def size(self) -> int:
        """Bytes read so far; after `chunks` those of the file."""
        return self._offset

    def _corrupt(self, what: str, offset: int) -> Corrupt:
        return Corrupt(
            f"{self.path}, offset {offset}: {what}. Take another copy of the backup, or an older one; a part of it "
            "is never restored",
            path=self.path,
            offset=offset,
        )

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise self._corrupt(f"the file ends {size - len(data)} bytes too early", self._offset + len(data))
        self._offset += size
        self._hash.update(data)
        return data

    def _read_header(self) -> BackupHeader:
        block = self._file.read(BLOCK_BYTES)
        if block[16:20] == _BOLT_MAGIC:
            raise self._corrupt("this is a snapshot of etcd's own database, not one of Oarlock", 0)
        if not block.startswith(_MAGIC):
            raise self._corrupt("this is no backup of Oarlock", 0)
        if len(block) < BLOCK_BYTES:
            raise self._corrupt("the file ends in its header", len(block))
        if _CRC.unpack(block[-_CRC.size :])[0] != crc32(block[: -_CRC.size]):
            raise self._corrupt("the header's checksum is wrong", 0)
        _, version, length = _LEAD.unpack_from(block)
        if version != FORMAT:
            raise self._corrupt(f"the backup has format {version}, and this version of Oarlock reads {FORMAT}", 12)
        try:
            header = msgspec.json.decode(block[_LEAD.size : _LEAD.size + length], type=BackupHeader)
        except ValueError as error:
            raise self._corrupt(f"the header does not decode: {error}", _LEAD.size) from error
        self._hash.update(block)
        self._offset = BLOCK_BYTES
        return header

    def whole_chunks(self) -> Iterator[bytes]:
        """`chunks`, of which the last is given only once the whole file is known to be good: whoever acts on the end of
        what it reads acts on nothing that is not."""
        held: bytes | None = None
        for chunk in self.chunks():
            if held is not None:
                yield held
            held = chunk
        if held is not None:
            yield held

    def chunks(self) -> Iterator[bytes]:
        """The capture's chunks, each checked before it is given."""
        number = 0
        while True:
            at = self._offset
            length, crc, found = _FRAME.unpack(self._take(_FRAME.size))
            if found != number or length > CHUNK_BYTES_MAX:
                raise self._corrupt(f"the head of frame {number} is damaged", at)
            chunk = self._take(length)
            if crc32(chunk, crc32(_NUMBER.pack(number))) != crc:
                raise self._corrupt(f"the checksum of frame {number} ({length} bytes) is wrong", at)
            if not length:
                break
            yield chunk
            number += 1
        at = self._offset
        if any(self._take(-self._offset % BLOCK_BYTES)):
            raise self._corrupt("the padding is not empty", at)
        computed = self._hash.digest()
        at = self._offset
        if self._take(DIGEST_BYTES) != computed:
            raise self._corrupt("the SHA-256 at the end is not that of the file", at)
        if self._file.read(1):
            raise self._corrupt("bytes follow the end", self._offset)
        self.sha256 = computed
