"""Reading a write-ahead log back: what is good, what is a torn tail, what is rot. Changes nothing on the disk.

The rule (docs/reference/file-formats.md, "Torn or rotten"): one batch is written at a time, at a sector boundary, and
the next only after its sync returned. So only the last batch of the last segment can be torn, and bytes that do not
check out are torn exactly if no later batch exists and the watermark does not say that this batch was synced. All
else is rot: it raises `Corrupt`, and the files stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from oarlock.errors import Corrupt, StorageError, WrongDirectory
from oarlock.raft.types import Entry, GroupId, HardState, Index, SnapshotMeta, Term
from oarlock.storage.disk import SECTOR_BYTES, Disk, aligned
from oarlock.storage.records import (
    CUT,
    ENTRY,
    FORMAT,
    GROUP,
    HARD_STATE,
    PREAMBLE_BYTES,
    RESET,
    SEGMENT_BYTES_MAX,
    SNAPSHOT,
    SYNC,
    WATERMARK_BYTES,
    Identity,
    Preamble,
    Record,
    Watermark,
    later_batch,
    read_batch,
    segment_name,
    segment_number,
    unpack_group,
    unpack_mark,
    unpack_preamble,
    unpack_vote,
    unpack_watermark,
)

WATERMARK_NAME = "watermark"
LOCK_NAME = "lock"
WHAT_TO_DO = (
    "Nothing was changed. Do not delete anything: if other members hold the data, remove this member from the cluster, "
    "set the directory aside, and add the member again with an empty one; else restore it from a backup"
)


@dataclass(slots=True)
class GroupState:
    """What the log holds of one group. `entries` are contiguous and may begin at or before `snapshot.index` (a tail
    that is kept for slow followers), never after `snapshot.index + 1`."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    entries: list[Entry] = field(default_factory=list)

    @property
    def last_index(self) -> Index:
        return self.entries[-1].index if self.entries else self.snapshot.index


@dataclass(slots=True)
class Recovered:
    """What `WriteAheadLog.open` found. `repaired` is empty, or a sentence on the torn tail that was cut."""

    identity: Identity
    groups: dict[GroupId, GroupState]
    repaired: str


@dataclass(slots=True)
class Segment:
    """One segment file. `last_index` is, for each group, the last entry in it that may still be needed."""

    number: int
    size: int
    last_index: dict[GroupId, Index] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return segment_name(self.number)


@dataclass(slots=True)
class LogImage:
    """A log as `read_log` found it."""

    identity: Identity
    groups: dict[GroupId, GroupState]
    positions: dict[GroupId, tuple[Index, Term]]  # of each group's last entry or snapshot mark
    segments: list[Segment]
    end: int  # in the last segment: where the next batch goes
    batch: int  # the last good one
    chain: int
    watermark: Watermark | None
    tail: bytes  # the last segment, up to `end`
    torn: bytes  # what lies there from `end` on, without trailing zeros
    torn_reason: str

    @property
    def trusted(self) -> bool:
        """Whether the last batch is known to be synced. If not, what we read may be in the page cache only."""
        return self.watermark is not None and self.watermark.batch >= self.batch


Observer = Callable[[Segment, Record], None]


def corrupt(path: str, offset: int | None, what: str) -> Corrupt:
    """The error for rot, with file, offset and what to do."""
    where = path if offset is None else f"{path}, offset {offset}"
    return Corrupt(f"{where}: {what}. {WHAT_TO_DO}", path=path, offset=offset)


def log_files(disk: Disk, path: str) -> list[str]:
    """The names in `path` that only a log has. Not empty: there is, or was, a log."""
    if not disk.exists(path):
        return []
    return [name for name in disk.listdir(path) if name.endswith(".wal") or name == WATERMARK_NAME]


def read_file(disk: Disk, path: str, bytes_max: int) -> bytes:
    """A whole file, its size checked before anything is allocated."""
    file = disk.open(path, write=False)
    try:
        size = file.size()
        if size > bytes_max:
            raise corrupt(path, None, f"the file has {size} bytes, more than the {bytes_max} that it may have")
        return file.pread(0, size)
    finally:
        file.close()


