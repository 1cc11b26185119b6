"""The write-ahead log when nothing breaks: the order of things, bounds, segments, spares, the golden file."""

from __future__ import annotations

from pathlib import Path

import pytest

from oarlock.errors import ConfigurationError, DiskFull, Overloaded, StorageError
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, MemberInfo, MemberRole, SnapshotMeta
from oarlock.storage import wal as wal_module
from oarlock.storage.disk import SECTOR_BYTES
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.records import SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, Identity
from oarlock.storage.recovery import GroupState, Recovered
from oarlock.storage.sim_disk import Fault, SimDisk
from oarlock.storage.wal import WriteAheadLog

PATH = "w"
IDENTITY = Identity(1, 2, 3)
GOLDEN = Path(__file__).parent / "golden" / "format-1.wal"


def new(disk: SimDisk, segment_bytes: int = 4096) -> WriteAheadLog:
    return WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=segment_bytes)


def reopen(
    disk: SimDisk, log: WriteAheadLog | None = None, segment_bytes: int = 4096
) -> tuple[WriteAheadLog, Recovered]:
    if log is not None:
        log.close()
    return WriteAheadLog.open(disk, PATH, expected=(1, 2), segment_bytes=segment_bytes)


def entries(first: int, count: int, term: int = 1, size: int = 30) -> list[Entry]:
    return [Entry(term, first + n, 0, bytes([(first + n) % 256]) * size) for n in range(count)]


def test_a_new_log_is_empty_and_knows_whose_it_is() -> None:
    disk = SimDisk()
    assert not WriteAheadLog.exists(disk, PATH)
    log = new(disk)
    assert WriteAheadLog.exists(disk, PATH)
    log, found = reopen(disk, log)
    assert (found.identity, found.groups, found.repaired) == (IDENTITY, {}, "")
    log, again = reopen(disk, log)
    assert again == found


def test_what_is_appended_is_durable_only_after_sync() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, HardState(1, 2, 0), entries(1, 1))
    log.sync()
    log.append(0, HardState(1, 2, 1), entries(2, 1))
    log, found = reopen(disk, log)
    assert found.groups == {0: GroupState(HardState(1, 2, 0), SnapshotMeta(), entries(1, 1))}


def test_one_sync_for_all_groups() -> None:
    disk = SimDisk()
    log = new(disk)
    before = sum(kind == "sync" for kind, _ in disk.log)
    for group in range(20):
        log.append(group, HardState(group + 1, 1, 0), entries(1, 2, size=3))
    log.sync()
    log.sync()  # nothing to do
    assert sum(kind == "sync" for kind, _ in disk.log) == before + 1
    assert log.syncs == 1 and log.bytes_written == 20 * (48 + 8 + 2 * 51) + 48
    _, found = reopen(disk, log)
    assert [state.hard_state.term for state in found.groups.values()] == list(range(1, 21))


def test_everything_of_a_record_comes_back() -> None:
    members = Configuration.of(
        MemberInfo(id=1, context=b"one"),
        MemberInfo(id=2**64 - 1, role=MemberRole.WITNESS, priority=0, incarnation=2**64 - 1),
    )
    mark = SnapshotMeta(2**63, 2**62, members, 2**40, bytes(range(32)))
    last = Entry(2**64 - 1, 2**63 + 1, EntryKind.CONFIG, b"\0\1\2")
    disk = SimDisk()
    log = new(disk)
    log.append(2**32 - 1, HardState(2**64 - 1, 2**64 - 1, 2**63), [last], snapshot=mark, reset_log=True)
    log.sync()
    _, found = reopen(disk, log)
    assert found.groups == {2**32 - 1: GroupState(HardState(2**64 - 1, 2**64 - 1, 2**63), mark, [last])}


def test_an_entry_at_or_below_the_last_index_cuts_there() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, HardState(1, 0, 1), entries(1, 5))
    log.append(0, HardState(2, 0, 1), entries(3, 1, 2))
    log.sync()
    log, found = reopen(disk, log)
    assert [str(e) for e in found.groups[0].entries] == ["1.1", "1.2", "2.3"]
    log.append(0, None, entries(2, 1, 3))
    log.sync()
    _, found = reopen(disk, log)
    assert [str(e) for e in found.groups[0].entries] == ["1.1", "3.2"]


