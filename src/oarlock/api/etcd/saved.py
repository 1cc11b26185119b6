"""A backup of the machine in a temporary file: its size is sent ahead of it by the Snapshot stream."""

from __future__ import annotations

import tempfile
from typing import IO, Final

from oarlock.machines.kv.backup import DIGEST_BYTES, BackupHeader, encode_backup
from oarlock.machines.kv.capture import KvCapture

HASH_BYTES: Final = DIGEST_BYTES
"""The last bytes of the file; clients want them in a message of their own."""


class SavedBackup:
    """A temporary file with a whole backup. Its methods are called in a worker thread."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.size = size
        """Bytes, the hash included."""

    @classmethod
    def write(cls, capture: KvCapture, cluster_id: int, member_id: int, term: int, version: str) -> SavedBackup:
        """Take everything out of `capture` and close it. Raises `OSError` without room, `StorageError` for rot."""
        file = tempfile.TemporaryFile(prefix="oarlock-snapshot-")  # noqa: SIM115 (it outlives this call)
        try:
            header = BackupHeader(cluster_id, member_id, capture.index, term, capture.revision, version)
            size = 0
            for piece in encode_backup(header, capture.chunks()):
                file.write(piece)
                size += len(piece)
            file.seek(0)
            return cls(file, size)
        except BaseException:
            file.close()
            raise
        finally:
            capture.close()

    def read(self, size: int) -> bytes:
        """The next bytes, in order."""
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
