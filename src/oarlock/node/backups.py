"""Backup files of the key-value machine: what one holds, and a new cluster's member from it.
(docs/how-to/back-up-and-restore.md)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oarlock.errors import StorageError
from oarlock.machines.kv.backup import BackupFile
from oarlock.node.restore import Place, restore
from oarlock.storage.wal import Identity


def examine(file: Path) -> dict[str, Any]:
    """Read the whole of a backup; what it holds. Raises `StorageError` or `OSError`."""
    from oarlock.machines.kv.capture import summarize

    with file.open("rb") as opened:
        backup = BackupFile(opened, str(file))
        summary = summarize(backup.header.index, backup.whole_chunks())
    return {
        "hash": int.from_bytes(backup.sha256[:4], "big"),
        "revision": summary.revision,
        "totalKey": summary.keys,
        "totalSize": backup.size,
        "compactRevision": max(0, summary.compact_revision),
        "index": backup.header.index,
        "cluster": f"{backup.header.cluster_id:x}",
        "member": f"{backup.header.member_id:x}",
        "version": backup.header.version,
        "sha256": backup.sha256.hex(),
    }


def restore_backup(
    file: Path, place: Place, *, memory: bool = False, bump_revision: int = 0, mark_compacted: bool = False
) -> Identity:
    """Make `place.data_dir` from `file`; whose it is. `memory`: for a member that keeps its store in memory.

    Raises `StorageError`, `ConfigurationError` or `OSError`, and leaves nothing behind then.
    """
    from oarlock.machines.kv.fresh import FreshStart
    from oarlock.machines.kv.machine import KvMachine
    from oarlock.node.replica.sessions import RECORD_KEY, SESSION_KEY

    fresh = FreshStart(
        annex_prefixes=(SESSION_KEY, RECORD_KEY), bump_revision=bump_revision, mark_compacted=mark_compacted
    )
    with file.open("rb") as opened:
        backup = BackupFile(opened, str(file))

        def fill(directory: str) -> Any:
            machine = KvMachine.in_memory() if memory else KvMachine.on_disk(directory)
            try:
                machine.restore(backup.header.index, backup.whole_chunks(), fresh=fresh)
            except ValueError as error:
                machine.close()
                raise StorageError(f"{file}: {error}", path=str(file)) from error
            except BaseException:
                machine.close()
                raise
            if memory:
                return machine.capture()
            machine.close()
            return None

        changes = f"/{bump_revision}/{mark_compacted}"
        return restore(place, index=backup.header.index, fill=fill, origin=lambda: backup.sha256.hex() + changes)
