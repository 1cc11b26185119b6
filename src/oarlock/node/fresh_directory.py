"""Data directories made outside a running member: built beside their place, made durable, then put there by one rename.

A crash at any moment leaves the old directory, or the new one, or neither name with both contents intact beside it; the
same command run again finishes. Nothing that existed before is ever deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from oarlock.errors import StorageError
from oarlock.node.runtime import GROUP
from oarlock.raft.types import Entry, HardState, SnapshotMeta
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import Identity, WriteAheadLog

COPY_BYTES: Final = 1 << 20
ATTEMPTS_MAX: Final = 1000


class FreshDirectory:
    """`DIR.WORD` while it is built. `publish` makes it `DIR`."""

    def __init__(self, data_dir: str, word: str) -> None:
        self.target = Path(data_dir)
        self.path = self.target.with_name(f"{self.target.name}.{word}")
        if self.path.exists():  # an attempt that was cut short: everything in it was made from what still exists
            shutil.rmtree(self.path)
        self.disk = RealDisk()
        self.disk.mkdir(str(self.path))

    def write_log(
        self,
        identity: Identity,
        *,
        segment_bytes: int,
        hard_state: HardState,
        mark: SnapshotMeta,
        entries: Iterable[Entry] = (),
    ) -> None:
        """The log of the one group."""
        log = WriteAheadLog.create(self.disk, f"{self.path}/wal", identity, segment_bytes=segment_bytes)
        try:
            before = HardState(hard_state.term, hard_state.vote, min(hard_state.commit, mark.index))
            log.append(GROUP, before, (), snapshot=mark, reset_log=True)
            entries = list(entries)
            for at in range(0, len(entries), 1000):
                log.append(GROUP, None, entries[at : at + 1000])
                log.sync()
            log.append(GROUP, hard_state, ())
            log.sync()
        finally:
            log.close()

    def copy_tree(self, source: Path, name: str) -> None:
        """A durable copy of the directory `source` under `name`; links are not followed."""
        for directory, _, files in os.walk(source):
            to = self.path / name / os.path.relpath(directory, source)
            self.disk.mkdir(str(to))
            for file in files:
                _copy_file(Path(directory) / file, to / file)
            self.disk.sync_dir(str(to))

    def publish(self, *, aside: str = "") -> Path | None:
        """Put the directory in its place. What is there now gets the name `DIR.ASIDE-N` first; without `aside` there
        must be nothing, or an empty directory. Returns the old one's new name."""
        self._sync_tree()
        kept: Path | None = None
        if self.target.exists():
            if aside:
                kept = free_name(self.target, aside)
                os.rename(self.target, kept)
            else:
                try:
                    os.rmdir(self.target)
                except OSError as error:
                    raise StorageError(f"{self.target} is not empty", path=str(self.target)) from error
        os.rename(self.path, self.target)
        self.disk.sync_dir(str(self.target.parent))
        return kept

    def _sync_tree(self) -> None:
        for directory, _, _ in os.walk(self.path, topdown=False):
            self.disk.sync_dir(directory)


def free_name(path: Path, word: str) -> Path:
    """`PATH.WORD-1`, or the next number that is free."""
    for number in range(1, ATTEMPTS_MAX):
        name = path.with_name(f"{path.name}.{word}-{number}")
        if not name.exists():
            return name
    raise StorageError(f"{path.name}.{word}-1 to -{ATTEMPTS_MAX - 1} all exist: move some away", path=str(path))


def _copy_file(source: Path, to: Path) -> None:
    """Byte for byte, holes excepted, with an fsync at the end."""
    with source.open("rb") as reader:
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as writer:
            size = 0
            while data := reader.read(COPY_BYTES):
                if data.count(0) == len(data):
                    writer.seek(len(data), os.SEEK_CUR)
                else:
                    writer.write(data)
                size += len(data)
            writer.truncate(size)
            writer.flush()
            os.fsync(writer.fileno())