def test_a_mark_past_the_end_or_with_reset_drops_the_log() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, None, entries(1, 5))
    log.append(1, None, entries(1, 5))
    log.append(2, None, entries(1, 5))
    log.append(0, None, entries(10, 1, 2), snapshot=SnapshotMeta(9, 2))
    log.append(1, None, entries(4, 1, 2), snapshot=SnapshotMeta(3, 1), reset_log=True)
    log.append(2, None, entries(6, 1, 2), snapshot=SnapshotMeta(3, 1))
    log.sync()
    _, found = reopen(disk, log)
    assert [[str(e) for e in found.groups[g].entries] for g in range(3)] == [
        ["2.10"], ["2.4"], ["1.1", "1.2", "1.3", "1.4", "1.5", "2.6"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "hard_state", "made", "mark", "reset"),
    [
        ("gap", None, entries(7, 1, 3), None, False),
        ("gap", None, [*entries(6, 1, 3), *entries(8, 1, 3)], None, False),
        ("term went back", None, entries(6, 1, 2), None, False),
        ("term went back", None, [*entries(6, 1, 4), *entries(7, 1, 3)], None, False),
        ("replaces a committed one", None, entries(3, 1, 5), None, False),
        ("replaces what mark", None, entries(4, 1, 5), SnapshotMeta(4, 3), False),
        ("term went back", HardState(3, 0, 3), [], None, False),
        ("commit went back", HardState(4, 9, 2), [], None, False),
        ("vote changed", HardState(4, 8, 3), [], None, False),
        ("past the last entry", HardState(4, 9, 6), [], None, False),
        ("mark 1 after 2", None, [], SnapshotMeta(1, 3), False),
        ("reset_log needs", None, [], None, True),
        ("group", None, [], None, False),
    ],
)
def test_what_makes_no_sense_is_asserted(
    words: str, hard_state: HardState | None, made: list[Entry], mark: SnapshotMeta | None, reset: bool
) -> None:
    log = new(SimDisk())
    log.append(0, HardState(4, 9, 3), entries(1, 5, 3), snapshot=SnapshotMeta(0, 0))
    log.append(0, None, [], snapshot=SnapshotMeta(2, 3))
    with pytest.raises(AssertionError, match=words):
        log.append(-1 if words == "group" else 0, hard_state, made, snapshot=mark, reset_log=reset)


def test_the_asserts_also_know_what_was_recovered() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, HardState(4, 9, 2), [*entries(1, 2, 1), *entries(3, 2, 3)])
    log.sync()
    log, _ = reopen(disk, log)
    with pytest.raises(AssertionError, match="term went back"):
        log.append(0, None, entries(4, 1, 2))
    with pytest.raises(AssertionError, match="committed"):
        log.append(0, None, entries(2, 1, 4))


@pytest.mark.interpreted
def test_an_entry_over_the_bound_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_module, "RECORD_PAYLOAD_BYTES_MAX", 100)
    disk = SimDisk()
    log = new(disk)
    with pytest.raises(Overloaded, match=r"RECORD_PAYLOAD_BYTES_MAX is full \(limit 100\)"):
        log.append(0, HardState(1, 1, 0), [*entries(1, 1, size=100), *entries(2, 1, size=101)])
    log.append(0, None, entries(1, 1, size=100))
    log.sync()
    _, found = reopen(disk, log)
    assert found.groups == {0: GroupState(entries=entries(1, 1, size=100))}


@pytest.mark.parametrize("segment_bytes", [0, SEGMENT_BYTES_MIN - SECTOR_BYTES, 4097, SEGMENT_BYTES_MAX + SECTOR_BYTES])
def test_segment_bytes_has_bounds(segment_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="segment_bytes"):
        new(SimDisk(), segment_bytes)
    disk = SimDisk()
    new(disk).close()
    with pytest.raises(ConfigurationError, match="segment_bytes"):
        reopen(disk, None, segment_bytes)


def test_a_record_larger_than_a_segment_gets_a_segment_that_fits() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, None, entries(1, 1, size=50_000))
    log.append(0, None, entries(2, 1))
    log.sync()
    _, found = reopen(disk, log)
    assert found.groups[0].entries == [*entries(1, 1, size=50_000), *entries(2, 1)]


