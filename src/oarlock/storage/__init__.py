"""Durable bytes: the write-ahead log, the snapshot store and recovery, over a small `Disk` protocol.

Public names: `Disk`, `File`, `Lock` (disk), `RealDisk` (real_disk), `SimDisk` (sim_disk), `WriteAheadLog`, `Identity`,
`GroupState`, `Recovered` (wal), `SnapshotStore` (snapshots). The formats are described in
docs/reference/file-formats.md.
"""

from oarlock.storage.disk import Disk, File, Lock
from oarlock.storage.records import Identity
from oarlock.storage.recovery import GroupState, Recovered
from oarlock.storage.snapshots import SnapshotReader, SnapshotReceiver, SnapshotStore, SnapshotWriter
from oarlock.storage.wal import WriteAheadLog

__all__ = [
    "Disk",
    "File",
    "GroupState",
    "Identity",
    "Lock",
    "Recovered",
    "SnapshotReader",
    "SnapshotReceiver",
    "SnapshotStore",
    "SnapshotWriter",
    "WriteAheadLog",
]
