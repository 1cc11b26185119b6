"""A new cluster from a backup: every member gets the same state at the same place of a new log.
(docs/how-to/back-up-and-restore.md)

The new log begins after the backup's index with the new members' configuration. All members must be restored from the
same file: its hash goes into the cluster's id, so a member from another one is refused by the rest, and the old
cluster's members, which may still run somewhere, are never taken for the new one's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from oarlock.errors import ConfigurationError, StorageError
from oarlock.machines.base import Capture
from oarlock.node.bootstrap import SEGMENT_BYTES, NodeOptions, initial_configuration
from oarlock.node.fresh_directory import FreshDirectory
from oarlock.node.ids import cluster_id_of, member_id_of
from oarlock.node.runtime import GROUP
from oarlock.raft.types import HardState, SnapshotMeta
from oarlock.storage.snapshots import SnapshotStore
from oarlock.storage.wal import Identity

FIRST_TERM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and as whom a member begins; as the options of `serve` of the same names."""

    name: str
    data_dir: str
    initial_cluster: Mapping[str, Sequence[str]]
    advertise_peer_urls: Sequence[str]
    token: str
    segment_bytes: int = SEGMENT_BYTES


def restore(
    place: Place,
    *,
    index: int,
    fill: Callable[[str], Capture | None],
    origin: Callable[[], str],
) -> Identity:
    """Make `place.data_dir`, which must not exist or be empty; returns whose it is.

    `fill(directory)` puts the machine's state at `index` into `directory` (its `kv/`); a capture that it returns is
    written to a snapshot file in place of that. `origin()`, asked afterwards, identifies the backup. Whatever they
    raise leaves nothing behind under the final name.
    """
    if os.path.isdir(place.data_dir) and os.listdir(place.data_dir):
        raise ConfigurationError(
            f"{place.data_dir} exists and is not empty: restore into a new directory, or move this one away"
        )
    options = NodeOptions(
        name=place.name,
        data_dir=place.data_dir,
        listen_peer_urls=(),
        advertise_peer_urls=place.advertise_peer_urls,
        initial_cluster=place.initial_cluster,
        token=place.token,
    )
    configuration = initial_configuration(options)
    if index < 1:
        raise StorageError(f"the backup is of index {index}: there is nothing in it")
    directory = FreshDirectory(place.data_dir, "restoring")
    capture = fill(f"{directory.path}/kv")
    mark = SnapshotMeta(index=index, term=FIRST_TERM, configuration=configuration)
    if capture is not None:
        mark = _write_snapshot(directory, mark, capture.chunks())
        capture.close()
    identity = Identity(
        cluster_id_of(place.token, configuration.ids, origin()),
        member_id_of(place.token, place.advertise_peer_urls),
        secrets.randbits(63) | 1,
    )
    directory.write_log(
        identity,
        segment_bytes=place.segment_bytes,
        hard_state=HardState(term=FIRST_TERM, commit=index),
        mark=mark,
    )
    directory.publish()
    return identity


def _write_snapshot(directory: FreshDirectory, mark: SnapshotMeta, chunks: Iterable[bytes]) -> SnapshotMeta:
    store = SnapshotStore(directory.disk, f"{directory.path}/snap")
    writer = store.begin(GROUP, mark.index, mark.term, mark.configuration)
    for chunk in chunks:
        writer.write(chunk)
    return writer.finish()
