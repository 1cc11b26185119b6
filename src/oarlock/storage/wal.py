"""The write-ahead log: what a member must remember, in one stream of records for all its groups.

`append` only remembers; `sync` writes everything appended as one batch and makes it durable: that is the group
commit. A batch lies whole in one segment, begins at a sector boundary, and is written only after the sync of the one
before it, so that recovery can tell a torn tail from rot (see `recovery` and docs/reference/file-formats.md).

Threads: `append` may run on one thread while `sync` runs on another and `prepare_next` and `release` on a third; each
of them on one thread at a time. Nothing here locks: what they share is handed over through deques and lists, whose
single operations are atomic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from oarlock.errors import ConfigurationError, Corrupt, DiskFull, Overloaded, StorageError
from oarlock.raft.types import Entry, GroupId, HardState, Index, SnapshotMeta, Term
from oarlock.storage.disk import SECTOR_BYTES, Disk, File, KernelSyncs, Lock, aligned
from oarlock.storage.records import (
    CUT,
    ENTRY,
    FIRST,
    FORMAT,
    GROUP,
    GROUP_MAX,
    HARD_STATE,
    HEADER_BYTES,
    PREAMBLE_BYTES,
    RECORD_PAYLOAD_BYTES_MAX,
    RESET,
    SEGMENT_BYTES_DEFAULT,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SNAPSHOT,
    SYNC,
    Identity,
    Preamble,
    Watermark,
    pack_group,
    pack_mark,
    pack_preamble,
    pack_record,
    pack_vote,
    pack_watermark,
)
from oarlock.storage.recovery import (
    LOCK_NAME,
    WATERMARK_NAME,
    GroupState,
    LogImage,
    Recovered,
    Segment,
    clip,
    log_files,
    read_file,
    read_log,
)

__all__ = ["GroupState", "Identity", "Recovered", "WriteAheadLog"]

SPARE_PREFIX: Final = "spare-"
TEMPORARY_SUFFIX: Final = ".tmp"


class _Item:
    """One `append`, waiting for `sync`."""

    __slots__ = ("entries", "group", "hard_state", "reset", "snapshot")

    def __init__(
        self,
        group: GroupId,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        snapshot: SnapshotMeta | None,
        reset: bool,
    ) -> None:
        self.group = group
        self.hard_state = hard_state
        self.entries = entries
        self.snapshot = snapshot
        self.reset = reset


@dataclass(slots=True)
class _Expected:
    """What the next `append` of a group must follow. `terms` are (first index, term) of the runs of equal terms that
    are still known, ascending."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot_index: Index = 0
    last_index: Index = 0
    terms: list[tuple[Index, Term]] = field(default_factory=list)

    def last_term(self) -> Term:
        return self.terms[-1][1] if self.terms else 0

    def cut(self, index: Index) -> None:
        while self.terms and self.terms[-1][0] >= index:
            self.terms.pop()
        self.last_index = index - 1

    def forget(self, index: Index) -> None:
        """Drop the runs that end before `index`: no cut will reach them."""
        while len(self.terms) > 1 and self.terms[1][0] <= index:
            del self.terms[0]