def read_watermark(disk: Disk, path: str, identity: Identity) -> Watermark | None:
    """The newest readable slot. A missing or damaged file only means that nothing is known."""
    name = f"{path}/{WATERMARK_NAME}"
    if not disk.exists(name):
        return None
    file = disk.open(name, write=False)
    try:
        slots = [unpack_watermark(identity, file.pread(at, WATERMARK_BYTES)) for at in (0, SECTOR_BYTES)]
    finally:
        file.close()
    return max((slot for slot in slots if slot is not None), default=None)


def read_log(
    disk: Disk, path: str, *, expected: tuple[int, int] | None = None, observer: Observer | None = None
) -> LogImage:
    """Read and check the whole log in `path`. `expected` is (cluster id, member id); `observer` sees every good record.

    Raises `Corrupt` for rot, `WrongDirectory` for a log of somebody else or of a newer format, `StorageError` if there
    is no log.
    """
    numbers = _segment_numbers(disk, path)
    replay: dict[GroupId, _Replay] = {}
    segments: list[Segment] = []
    identity: Identity | None = None
    watermark: Watermark | None = None
    chain = batch = end = bad = 0
    torn = tail = b""
    reason = ""
    for number in numbers:
        file = f"{path}/{segment_name(number)}"
        data = read_file(disk, file, SEGMENT_BYTES_MAX)
        preamble, crc = _preamble(file, data, number)
        if identity is None:
            _check_identity(path, preamble, expected)
            identity = preamble.identity
            watermark = read_watermark(disk, path, identity)
        else:
            if preamble.identity != identity:
                raise corrupt(
                    file, 24, f"the segment belongs to {_whose(preamble.identity)}, the log to {_whose(identity)}"
                )
            if preamble.first_batch > batch + 1:
                raise corrupt(f"{path}/{segment_name(number - 1)}", bad, f"{reason}, in a segment that was complete")
            if preamble.first_batch != batch + 1 or preamble.chain != chain:
                raise corrupt(
                    file, 48,
                    f"the segment follows batch {preamble.first_batch - 1} (chain {preamble.chain:08x}), but the "
                    "segment "
                    f"before it ends with batch {batch} (chain {chain:08x})",
                )  # fmt: skip
        segment = Segment(number, len(data))
        segments.append(segment)
        view = memoryview(data)
        chain, batch, end = crc, preamble.first_batch - 1, PREAMBLE_BYTES
        head = True
        while True:
            records = read_batch(view, end, identity.salt, chain, batch + 1)
            if isinstance(records, tuple):
                break
            for record in records:
                try:
                    _apply(replay, segments, record, head)
                except ValueError as error:
                    raise corrupt(file, record.offset, str(error)) from error
                if observer is not None:
                    observer(segment, record)
            if head and len(records) != len(replay) + 1:
                raise corrupt(
                    file, end, f"the head of the segment tells of {len(records) - 1} groups out of {len(replay)}"
                )
            chain, batch, end = records[-1].crc, batch + 1, aligned(records[-1].end)
            head = False
        bad, reason = records
        if head:  # it was synced before the segment got its name
            raise corrupt(file, bad, f"the head of the segment is damaged: {reason}")
        if number == numbers[-1]:
            rest = data[end:]
            torn = b"" if rest == bytes(len(rest)) else rest.rstrip(b"\0")
            later = later_batch(view, end, identity.salt, batch + 1) if torn else None
            if later is not None:
                # sometimes: a later batch tells rot from a torn tail
                raise corrupt(
                    file,
                    bad,
                    f"{reason}, but batch {later.batch} at offset {later.offset} was written after it was synced",
                )
            tail = data[:end]
        # Whether a segment with a successor was read to its end is known from that one's first batch and chain.
    assert identity is not None
    if watermark is not None and watermark.batch > batch:
        file = f"{path}/{segment_name(numbers[-1])}"
        if watermark.segment > numbers[-1]:
            what = f"segment {segment_name(watermark.segment)} was synced, but it is missing"
        else:
            # sometimes: the watermark tells rot from a torn tail
            what = f"the log was synced up to batch {watermark.batch}, but only batch {batch} is left: {reason}"
        raise corrupt(file, end, what)
    groups: dict[GroupId, GroupState] = {}
    positions: dict[GroupId, tuple[Index, Term]] = {}
    for group in sorted(replay):
        state = replay[group]
        groups[group] = state.finish(group, f"{path}/{segment_name(numbers[-1])}")
        positions[group] = (state.last_index, state.last_term)
    return LogImage(identity, groups, positions, segments, end, batch, chain, watermark, tail, torn, reason)


