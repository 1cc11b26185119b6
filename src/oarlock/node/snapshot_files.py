"""Snapshot files on behalf of a node: what its worker thread does. Nothing here touches the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from oarlock.errors import StorageError
from oarlock.machines.base import Capture
from oarlock.raft.events import WriteChunk
from oarlock.raft.types import GroupId, Index, SnapshotMeta
from oarlock.storage.snapshots import SnapshotReader, SnapshotReceiver, SnapshotStore

SEND_CHUNK_BYTES: Final = 512 * 1024


class SnapshotFiles:
    """Write, send and receive snapshots of one group. All methods but `load` are called on the worker thread only."""

    def __init__(self, store: SnapshotStore, group: GroupId) -> None:
        self._store = store
        self._group = group
        self._sending: tuple[SnapshotMeta, SnapshotReader] | None = None
        self._receiving: tuple[SnapshotMeta, SnapshotReceiver] | None = None

    def write(self, meta: SnapshotMeta, capture: Capture) -> SnapshotMeta:
        """Write `capture`; returns `meta` with size and digest."""
        try:
            writer = self._store.begin(self._group, meta.index, meta.term, meta.configuration)
            try:
                for chunk in capture.chunks():
                    writer.write(chunk)
                return writer.finish()
            except BaseException:
                writer.abort()
                raise
        finally:
            capture.close()

    def read(self, meta: SnapshotMeta, offset: int) -> bytes:
        """One chunk to send. Raises `StorageError` if the file is not, or no longer, what `meta` says.

        It is read whole before its first chunk leaves, so that rot is found here and not by a receiver that would ask
        for the same bytes for ever.
        """
        if self._sending is None or self._sending[0] != meta or offset == 0:
            self._stop_sending()
            reader = self._store.open(self._group, meta)
            self._sending = (meta, reader)
            try:
                reader.verify()
            except StorageError:
                self._stop_sending()
                raise
        return self._sending[1].read(offset, SEND_CHUNK_BYTES)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending[1].close()
            self._sending = None

    def receive(self, chunk: WriteChunk) -> tuple[int, bool]:
        """Take one chunk; returns (the offset wanted next, whether the snapshot is complete and durable)."""
        if self._receiving is None or self._receiving[0] != chunk.snapshot:
            self._stop_receiving()
            self._receiving = (chunk.snapshot, self._store.receiver(self._group, chunk.snapshot))
        receiver = self._receiving[1]
        next_offset = receiver.write(chunk.offset, chunk.data)
        if next_offset == chunk.snapshot.size and receiver.finish():
            self._stop_receiving()
            return next_offset, True
        return receiver.next_offset, False

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving[1].close()
            self._receiving = None

    def load(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """The machine's chunks. The file is opened now and closed with the iterator."""
        reader = self._store.open(self._group, meta)

        def chunks() -> Iterator[bytes]:
            try:
                yield from reader.chunks()
            finally:
                reader.close()

        return chunks()

    def prune(self, keep_index: Index) -> None:
        self._store.prune(self._group, keep_index)

    def close(self) -> None:
        """Let go of open files."""
        self._stop_sending()
        self._stop_receiving()