@dataclass(slots=True)
class _Written:
    """A group as the records written so far leave it: what the head of the next segment repeats."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    last_index: Index = 0
    last_term: Term = 0


class WriteAheadLog:
    """An open log. After any error in `sync` it is dead: every later call raises, and only `close` is of use."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        identity: Identity,
        lock: Lock,
        file: File,
        segment_bytes: int,
        segments: Sequence[Segment],
    ) -> None:
        """Use `create` or `open`."""
        self._disk = disk
        self._path = path
        self._identity = identity
        self._lock = lock
        self._file = file
        self._segment_bytes = segment_bytes
        self._salt = identity.salt
        self._failed: BaseException | None = None
        self._closed = False
        # append's side
        self._expected: dict[GroupId, _Expected] = {}
        self._pending: deque[_Item] = deque()
        # sync's side
        self._written: dict[GroupId, _Written] = {}
        self._segments: list[Segment] = list(segments)
        self._position = 0
        self._chain = 0
        self._batch = 0
        self._buffers: list[bytes] = []
        self._buffered = 0
        self._records = 0
        self._new_marks: dict[GroupId, Index] = {}  # of the batch that is being made
        self._begun = False  # the batch is written, and somebody else has it synced
        self._watermark: File | None = None
        # shared
        self._marks: dict[GroupId, Index] = {}  # durable snapshot marks
        self._released: dict[GroupId, Index] = {}
        self._spares: deque[str] = deque()
        self._spare_number = 0
        self.bytes_written = 0
        """Record bytes written to segments since the log was opened, heads and padding not counted."""
        self.syncs = 0
        """Batches made durable since the log was opened."""

    # ------------------------------------------------------------ open and close

    @staticmethod
    def exists(disk: Disk, path: str) -> bool:
        """Whether `path` holds a log, or the remains of one (then `open` says what is wrong)."""
        return bool(log_files(disk, path))

    @classmethod
    def create(
        cls, disk: Disk, path: str, identity: Identity, *, segment_bytes: int = SEGMENT_BYTES_DEFAULT
    ) -> WriteAheadLog:
        """Begin an empty log in `path`, a directory that is created if it is missing.

        `identity.incarnation` must be fresh random bits. Raises `StorageError` if a log is there already,
        `DirectoryInUse` if another process is at it. A crash in the middle leaves a directory in which `exists` is
        false or `open` succeeds.
        """
        _check_segment_bytes(segment_bytes)
        disk.mkdir(path)
        lock = disk.lock(f"{path}/{LOCK_NAME}")
        try:
            if log_files(disk, path):
                raise StorageError(f"{path} already holds a log: open it, or choose an empty directory", path=path)
            _remove_temporaries(disk, path)
            preamble, crc = pack_preamble(Preamble(FORMAT, segment_bytes, 1, identity, 1, 0))
            record, chain = pack_record(identity.salt, crc, 1, SYNC, FIRST, 0, 0, 1, 0, b"")
            name = _zero_file(disk, f"{path}/{_segment(1)}{TEMPORARY_SUFFIX}", segment_bytes)
            file = disk.open(name)
            file.pwrite(0, preamble + record)
            file.datasync()
            disk.rename(name, f"{path}/{_segment(1)}")
            disk.sync_dir(path)
            log = cls(disk, path, identity, lock, file, segment_bytes, [Segment(1, segment_bytes)])
            log._position = aligned(PREAMBLE_BYTES + len(record))
            log._chain, log._batch = chain, 1
            log._open_watermark()
        except BaseException:
            lock.release()
            raise
        return log

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        expected: tuple[int, int] | None = None,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
    ) -> tuple[WriteAheadLog, Recovered]:
        """Read the log in `path` and go on with it. `expected` is the (cluster id, member id) that it must belong to.

        Cuts a torn tail: the cut bytes are kept in a `.torn` file beside the segment. Raises `Corrupt` for rot (nothing
        is changed then), `WrongDirectory`, `DirectoryInUse`, or `StorageError` if there is no log. Everything returned
        is durable, also if an earlier process died between write and sync.
        """
        _check_segment_bytes(segment_bytes)
        if not log_files(disk, path):
            raise StorageError(f"there is no log in {path}", path=path)
        disk.mkdir(path)  # checks owner and mode
        lock = disk.lock(f"{path}/{LOCK_NAME}")
        try:
            image = read_log(disk, path, expected=expected)
            _remove_temporaries(disk, path)
            last = image.segments[-1]
            repaired = ""
            spares, spare_number = _find_spares(disk, path, segment_bytes)
            if image.torn:
                # sometimes: a torn tail is cut
                repaired = _keep_torn(disk, path, image)
            if image.torn or not image.trusted:
                # sometimes: a tail that nobody vouches for is written again
                # An earlier process may have failed in its sync: then what we read is in the page cache only, marked
                # clean, and no sync would ever write it. A new file is dirty for certain, and the old one stays until
                # it is safe.
                _rewrite_tail(disk, path, image, spares, segment_bytes)
            disk.sync_dir(path)  # an earlier process may have died between a rename and this
            file = disk.open(f"{path}/{last.name}")
            log = cls(disk, path, image.identity, lock, file, segment_bytes, image.segments)
            log._spares.extend(spares)
            log._spare_number = spare_number
            log._position, log._chain, log._batch = image.end, image.chain, image.batch
            for group, state in image.groups.items():
                log._adopt(group, state, *image.positions[group])
            log._open_watermark()
        except BaseException:
            lock.release()
            raise
        return log, Recovered(image.identity, image.groups, repaired)

    def _adopt(self, group: GroupId, state: GroupState, last_index: Index, last_term: Term) -> None:
        self._written[group] = _Written(state.hard_state, state.snapshot, last_index, last_term)
        self._marks[group] = state.snapshot.index
        expected = self._expected[group] = _Expected(state.hard_state, state.snapshot.index, last_index)
        for entry in state.entries:
            if entry.term != expected.last_term() or not expected.terms:
                expected.terms.append((entry.index, entry.term))
        if not state.entries:
            expected.terms.append((last_index, last_term))

    def close(self) -> None:
        """Give the directory back. What was appended and not synced is not written. Closing twice is allowed.

        A healthy log records durably how far it was synced: after that, any damage up to the last byte is known as rot.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._failed is None and self._watermark is not None:
                self._write_watermark()
                self._watermark.datasync()
        finally:
            try:
                self._file.close()
                if self._watermark is not None:
                    self._watermark.close()
            finally:
                self._lock.release()

    # ------------------------------------------------------------ append and sync

    def append(
        self,
        group: GroupId,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        *,
        snapshot: SnapshotMeta | None = None,
        reset_log: bool = False,
    ) -> None:
        """Remember, in this order: the snapshot mark (after dropping the log if `reset_log`, or if the mark is past its
        end), the hard state, the entries. Nothing is durable before `sync`.

        A first entry at or below the last index cuts the log there. Asserts that the sequence makes sense: indexes
        without gaps, terms that never go back, one vote a term, no cut at or below what is committed. Raises
        `Overloaded` for an entry over `RECORD_PAYLOAD_BYTES_MAX`; nothing of the call is remembered then.
        """
        self._usable()
        assert 0 <= group <= GROUP_MAX, f"group {group}"
        for entry in entries:
            if len(entry.payload) > RECORD_PAYLOAD_BYTES_MAX:
                raise Overloaded("RECORD_PAYLOAD_BYTES_MAX", RECORD_PAYLOAD_BYTES_MAX)
        expected = self._expected.get(group)
        if expected is None:
            expected = self._expected[group] = _Expected()
        reset = False
        committed = expected.hard_state.commit
        if snapshot is not None:
            assert snapshot.index >= expected.snapshot_index, f"mark {snapshot.index} after {expected.snapshot_index}"
            reset = reset_log or snapshot.index > expected.last_index
            expected.snapshot_index = snapshot.index
            if reset:
                expected.terms = [(snapshot.index, snapshot.term)]
                expected.last_index = snapshot.index
            else:
                expected.forget(snapshot.index)
        else:
            assert not reset_log, "reset_log needs a snapshot mark: without one the log would begin nowhere"
        if hard_state is not None:
            old = expected.hard_state
            assert hard_state.term >= old.term, f"term went back: {old} then {hard_state}"
            assert hard_state.commit >= old.commit, f"commit went back: {old} then {hard_state}"
            assert hard_state.term > old.term or not old.vote or hard_state.vote == old.vote, (
                f"vote changed: {old} then {hard_state}"
            )
            expected.hard_state = hard_state
        if entries:
            first = entries[0].index
            if first <= expected.last_index:
                assert first > committed, f"entry {entries[0]} replaces a committed one (commit {committed})"
                assert first > expected.snapshot_index, (
                    f"entry {entries[0]} replaces what mark {expected.snapshot_index} covers"
                )
                expected.cut(first)
            next_index = expected.last_index + 1
            term = expected.last_term()
            for entry in entries:
                assert entry.index == next_index, f"gap: {entry} where index {next_index} was due"
                if entry.term != term:
                    assert entry.term > term, f"term went back: {entry} after term {term}"
                    term = entry.term
                    expected.terms.append((next_index, term))
                next_index += 1
            expected.last_index = next_index - 1
        commit = expected.hard_state.commit
        assert commit <= expected.last_index, f"commit {commit} is past the last entry {expected.last_index}"
        self._pending.append(_Item(group, hard_state, entries, snapshot, reset))

    @property
    def room(self) -> int:
        """Bytes that still fit into the present segment. To begin another takes several syncs."""
        return self._segments[-1].size - self._position - HEADER_BYTES

    def sync(self, *, note: bool = True) -> None:
        """Write everything appended so far and make it durable. On any error the log is dead.

        With `note` off the watermark is left behind; the caller gives `note_synced` soon, when nobody waits. Until then
        damage to this very batch, if it is the last one, would pass for a torn tail.
        """
        self._usable()
        try:
            if self._begun:
                # sometimes: a sync that was begun is ended by waiting for it
                self._file.datasync()
                self._end_batch()
            if self._pending:
                self._encode_pending()
                self._commit()
                if note:
                    self._write_watermark()
        except BaseException as error:
            self._dead(error)
            raise

    def begin_sync(self, kernel: KernelSyncs) -> bool:
        """`sync(note=False)` in two halves: write everything appended so far and have `kernel` sync it; `end_sync` is
        due when it has. Needs something appended and `room` for it, as a new segment cannot be begun without waiting.

        False if the kernel takes no sync now: it is then `sync` that makes durable what was written. On any other error
        the log is dead.
        """
        self._usable()
        assert self._pending and not self._begun, "one sync at a time"
        try:
            self._encode_pending()
            self._write_batch()
            self._begun = True
            return self._file.begin_datasync(kernel)
        except BaseException as error:
            self._dead(error)
            raise

    def end_sync(self, code: int) -> None:
        """The sync that was begun has ended, with 0 or with an `errno`; with an error the log is dead."""
        self._usable()
        assert self._begun, "no sync was begun"
        try:
            self._file.end_datasync(code)
            self._end_batch()
        except BaseException as error:
            self._dead(error)
            raise

    def _dead(self, error: BaseException) -> None:
        self._failed = error
        if isinstance(error, DiskFull):
            # What is durable stays so, and must be known to be: on a full disk a start could not copy the tail.
            # sometimes: the disk is full in the middle of a batch
            self._write_watermark()

    def _encode_pending(self) -> None:
        for _ in range(len(self._pending)):
            self._encode(self._pending.popleft())

    def _encode(self, item: _Item) -> None:
        group = item.group
        written = self._written.get(group) or _Written()  # entered only after its first record: see `_cut`
        if item.snapshot is not None:
            mark = item.snapshot
            self._put(SNAPSHOT, RESET if item.reset else 0, 0, group, mark.index, mark.term, pack_mark(mark))
            self._written[group] = written
            written.snapshot = mark
            self._new_marks[group] = mark.index
            if item.reset:
                written.last_index, written.last_term = mark.index, mark.term
                # sometimes: a snapshot takes the place of a log
                clip(self._segments, group, 0)
        hard = item.hard_state
        # A segment may end between any two of these records, and a crash then keeps the first part only: a commit index
        # must never be durable before the entries it vouches for, which may have to replace others.
        late = hard is not None and bool(item.entries) and hard.commit >= item.entries[0].index
        if hard is not None:
            early = HardState(hard.term, hard.vote, item.entries[0].index - 1) if late else hard
            self._put_hard(group, written, early)
        for entry in item.entries:
            index = entry.index
            if index <= written.last_index:
                self._put(ENTRY, CUT, entry.kind, group, index, entry.term, entry.payload)
                # sometimes: entries take the place of others
                clip(self._segments, group, index)
            else:
                self._put(ENTRY, 0, entry.kind, group, index, entry.term, entry.payload)
            self._segments[-1].last_index[group] = written.last_index = index
            written.last_term = entry.term
            self._written[group] = written
        if hard is not None and late:
            # sometimes: a commit index waits for its entries
            self._put_hard(group, written, hard)

    def _put_hard(self, group: GroupId, written: _Written, hard: HardState) -> None:
        self._put(HARD_STATE, 0, 0, group, hard.commit, hard.term, pack_vote(hard))
        self._written[group] = written
        written.hard_state = hard

    def _put(
        self, record_type: int, flags: int, kind: int, group: GroupId, index: Index, term: Term, payload: bytes
    ) -> None:
        size = HEADER_BYTES + len(payload)
        if self._position + self._buffered + size + HEADER_BYTES > self._segments[-1].size:
            if self._buffers:
                # sometimes: a batch is spread over two segments
                self._commit()
            self._cut(size)
        if not self._buffers:
            flags |= FIRST
        header, self._chain = pack_record(
            self._salt, self._chain, self._batch + 1, record_type, flags, kind, group, index, term, payload
        )
        self._buffers.append(header)
        if payload:
            self._buffers.append(payload)
        self._buffered += size
        self._records += 1

    def _commit(self) -> None:
        """End the batch, write it, and wait until it is durable."""
        self._write_batch()
        self._file.datasync()
        self._end_batch()

    def _write_batch(self) -> None:
        header, self._chain = pack_record(
            self._salt,
            self._chain,
            self._batch + 1,
            SYNC,
            0 if self._buffers else FIRST,
            0,
            0,
            self._records + 1,
            0,
            b"",
        )
        self._buffers.append(header)
        self._file.pwrite(self._position, self._buffers)

    def _end_batch(self) -> None:
        """What was written is durable."""
        self._begun = False
        size = self._buffered + HEADER_BYTES
        self._batch += 1
        self._position += aligned(size)
        self._buffers = []
        self._buffered = self._records = 0
        self.bytes_written += size
        self.syncs += 1
        self._marks.update(self._new_marks)
        self._new_marks.clear()

    def _cut(self, size: int) -> None:
        """Go on in a new segment that has room for a record of `size` bytes. It is complete before it gets its name."""
        number = self._segments[-1].number + 1
        batch = self._batch + 1
        head: list[bytes] = []
        # The head is packed twice: its size decides the segment's size, which is part of the preamble.
        head_bytes = (
            PREAMBLE_BYTES
            + HEADER_BYTES
            + sum(
                HEADER_BYTES + len(pack_group(written.hard_state, written.snapshot))
                for written in self._written.values()
            )
        )
        # Room for half a segment, and for as much as the head takes: else large heads would be most of what is written.
        room = max(size + HEADER_BYTES, self._segment_bytes // 2, head_bytes)
        segment_bytes = max(self._segment_bytes, aligned(aligned(head_bytes) + room))
        assert segment_bytes <= SEGMENT_BYTES_MAX, f"a segment of {segment_bytes} bytes"
        preamble, chain = pack_preamble(Preamble(FORMAT, segment_bytes, number, self._identity, batch, self._chain))
        head.append(preamble)
        flags = FIRST
        for group, written in self._written.items():
            payload = pack_group(written.hard_state, written.snapshot)
            header, chain = pack_record(
                self._salt, chain, batch, GROUP, flags, 0, group, written.last_index, written.last_term, payload
            )
            head += (header, payload)
            flags = 0
        header, chain = pack_record(self._salt, chain, batch, SYNC, flags, 0, 0, len(self._written) + 1, 0, b"")
        head.append(header)

        name = f"{self._path}/{_segment(number)}"
        source = self._take_spare(segment_bytes) or _zero_file(self._disk, name + TEMPORARY_SUFFIX, segment_bytes)
        file = self._disk.open(source)
        file.pwrite(0, head)
        file.datasync()
        self._disk.rename(source, name)
        self._disk.sync_dir(self._path)
        old, self._file = self._file, file
        old.close()
        self._segments.append(Segment(number, segment_bytes))
        self._position = aligned(head_bytes)
        self._chain = chain
        self._batch = batch
        self._write_watermark()
        assert self._watermark is not None
        self._watermark.datasync()  # from here on a missing last segment is known to be missing

    # ------------------------------------------------------------ slow work, off the path

    def prepare_next(self) -> None:
        """Make the next segment ahead of need, so that `sync` never waits for it, and drop segments that were released.

        Call it now and then from a thread that may wait. Raises `DiskFull` if there is no room for a spare: the log
        goes on, and has what is left of its present segment (`free_bytes`) before `sync` fails; other errors likewise
        leave the log as it is.
        """
        self._usable()
        self._drop_segments()
        if self._spares:
            return
        self._spare_number += 1
        name = f"{self._path}/{SPARE_PREFIX}{self._spare_number:016x}"
        _zero_file(self._disk, name + TEMPORARY_SUFFIX, self._segment_bytes)
        self._disk.rename(name + TEMPORARY_SUFFIX, name)
        self._disk.sync_dir(self._path)
        self._spares.append(name)

    def release(self, group: GroupId, index: Index) -> None:
        """Entries of `group` up to `index` are not needed any more. Drops the oldest segments that nobody needs.

        Never drops an entry past the group's *durable* snapshot mark, whatever `index` says.
        """
        self._usable()
        self._released[group] = max(index, self._released.get(group, 0))
        self._drop_segments()

    def _drop_segments(self) -> None:
        while len(self._segments) > 1:
            oldest = self._segments[0]
            for group, last in list(oldest.last_index.items()):
                if last > min(self._released.get(group, 0), self._marks.get(group, 0)):
                    return
            # One at a time, each made durable: after a power loss the segments that are left must be without gaps.
            # sometimes: a segment is dropped
            self._disk.unlink(f"{self._path}/{oldest.name}")
            self._disk.sync_dir(self._path)
            self._segments.pop(0)
            for name in self._disk.listdir(self._path):
                if name.startswith(f"{oldest.name}.torn-"):
                    self._disk.unlink(f"{self._path}/{name}")

    def _take_spare(self, segment_bytes: int) -> str:
        if segment_bytes != self._segment_bytes:
            return ""
        try:
            # sometimes: a spare segment is used
            return self._spares.popleft()
        except IndexError:
            return ""

    # ------------------------------------------------------------ watermark

    def _open_watermark(self) -> None:
        name = f"{self._path}/{WATERMARK_NAME}"
        if self._disk.exists(name):
            self._watermark = self._disk.open(name)
            fresh = self._watermark.size() < 2 * SECTOR_BYTES
        else:
            self._watermark = self._disk.create(name)
            fresh = True
        if fresh:
            self._watermark.fill_zeros(0, 2 * SECTOR_BYTES)
        self._write_watermark()
        if fresh:
            self._watermark.datasync()
            self._disk.sync_dir(self._path)

    def note_synced(self) -> None:
        """Write the watermark that `sync(note=False)` left behind. On any error the log is dead."""
        self._usable()
        try:
            self._write_watermark()
        except BaseException as error:
            self._failed = error
            raise

    def _write_watermark(self) -> None:
        """Note how far the log was synced, alternating between two sectors. Not synced: an old watermark is still
        true."""
        assert self._watermark is not None
        mark = Watermark(self._batch, self._segments[-1].number, self._position)
        self._watermark.pwrite((self._batch & 1) * SECTOR_BYTES, pack_watermark(self._identity, mark))

    # ------------------------------------------------------------ figures

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segment files, a spare not counted."""
        return sum(segment.size for segment in self._segments)

    @property
    def free_bytes(self) -> int:
        """What the present segment still takes before `sync` needs another one."""
        return self._segments[-1].size - self._position

    @property
    def failed(self) -> bool:
        return self._failed is not None

    def _usable(self) -> None:
        if self._failed is not None:
            raise StorageError(
                f"the log in {self._path} stopped after an error and must be opened anew: {self._failed}",
                path=self._path,
            ) from self._failed
        if self._closed:
            raise StorageError(f"the log in {self._path} is closed", path=self._path)