# ---------------------------------------------------------------- segments


def _segment_numbers(disk: Disk, path: str) -> list[int]:
    names = log_files(disk, path)
    numbers: list[int] = []
    for name in names:
        if name == WATERMARK_NAME:
            continue
        number = segment_number(name)
        if number is None or number == 0:
            raise corrupt(f"{path}/{name}", None, "this is not the name of a segment, but it ends like one")
        numbers.append(number)
    if not numbers:
        if names:
            raise corrupt(f"{path}/{WATERMARK_NAME}", None, "there was a log here, but all its segments are missing")
        raise StorageError(f"there is no log in {path}", path=path)
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise corrupt(
                f"{path}/{segment_name(before + 1)}",
                None,
                f"the segment is missing; the next one is {segment_name(after)}",
            )
    return numbers


def _preamble(file: str, data: bytes, number: int) -> tuple[Preamble, int]:
    found = unpack_preamble(data)
    if isinstance(found, str):
        raise corrupt(file, 0, found)
    preamble, crc = found
    if preamble.format > FORMAT:
        raise WrongDirectory(
            f"{file} has format {preamble.format}, this version of Oarlock reads formats up to {FORMAT}: "
            "start the version that wrote it, or a newer one",
            path=file,
        )
    if preamble.format < 1:
        raise corrupt(file, 8, f"format {preamble.format} does not exist")
    if preamble.number != number:
        raise corrupt(file, 16, f"the file holds segment {segment_name(preamble.number)}: it was renamed or copied")
    if preamble.segment_bytes != len(data):
        raise corrupt(
            file,
            min(len(data), preamble.segment_bytes),
            f"the file has {len(data)} bytes, but was made with {preamble.segment_bytes}",
        )
    return preamble, crc


def _whose(identity: Identity) -> str:
    return f"cluster {identity.cluster_id:x} member {identity.member_id:x} incarnation {identity.incarnation:x}"


def _check_identity(path: str, preamble: Preamble, expected: tuple[int, int] | None) -> None:
    if expected is None:
        return
    identity = preamble.identity
    if (identity.cluster_id, identity.member_id) != expected:
        raise WrongDirectory(
            f"{path} belongs to cluster {identity.cluster_id:x} member {identity.member_id:x}, but this is cluster "
            f"{expected[0]:x} member {expected[1]:x}: give each member its own data directory, or correct the "
            "cluster's "
            "token and members",
            path=path,
        )


# ---------------------------------------------------------------- records