def test_a_new_segment_repeats_what_no_record_says_again() -> None:
    """Term and vote survive the removal of the segment in which they were written (BZ-104)."""
    disk = SimDisk()
    log = new(disk)
    log.append(3, HardState(8, 2, 0), (), snapshot=SnapshotMeta(0, 0, Configuration.of_voters(1, 2)))
    for n in range(20):
        log.append(0, HardState(1, 1, n), entries(n + 1, 1, size=900))
        log.sync()
    log.append(0, None, (), snapshot=SnapshotMeta(20, 1))
    log.sync()
    count = log.segment_count
    log.release(0, 20)
    assert log.segment_count < count
    assert "0000000000000001.wal" not in disk.listdir(PATH)
    _, found = reopen(disk, log)
    assert found.groups[3] == GroupState(HardState(8, 2, 0), SnapshotMeta(0, 0, Configuration.of_voters(1, 2)))
    assert found.groups[0].hard_state == HardState(1, 1, 19) and found.groups[0].last_index == 20


def test_release_never_passes_the_durable_mark() -> None:
    disk = SimDisk()
    log = new(disk)
    for n in range(20):
        log.append(0, None, entries(n + 1, 1, size=900))
        log.sync()
    count = log.segment_count
    log.release(0, 20)
    assert log.segment_count == count, "there is no mark at all"
    log.append(0, None, (), snapshot=SnapshotMeta(10, 1))
    log.release(0, 20)
    assert log.segment_count == count, "the mark is not durable"
    log.sync()
    log.prepare_next()
    assert 1 < log.segment_count < count
    _, found = reopen(disk, log)
    assert found.groups[0].entries[0].index <= 11 and found.groups[0].last_index == 20


def test_a_group_that_lags_holds_its_segments() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(1, None, entries(1, 1))
    for n in range(12):
        log.append(0, None, entries(n + 1, 1, size=900))
    log.append(0, None, (), snapshot=SnapshotMeta(12, 1))
    log.sync()
    count = log.segment_count
    log.release(0, 12)
    assert log.segment_count == count
    log.append(1, None, (), snapshot=SnapshotMeta(1, 1))
    log.sync()
    log.release(1, 1)
    assert log.segment_count == 1


def test_entries_that_were_cut_or_dropped_hold_nothing() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, None, entries(1, 12, size=900))
    log.append(1, None, entries(1, 12, size=900))
    log.sync()
    log.append(0, None, (), snapshot=SnapshotMeta(5, 2), reset_log=True)
    log.append(1, None, entries(2, 1, 2))
    log.append(1, None, (), snapshot=SnapshotMeta(2, 2))
    log.sync()
    log.release(0, 5)
    log.release(1, 2)
    assert log.segment_count == 1
    _, found = reopen(disk, log)
    assert found.groups[0].last_index == 5 and found.groups[1].last_index == 2


def test_a_spare_is_used_and_survives_a_restart() -> None:
    disk = SimDisk()
    log = new(disk)
    log.prepare_next()
    log.prepare_next()
    spares = [name for name in disk.listdir(PATH) if name.startswith("spare-")]
    assert len(spares) == 1
    log, _ = reopen(disk, log)
    disk.inject("create", Fault.ENOSPC, sticky=True)  # so the next segment can only be the spare
    log.append(0, None, entries(1, 6, size=900))
    log.sync()
    assert log.segment_count == 2 and not any(name.startswith("spare-") for name in disk.listdir(PATH))


@pytest.mark.parametrize("content", [b"short", b"\0" * 4095 + b"x"])
def test_a_spare_that_is_not_empty_and_whole_is_not_used(content: bytes) -> None:
    disk = SimDisk()
    new(disk).close()
    disk.write_raw(f"{PATH}/spare-0000000000000009", content)
    disk.write_raw(f"{PATH}/spare-x", content)
    log, _ = reopen(disk)
    assert not any(name.startswith("spare-") for name in disk.listdir(PATH))
    log.prepare_next()
    assert "spare-000000000000000a" in disk.listdir(PATH)


def test_a_full_disk_is_known_before_it_hurts() -> None:
    """prepare_next says so while the present segment still has room; the log goes on until that is used up."""
    disk = SimDisk(capacity_bytes=2 * 4096 + 2000)
    log = new(disk)
    log.prepare_next()
    log.append(0, None, entries(1, 5, size=900))
    log.sync()  # took the spare
    with pytest.raises(DiskFull):
        log.prepare_next()
    assert not any(name.endswith(".tmp") for name in disk.listdir(PATH)) and log.free_bytes > 900
    log.append(0, None, entries(6, 1))
    log.sync()
    log.append(0, None, entries(7, 6, size=900))
    with pytest.raises(DiskFull):
        log.sync()
    with pytest.raises(StorageError, match="stopped after an error"):
        log.append(0, None, entries(13, 1))
    log, found = reopen(disk, log)
    assert found.groups[0].last_index >= 6