# ---------------------------------------------------------------- files


def _segment(number: int) -> str:
    return Segment(number, 0).name


def _check_segment_bytes(segment_bytes: int) -> None:
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX or segment_bytes % SECTOR_BYTES:
        raise ConfigurationError(
            f"segment_bytes is {segment_bytes}: it must be a multiple of {SECTOR_BYTES} between {SEGMENT_BYTES_MIN} "
            f"and {SEGMENT_BYTES_MAX}"
        )


def _zero_file(disk: Disk, name: str, size: int) -> str:
    """A durable file of `size` real zeros. If the disk is full, what was begun is removed."""
    file = disk.create(name)
    try:
        file.fill_zeros(0, size)
        file.datasync()
    except StorageError:
        file.close()
        # sometimes: no room for a new segment
        disk.unlink(name)
        raise
    file.close()
    return name


def _remove_temporaries(disk: Disk, path: str) -> None:
    for name in disk.listdir(path):
        if name.endswith(TEMPORARY_SUFFIX):
            disk.unlink(f"{path}/{name}")


def _find_spares(disk: Disk, path: str, segment_bytes: int) -> tuple[list[str], int]:
    """The spare of an earlier process, if it is whole and still empty; others are removed. And the highest number
    seen."""
    spares: list[str] = []
    highest = 0
    for name in disk.listdir(path):
        if not name.startswith(SPARE_PREFIX):
            continue
        file = f"{path}/{name}"
        try:
            highest = max(highest, int(name.removeprefix(SPARE_PREFIX), 16))
            usable = not spares and read_file(disk, file, segment_bytes) == bytes(segment_bytes)
        except (ValueError, Corrupt):
            usable = False
        if usable:
            spares.append(file)
        else:
            disk.unlink(file)
    return spares, highest


