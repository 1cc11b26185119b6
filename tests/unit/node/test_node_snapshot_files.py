"""Snapshot files as a node sends them: read whole before the first chunk leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oarlock.errors import Corrupt
from oarlock.node.snapshot_files import SnapshotFiles
from oarlock.raft.types import Configuration, SnapshotMeta
from oarlock.storage.sim_disk import SimDisk
from oarlock.storage.snapshots import SnapshotStore


class View:
    index = 5

    def chunks(self) -> Iterator[bytes]:
        yield from (bytes([n]) * 5000 for n in range(4))

    def close(self) -> None:
        pass


def written() -> tuple[SimDisk, SnapshotFiles, SnapshotMeta]:
    disk = SimDisk()
    disk.mkdir("d")
    files = SnapshotFiles(SnapshotStore(disk, "d/snap"), 0)
    meta = files.write(SnapshotMeta(index=5, term=2, configuration=Configuration.of_voters(1)), View())
    return disk, files, meta


def test_a_whole_snapshot_is_sent_from_any_offset() -> None:
    _, files, meta = written()
    whole = files.read(meta, 0)
    assert len(whole) == meta.size
    assert files.read(meta, 100) == whole[100:]


def test_rot_behind_the_first_chunk_is_found_before_it_leaves() -> None:
    disk, files, meta = written()
    name = next(n for n in disk.listdir("d/snap") if n.endswith(".snap"))
    raw = bytearray(disk.read_raw(f"d/snap/{name}"))
    raw[-3000] ^= 1
    disk.write_raw(f"d/snap/{name}", bytes(raw))
    with pytest.raises(Corrupt):
        files.read(meta, 0)