@dataclass(slots=True)
class _Replay:
    """One group while the log is read. `last_index` and `last_term` are known from the first segment's head on, even if
    the entries up to there are in segments that have been released."""

    state: GroupState = field(default_factory=GroupState)
    last_index: Index = 0
    last_term: Term = 0

    def hard(self, hard_state: HardState) -> None:
        old = self.state.hard_state
        if hard_state.term < old.term or hard_state.commit < old.commit:
            raise ValueError(f"the hard state went back: {old} then {hard_state}")
        if hard_state.term == old.term and old.vote and hard_state.vote != old.vote:
            raise ValueError(f"the vote of term {old.term} changed from {old.vote:x} to {hard_state.vote:x}")
        self.state.hard_state = hard_state

    def mark(self, snapshot: SnapshotMeta, reset: bool) -> None:
        if snapshot.index < self.state.snapshot.index:
            raise ValueError(f"the snapshot mark went back from {self.state.snapshot.index} to {snapshot.index}")
        if reset:
            self.state.entries.clear()
            self.last_index, self.last_term = snapshot.index, snapshot.term
        elif snapshot.index > self.last_index:
            raise ValueError(f"the snapshot mark {snapshot.index} is past the log's last entry {self.last_index}")
        self.state.snapshot = snapshot

    def entry(self, record: Record) -> None:
        index, term = record.index, record.term
        entries = self.state.entries
        if index <= self.last_index:
            if not record.flags & CUT:
                raise ValueError(
                    f"entry {term}.{index} comes twice: the log already ends at {self.last_term}.{self.last_index}"
                )
            if index <= self.state.snapshot.index:
                raise ValueError(
                    f"entry {term}.{index} replaces what the snapshot mark {self.state.snapshot.index} covers"
                )
            if entries:
                # sometimes: a log is read in which entries took the place of others
                del entries[max(0, index - entries[0].index) :]
            if entries and term < entries[-1].term:
                raise ValueError(f"entry {term}.{index} does not follow {entries[-1]}: the term went back")
        elif index != self.last_index + 1 or record.flags & CUT:
            raise ValueError(f"entry {term}.{index} does not follow {self.last_term}.{self.last_index}")
        elif term < self.last_term:
            raise ValueError(
                f"entry {term}.{index} does not follow {self.last_term}.{self.last_index}: the term went back"
            )
        entries.append(Entry(term, index, record.kind, bytes(record.payload)))
        self.last_index, self.last_term = index, term

    def head(self, record: Record) -> None:
        """A segment's head repeats the group: pair it with what the segments before it said."""
        hard_state, snapshot = unpack_group(bytes(record.payload))
        told = (self.state.hard_state, self.state.snapshot, self.last_index, self.last_term)
        if told != (hard_state, snapshot, record.index, record.term):
            raise ValueError(
                f"the segment's head does not repeat group {record.group} as the segments before it left it"
            )

    def finish(self, group: GroupId, path: str) -> GroupState:
        state = self.state
        if state.entries and state.entries[0].index > state.snapshot.index + 1:
            raise corrupt(
                path, None,
                f"group {group}: entries {state.snapshot.index + 1} to {state.entries[0].index - 1} are missing "
                "between the "
                "snapshot and the log",
            )  # fmt: skip
        if not state.entries and self.last_index > state.snapshot.index:
            raise corrupt(
                path, None, f"group {group}: entries {state.snapshot.index + 1} to {self.last_index} are missing"
            )
        if state.hard_state.commit > self.last_index:
            raise corrupt(
                path, None, f"group {group}: commit {state.hard_state.commit} is past the last entry {self.last_index}"
            )
        return state


def _apply(replay: dict[GroupId, _Replay], segments: list[Segment], record: Record, head: bool) -> None:
    """Take one record. Raises `ValueError` if it does not fit what was read before."""
    kind = record.type
    group = replay.get(record.group)
    if kind == ENTRY and group is not None and not head:  # nearly all records
        if record.flags & CUT:
            clip(segments, record.group, record.index)
        group.entry(record)
        segments[-1].last_index[record.group] = record.index
        return
    if kind == SYNC:
        return
    if (kind == GROUP) != head:
        raise ValueError("a record that belongs to a segment's head is not there, or the other way round")
    if kind == GROUP:
        if group is not None:
            group.head(record)
            return
        if len(segments) > 1:
            raise ValueError(f"group {record.group} appears in a segment's head, but in no segment before it")
        hard_state, snapshot = unpack_group(bytes(record.payload))
        replay[record.group] = _Replay(GroupState(hard_state, snapshot), record.index, record.term)
        return
    if group is None:
        group = replay[record.group] = _Replay()
    if kind == ENTRY:
        group.entry(record)
        segments[-1].last_index[record.group] = record.index
    elif kind == HARD_STATE:
        group.hard(unpack_vote(record))
    elif kind == SNAPSHOT:
        reset = bool(record.flags & RESET)
        group.mark(unpack_mark(bytes(record.payload)), reset)
        if reset:
            clip(segments, record.group, 0)
    else:
        raise ValueError(f"type {kind} does not exist in format {FORMAT}")


def clip(segments: list[Segment], group: GroupId, index: Index) -> None:
    """Entries of `group` from `index` on have been replaced (0: all were dropped): no segment is needed for them."""
    for segment in segments:
        last = segment.last_index.get(group)
        if last is not None and last >= index:
            if index > 1:
                segment.last_index[group] = index - 1
            else:
                del segment.last_index[group]
