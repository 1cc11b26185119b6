"""A base for machines whose state is a program's own objects in memory.

A subclass says how one command changes its state (`command`), how the state becomes bytes (`dump`) and how it comes
back (`load`). The annex, the applied index and the framing of captures are done here.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from oarlock.machines.base import Checkpoint, Context

CHUNK_BYTES = 1 << 20
CAPTURE_VERSION = 1

_MAGIC = b"OARLOCK\x01VM"
_HEADER = struct.Struct("<HqQ")  # version, index, pairs in the annex
_PAIR = struct.Struct("<II")
_PIECE = struct.Struct("<I")
_END = struct.Struct("<II")  # a piece of length 0xffffffff, and the CRC-32 of all before
_END_MARK = 0xFFFFFFFF


class VolatileCapture:
    """The pieces that `dump` gave, already collected, so the machine may go on."""

    def __init__(self, index: int, annex: list[tuple[bytes, bytes]], pieces: list[bytes]) -> None:
        self.index = index
        self._annex = annex
        self._pieces = pieces

    def chunks(self) -> Iterator[bytes]:
        crc = 0
        buffer = bytearray()
        for piece in self._framed():
            crc = crc32(piece, crc)
            buffer += piece
            while len(buffer) >= CHUNK_BYTES:
                yield bytes(memoryview(buffer)[:CHUNK_BYTES])
                del buffer[:CHUNK_BYTES]
        buffer += _END.pack(_END_MARK, crc)
        for at in range(0, len(buffer), CHUNK_BYTES):
            yield bytes(memoryview(buffer)[at : at + CHUNK_BYTES])

    def _framed(self) -> Iterator[bytes]:
        yield _MAGIC + _HEADER.pack(CAPTURE_VERSION, self.index, len(self._annex))
        for key, value in self._annex:
            yield _PAIR.pack(len(key), len(value)) + key + value
        for piece in self._pieces:
            yield _PIECE.pack(len(piece)) + piece

    def close(self) -> None:
        self._annex = []
        self._pieces = []


class VolatileMachine(ABC):
    """A machine in memory; see `machines.base.Machine`. Snapshots are its only persistence."""

    durable = False

    def __init__(self) -> None:
        self._applied_index = 0
        self._annex: dict[bytes, bytes] = {}

    # -- what a subclass says

    @abstractmethod
    def command(self, context: Context, command: bytes) -> object:
        """Apply one command and give its result. Deterministic: from the state, the command and `context` only.

        Bytes that make no sense are answered with a result that says so; an exception stops the member.
        """

    @abstractmethod
    def dump(self) -> Iterable[bytes]:
        """The state as any number of byte strings (each under 4 GiB), equal for equal states. Read before it returns
        to the owner, so what it yields may refer to the live state."""

    @abstractmethod
    def load(self, pieces: Sequence[bytes]) -> None:
        """Replace the state by what `dump` gave. Raises `ValueError`, the state unchanged, if it cannot be that."""

    # -- the rest of a machine

    @property
    def applied_index(self) -> int:
        return self._applied_index

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        assert context.index > self._applied_index, f"entry {context.index} is applied after {self._applied_index}"
        results = [self.command(context, command) for command in commands]
        self._applied_index = context.index
        return results

    def capture(self) -> VolatileCapture:
        return VolatileCapture(self._applied_index, self.annex_items(), [bytes(piece) for piece in self.dump()])

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        data = b"".join(chunks)
        annex, pieces = _read(index, data)
        self.load(pieces)
        self._annex = annex
        self._applied_index = index

    def annex_get(self, key: bytes) -> bytes | None:
        return self._annex.get(key)

    def annex_put(self, key: bytes, value: bytes) -> None:
        self._annex[key] = value

    def annex_delete(self, key: bytes) -> None:
        self._annex.pop(key, None)

    def annex_items(self) -> list[tuple[bytes, bytes]]:
        return sorted(self._annex.items())

    def dirty_bytes(self) -> int:
        raise RuntimeError("a volatile machine has no checkpoints: persist it through captures")

    def checkpoint(self) -> Checkpoint:
        raise RuntimeError("a volatile machine has no checkpoints: persist it through captures")

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        raise RuntimeError("a volatile machine has no checkpoints: persist it through captures")

    def close(self) -> None:
        """Let go of the state. A subclass that holds more lets go of it here."""
        self._annex = {}


def _read(index: int, data: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """A capture's annex and pieces. Raises `ValueError` for what no capture wrote."""
    if not data.startswith(_MAGIC):
        raise ValueError("not a capture of a machine in memory")
    try:
        version, at_index, pairs = _HEADER.unpack_from(data, len(_MAGIC))
        mark, crc = _END.unpack_from(data, len(data) - _END.size)
        if version != CAPTURE_VERSION:
            raise ValueError(f"the capture has format {version}, and this version reads format {CAPTURE_VERSION}")
        if mark != _END_MARK or crc32(memoryview(data)[: -_END.size]) != crc:
            raise ValueError("the capture is cut off or was changed on its way")
        if at_index != index:
            raise ValueError(f"the capture was taken at index {at_index}, not at {index}")
        at = len(_MAGIC) + _HEADER.size
        annex: dict[bytes, bytes] = {}
        for _ in range(pairs):
            key_size, value_size = _PAIR.unpack_from(data, at)
            at += _PAIR.size
            annex[data[at : at + key_size]] = data[at + key_size : at + key_size + value_size]
            at += key_size + value_size
        pieces = []
        while at < len(data) - _END.size:
            (size,) = _PIECE.unpack_from(data, at)
            at += _PIECE.size
            pieces.append(data[at : at + size])
            at += size
    except struct.error:
        raise ValueError("the capture is cut off") from None
    if at != len(data) - _END.size:
        raise ValueError("the capture's lengths do not add up")
    return annex, pieces
