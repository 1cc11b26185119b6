"""A cluster of one from the disk of a survivor, when the majority is gone for good.
(docs/how-to/recover-from-lost-quorum.md)

This is the one place where the rules of Raft are set aside by order of a person: what the lost majority had committed
and this disk does not hold is lost, and nobody can say whether there was any. What can be known is said. The whole log
of the survivor is kept, its end included of which it is not known whether it was committed: it may have been
acknowledged. The result is a new cluster (another id), so the old members, should they come back, are refused; the old
directory stays as it is under another name.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from oarlock.errors import StorageError
from oarlock.node.bootstrap import SEGMENT_BYTES
from oarlock.node.fresh_directory import FreshDirectory
from oarlock.node.ids import cluster_id_of
from oarlock.node.replica.directory import decode_record
from oarlock.node.runtime import GROUP
from oarlock.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    MemberInfo,
    MemberRole,
    decode_configuration,
    encode_configuration,
)
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import GroupState, Identity, WriteAheadLog

BUILDING: Final = "recovering"
ASIDE: Final = "before-recovery"
NOTE: Final = "recovered.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a survivor's disk says."""

    identity: Identity
    configuration: Configuration
    term: int
    commit_index: int
    last_index: int
    last_term: int
    names: tuple[str, ...]  # of the other members

    @property
    def alone(self) -> bool:
        """Whether the member needs nobody to decide already."""
        return self.configuration.voters == {self.identity.member_id} and not self.configuration.joint

    def lines(self) -> list[str]:
        """For a person."""
        uncertain = self.last_index - self.commit_index
        lines = [
            f"member {self.identity.member_id:x} of cluster {self.identity.cluster_id:x}, term {self.term}",
            f"its log ends at {self.last_term}.{self.last_index}, and says that up to {self.commit_index} is committed",
        ]
        if uncertain:
            lines.append(
                f"{uncertain} entries after {self.commit_index} may or may not have been committed: they are kept"
            )
        others = ", ".join(self.names) or "the others"
        lines.append(
            f"what {others} committed after {self.last_index} without this member is not here; whether there is any "
            "cannot be known from this disk. If another survivor's log ends later, or in a higher term, recover that"
        )
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    survey: Survey
    identity: Identity
    kept: Path  # the old directory


def _after_the_mark(state: GroupState) -> list[Entry]:
    """What the log holds beyond its snapshot or checkpoint. A member keeps some entries before it, for slow peers; they
    are in the machine's state already, and the new log begins behind it."""
    return [entry for entry in state.entries if entry.index > state.snapshot.index]


def _read(state: GroupState, identity: Identity) -> Survey:
    configuration = state.snapshot.configuration
    entries = _after_the_mark(state)
    for entry in entries:
        if entry.kind == EntryKind.CONFIG:
            configuration = decode_configuration(entry.payload)
    last = entries[-1] if entries else None
    others = [info for info in configuration.members if info.id != identity.member_id]
    return Survey(
        identity=identity,
        configuration=configuration,
        term=state.hard_state.term,
        commit_index=max(state.hard_state.commit, state.snapshot.index),
        last_index=last.index if last is not None else state.snapshot.index,
        last_term=last.term if last is not None else state.snapshot.term,
        names=tuple(decode_record(info.context).name or f"{info.id:x}" for info in others),
    )


def survey(data_dir: str) -> Survey:
    """Look at the log in `data_dir`, which no process may be using. Raises `StorageError`."""
    wal, recovered = WriteAheadLog.open(RealDisk(), f"{data_dir}/wal")
    wal.close()
    return _read(recovered.groups.get(GROUP, GroupState()), recovered.identity)


def was_recovered(data_dir: str) -> bool:
    """Whether the directory is one that `recover` made."""
    return (Path(data_dir) / NOTE).exists()


def finish_interrupted(data_dir: str) -> Path | None:
    """Put the directory in its place that `recover` had finished when it was stopped between its two renames; returns
    where the old one is. None if there is nothing to finish."""
    target = Path(data_dir)
    built = target.with_name(f"{target.name}.{BUILDING}")
    if target.exists() or not (built / NOTE).exists():
        return None
    kept = list(target.parent.glob(f"{target.name}.{ASIDE}-*"))
    if not kept:
        return None
    built.rename(target)
    RealDisk().sync_dir(str(target.parent))
    return max(kept, key=lambda path: path.stat().st_mtime_ns)


def recover(data_dir: str, *, segment_bytes: int = SEGMENT_BYTES) -> Recovered:
    """Make a cluster of one of the member in `data_dir`. Raises `StorageError`; then `data_dir` is what it was."""
    source = Path(data_dir)
    wal, recovered = WriteAheadLog.open(RealDisk(), f"{data_dir}/wal")
    try:  # with the log's lock in our hand, so that no member starts meanwhile
        state = recovered.groups.get(GROUP, GroupState())
        found = _read(state, recovered.identity)
        own = found.configuration.member(found.identity.member_id)
        if own is None:
            raise StorageError(
                f"{data_dir} is of member {found.identity.member_id:x}, which its own log does not count among the "
                "members: it had not joined, or was removed. Recover another one",
                path=data_dir,
            )
        if own.role is MemberRole.WITNESS:
            raise StorageError(
                f"{data_dir} is of a witness, which keeps no data: recover another member", path=data_dir
            )
        identity, term, entry = _new_life(found, own)
        directory = FreshDirectory(data_dir, BUILDING)
        for name in ("kv", "snap"):
            if (source / name).is_dir():
                directory.copy_tree(source / name, name)
        directory.write_log(
            identity,
            segment_bytes=segment_bytes,
            hard_state=HardState(term=term, vote=identity.member_id, commit=found.commit_index),
            mark=state.snapshot,
            entries=[*_after_the_mark(state), entry],
        )
        note = directory.path / NOTE
        note.write_text("\n".join([*found.lines(), f"now cluster {identity.cluster_id:x} of this member alone", ""]))
        kept = directory.publish(aside=ASIDE)
    finally:
        wal.close()
    assert kept is not None
    return Recovered(survey=found, identity=identity, kept=kept)


def _new_life(found: Survey, own: MemberInfo) -> tuple[Identity, int, Entry]:
    """Another cluster, a higher term, and the entry that makes this member its only voter."""
    identity = Identity(
        cluster_id_of(
            "recovered", [own.id], f"{found.identity.cluster_id:x}/{found.identity.incarnation:x}/{found.last_index}"
        ),
        own.id,
        secrets.randbits(63) | 1,
    )
    term = max(found.term, found.last_term) + 1
    gone = {info.id for info in found.configuration.members if info.id != own.id}
    alone = replace(
        Configuration.of(replace(own, role=MemberRole.VOTER, incarnation=0, promote_when_ready=False)),
        removed=found.configuration.removed | gone,
    )
    entry = Entry(term, found.last_index + 1, EntryKind.CONFIG, encode_configuration(alone))
    return identity, term, entry