def _keep_torn(disk: Disk, path: str, image: LogImage) -> str:
    """Set the bytes of the torn tail aside; the sentence for `Recovered.repaired`."""
    segment = image.segments[-1].name
    name = f"{path}/{segment}.torn-{image.end:08x}"
    file = disk.create(name + TEMPORARY_SUFFIX)
    try:
        file.pwrite(0, image.torn)
        file.datasync()
    finally:
        file.close()
    disk.rename(name + TEMPORARY_SUFFIX, name)
    disk.sync_dir(path)
    return (
        f"{path}/{segment}: {len(image.torn)} bytes from offset {image.end} on were written but never synced "
        f"({image.torn_reason}); they were cut, and kept in {name}"
    )


def _rewrite_tail(disk: Disk, path: str, image: LogImage, spares: list[str], segment_bytes: int) -> None:
    """Replace the last segment by a copy of its good part with zeros behind it, durably, without touching the old file
    before the new one is safe. Uses the spare if the sizes agree: a full disk must not stop a repair."""
    last = image.segments[-1]
    name = f"{path}/{last.name}"
    if spares and last.size == segment_bytes:
        # sometimes: a torn tail is copied into the spare
        source = spares.pop()
    else:
        source = _zero_file(disk, name + TEMPORARY_SUFFIX, last.size)
    file = disk.open(source)
    try:
        file.pwrite(0, image.tail)
        file.datasync()
    finally:
        file.close()
    disk.rename(source, name)