def test_a_read_only_disk() -> None:
    disk = SimDisk()
    log = new(disk)
    log.append(0, None, entries(1, 1))
    disk.read_only = True
    with pytest.raises(StorageError, match="read-only"):
        log.sync()
    log.close()
    with pytest.raises(StorageError, match="read-only"):
        reopen(disk)
    with pytest.raises(StorageError, match="read-only"):
        WriteAheadLog.create(disk, "other", IDENTITY, segment_bytes=4096)
    disk.read_only = False
    reopen(disk)


def test_a_closed_log_refuses() -> None:
    disk = SimDisk()
    log = new(disk)
    log.close()
    log.close()
    for use in (log.sync, log.prepare_next, lambda: log.append(0, None, ()), lambda: log.release(0, 0)):
        with pytest.raises(StorageError, match="closed"):
            use()


def test_there_must_be_a_log_to_open_and_none_to_create() -> None:
    disk = SimDisk()
    with pytest.raises(StorageError, match="there is no log in w"):
        reopen(disk)
    log = new(disk)
    log.close()
    with pytest.raises(StorageError, match="already holds a log"):
        new(disk)


def test_heads_of_many_groups() -> None:
    disk = SimDisk()
    log = new(disk)
    for group in range(200):
        log.append(
            group, HardState(1, 1, 0), entries(1, 1), snapshot=SnapshotMeta(0, 0, Configuration.of_voters(1, 2, 3))
        )
    log.sync()
    assert log.segment_count < 20, "a large head must not make a segment for every record"
    log.append(0, None, entries(2, 1, size=5000))
    log.sync()
    _, found = reopen(disk, log)
    assert len(found.groups) == 200 and found.groups[0].last_index == 2


def golden_log(disk: SimDisk) -> None:
    """What the golden file holds. It was written by the first release of format 1 and must be readable for ever."""
    log = WriteAheadLog.create(disk, PATH, Identity(0xC1, 0xA, 0xFEED), segment_bytes=4096)
    log.append(
        0,
        HardState(1, 0xA, 0),
        [Entry(1, 1, 1, b""), Entry(1, 2, 0, b"two")],
        snapshot=SnapshotMeta(0, 0, Configuration.of_voters(0xA)),
    )
    log.sync()
    log.append(0, HardState(2, 0, 1), [Entry(2, 2, 0, b"TWO"), Entry(2, 3, 2, b"config")])
    log.append(
        9,
        None,
        [Entry(5, 101, 3, b"")],
        snapshot=SnapshotMeta(100, 5, Configuration.of_voters(1, 2), 10, b"d" * 32),
        reset_log=True,
    )
    log.sync()
    log.close()


def test_the_golden_file_of_format_1() -> None:
    disk = SimDisk()
    golden_log(disk)
    assert disk.read_raw(f"{PATH}/0000000000000001.wal") == GOLDEN.read_bytes(), (
        "the format changed: raise FORMAT, keep reading this"
    )
    old = SimDisk()
    old.mkdir(PATH)
    old.write_raw(f"{PATH}/0000000000000001.wal", GOLDEN.read_bytes())
    _, found = WriteAheadLog.open(old, PATH, expected=(0xC1, 0xA), segment_bytes=4096)
    assert found.identity.incarnation == 0xFEED
    assert found.groups == {
        0: GroupState(
            HardState(2, 0, 1), SnapshotMeta(0, 0, Configuration.of_voters(0xA)),
            [Entry(1, 1, 1, b""), Entry(2, 2, 0, b"TWO"), Entry(2, 3, 2, b"config")],
        ),
        9: GroupState(HardState(), SnapshotMeta(100, 5, Configuration.of_voters(1, 2), 10, b"d" * 32), [Entry(5, 101,
        3, b"")]),
    }  # fmt: skip


def test_the_real_disk_holds_the_same_bytes(tmp_path: Path) -> None:
    disk = SimDisk()
    contents = []
    for place, path in ((disk, PATH), (RealDisk(), f"{tmp_path}/{PATH}")):
        log = WriteAheadLog.create(place, path, IDENTITY, segment_bytes=4096)
        for n in range(9):
            log.append(0, HardState(1, 1, n), entries(n + 1, 1, size=700))
            log.sync()
            log.prepare_next()
        log.close()
        log, found = WriteAheadLog.open(place, path, segment_bytes=4096)
        assert found.groups[0].last_index == 9
        log.close()
        contents.append([place.open(f"{path}/{name}").pread(0, 9999) for name in place.listdir(path) if name != "lock"])
    assert contents[0] == contents[1]
