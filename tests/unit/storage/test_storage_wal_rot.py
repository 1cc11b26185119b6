"""Rot: bytes that were durable have changed. Recovery must say so, or the change must not matter; it never loses
silently."""

from __future__ import annotations

from random import Random

import pytest

from oarlock.errors import Corrupt, StorageError, WrongDirectory
from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta
from oarlock.storage import records
from oarlock.storage.disk import SECTOR_BYTES
from oarlock.storage.records import Identity, Preamble, pack_preamble, pack_record, segment_name
from oarlock.storage.recovery import GroupState, read_log
from oarlock.storage.sim_disk import SimDisk
from oarlock.storage.wal import WriteAheadLog

PATH = "w"
SEGMENT = 4096
IDENTITY = Identity(1, 2, 3)


def entries(first: int, count: int, term: int = 1, size: int = 30) -> list[Entry]:
    return [Entry(term, first + n, 0, bytes([first + n]) * size) for n in range(count)]


def small_log(disk: SimDisk, *, close: bool = True) -> dict[int, GroupState]:
    """One segment, three batches; returns what is in it."""
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    log.append(0, HardState(1, 2, 0), entries(1, 2), snapshot=SnapshotMeta(0, 0, Configuration.of_voters(1)))
    log.sync()
    log.append(0, HardState(1, 2, 1), entries(3, 2))
    log.append(5, HardState(4, 0, 0), ())
    log.sync()
    log.append(0, None, entries(5, 1, 2))
    log.sync()
    if close:
        log.close()
    else:
        disk.kill()
    return recovered(disk)


def long_log(disk: SimDisk) -> dict[int, GroupState]:
    """Four segments."""
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    for n in range(11):
        log.append(0, HardState(1, 2, n), entries(n + 1, 1, size=800))
        log.sync()
    assert log.segment_count == 4
    log.close()
    return recovered(disk)


def recovered(disk: SimDisk) -> dict[int, GroupState]:
    log, found = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
    log.close()
    return found.groups


def segment(number: int) -> str:
    return f"{PATH}/{segment_name(number)}"


def test_every_single_bit_flip_of_a_closed_log() -> None:
    """Found, if it hit the preamble or a record; without effect, if it hit the padding or the unused rest."""
    disk = SimDisk()
    good = small_log(disk)
    image = disk.read_raw(segment(1))
    guarded = set(range(records.PREAMBLE_BYTES))
    read_log(disk, PATH, observer=lambda _, record: guarded.update(range(record.offset, record.end)))
    for offset in [*range(len(image.rstrip(b"\0")) + 64), SEGMENT - 1]:
        for bit in range(8):
            changed = bytearray(image)
            changed[offset] ^= 1 << bit
            disk.write_raw(segment(1), bytes(changed))
            if offset in guarded:
                with pytest.raises(Corrupt, match="Nothing was changed") as caught:
                    recovered(disk)
                assert caught.value.path == segment(1) and caught.value.offset is not None
                assert disk.read_raw(segment(1)) == changed, "a rotten file was written to"
            else:
                assert recovered(disk) == good, f"bit {bit} of byte {offset} changed what was recovered"


def test_every_bit_flip_without_a_watermark_loses_at_most_the_last_batch() -> None:
    """The documented limit: without proof of its sync, damage to the very last batch looks like a torn write."""
    disk = SimDisk()
    good = small_log(disk)
    image = disk.read_raw(segment(1))
    kept = 5 - 1
    for offset in range(len(image.rstrip(b"\0"))):
        changed = bytearray(image)
        changed[offset] ^= 1 << (offset % 8)
        disk.write_raw(segment(1), bytes(changed))
        disk.write_raw(f"{PATH}/watermark", b"")
        try:
            groups = recovered(disk)
        except Corrupt:
            continue
        assert groups == good or groups[0].entries == good[0].entries[:kept]


def test_every_length() -> None:
    disk = SimDisk()
    small_log(disk)
    image = disk.read_raw(segment(1))
    for length in [*range(1700), SEGMENT - 1]:
        disk.write_raw(segment(1), image[:length])
        with pytest.raises(Corrupt) as caught:
            recovered(disk)
        assert caught.value.path == segment(1) and len(disk.read_raw(segment(1))) == length
    disk.write_raw(segment(1), image + b"\0")
    with pytest.raises(Corrupt):
        recovered(disk)


@pytest.mark.parametrize("closed", [True, False])
def test_every_sector_zeroed_or_stale(closed: bool) -> None:
    """A lost or zeroed sector of a synced record is rot, also in the last segment, also if the process was killed."""
    for stale in (False, True):
        for sector in range(4):
            disk = SimDisk()
            small_log(disk, close=closed)
            if stale:
                disk.stale_sector(segment(1), sector)
            else:
                disk.put_sector(segment(1), sector)
            with pytest.raises(Corrupt):
                recovered(disk)


def test_a_zeroed_sector_is_rot_if_a_later_batch_is_there_even_without_a_watermark() -> None:
    for sector in (1, 2):
        disk = SimDisk()
        small_log(disk)
        disk.remove_raw(f"{PATH}/watermark")
        disk.put_sector(segment(1), sector)
        with pytest.raises(Corrupt, match=r"batch \d at offset \d+ was written after it was synced"):
            recovered(disk)


def test_a_misdirected_sector() -> None:
    for source, target in ((1, 2), (2, 1), (3, 2), (2, 3)):
        disk = SimDisk()
        small_log(disk)
        disk.misdirect(segment(1), source, segment(1), target)
        with pytest.raises(Corrupt):
            recovered(disk)


def test_a_good_batch_at_the_wrong_place_after_the_end_is_cut_and_changes_nothing() -> None:
    disk = SimDisk()
    good = small_log(disk)
    disk.misdirect(segment(1), 2, segment(1), 5)
    assert recovered(disk) == good


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rot_in_every_record_of_complete_segments(number: int) -> None:
    disk = SimDisk()
    long_log(disk)
    image = disk.read_raw(segment(number))
    for offset in range(0, len(image.rstrip(b"\0")), 37):
        changed = bytearray(image)
        if offset > 0 and not any(image[offset - 4 : offset + 4]):
            continue  # padding between batches
        changed[offset] ^= 0x10
        disk.write_raw(segment(number), bytes(changed))
        with pytest.raises(Corrupt) as caught:
            recovered(disk)
        assert caught.value.path == segment(number)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_missing_segment_is_named(number: int) -> None:
    disk = SimDisk()
    long_log(disk)
    disk.remove_raw(segment(number))
    with pytest.raises(Corrupt, match=segment_name(number)) as caught:
        recovered(disk)
    assert "missing" in str(caught.value)


def test_a_missing_first_segment() -> None:
    disk = SimDisk()
    long_log(disk)
    disk.remove_raw(segment(1))
    with pytest.raises(Corrupt, match="are missing"):
        recovered(disk)


def test_all_segments_missing_is_not_an_empty_log() -> None:
    disk = SimDisk()
    small_log(disk)
    disk.remove_raw(segment(1))
    assert WriteAheadLog.exists(disk, PATH)
    with pytest.raises(Corrupt, match="all its segments are missing"):
        recovered(disk)
    with pytest.raises(StorageError, match="already holds a log"):
        WriteAheadLog.create(disk, PATH, IDENTITY)


def test_swapped_duplicate_and_extra_segments() -> None:
    disk = SimDisk()
    long_log(disk)
    second, third = disk.read_raw(segment(2)), disk.read_raw(segment(3))
    disk.write_raw(segment(2), third)
    disk.write_raw(segment(3), second)
    with pytest.raises(Corrupt, match="renamed or copied"):
        recovered(disk)
    disk.write_raw(segment(2), second)
    disk.write_raw(segment(3), third)
    disk.write_raw(segment(5), third)
    with pytest.raises(Corrupt, match="renamed or copied") as caught:
        recovered(disk)
    assert caught.value.path == segment(5)
    disk.remove_raw(segment(5))
    disk.write_raw(f"{PATH}/copy.wal", third)
    with pytest.raises(Corrupt, match="not the name of a segment") as caught:
        recovered(disk)
    assert caught.value.path == f"{PATH}/copy.wal"


def test_a_segment_of_another_log() -> None:
    disk, other = SimDisk(), SimDisk()
    long_log(disk)
    log = WriteAheadLog.create(other, PATH, Identity(1, 2, 99), segment_bytes=SEGMENT)
    for n in range(11):
        log.append(0, HardState(1, 2, n), entries(n + 1, 1, size=800))
        log.sync()
    disk.write_raw(segment(2), other.read_raw(segment(2)))
    with pytest.raises(Corrupt, match="incarnation 63"):
        recovered(disk)


def test_an_older_copy_of_the_last_segment() -> None:
    """A disk that was rolled back: the log is shorter than what was synced."""
    disk = SimDisk()
    small_log(disk)
    old = disk.read_raw(segment(1))
    log, _ = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
    log.append(0, None, entries(6, 1, 2))
    log.sync()
    log.close()
    disk.write_raw(segment(1), old)
    with pytest.raises(Corrupt, match="was synced up to batch 5, but only batch 4"):
        recovered(disk)


def test_lengths_are_checked_before_anything_is_allocated() -> None:
    """A record whose checksum is right but whose length is absurd cannot be made by a disk; a damaged length can."""
    for length in (0, 1, 2**31 - 1, 2**32 - 1):
        disk = SimDisk()
        small_log(disk)
        image = bytearray(disk.read_raw(segment(1)))
        image[SECTOR_BYTES + 4 : SECTOR_BYTES + 8] = length.to_bytes(4, "little")
        image[SECTOR_BYTES + 8 : SECTOR_BYTES + 12] = (length ^ 0xFFFFFFFF).to_bytes(4, "little")
        disk.write_raw(segment(1), bytes(image))
        with pytest.raises(Corrupt) as caught:
            recovered(disk)
        assert caught.value.offset == SECTOR_BYTES


@pytest.mark.interpreted
def test_an_oversized_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimDisk()
    long_log(disk)
    monkeypatch.setattr("oarlock.storage.recovery.SEGMENT_BYTES_MAX", SEGMENT - 1)
    with pytest.raises(Corrupt, match="more than the"):
        recovered(disk)


@pytest.mark.parametrize(("expected", "words"), [((1, 9), "member 2.*member 9"), ((8, 2), "cluster 1.*cluster 8")])
def test_the_directory_of_somebody_else(expected: tuple[int, int], words: str) -> None:
    disk = SimDisk()
    small_log(disk)
    with pytest.raises(WrongDirectory, match=words):
        WriteAheadLog.open(disk, PATH, expected=expected, segment_bytes=SEGMENT)
    assert not disk.is_locked(f"{PATH}/lock")


def test_a_newer_format_is_no_rot() -> None:
    disk = SimDisk()
    small_log(disk)
    image = disk.read_raw(segment(1))
    preamble, _ = pack_preamble(Preamble(records.FORMAT + 1, SEGMENT, 1, IDENTITY, 1, 0))
    disk.write_raw(segment(1), preamble + b"whatever that format holds".ljust(SEGMENT - 64, b"?"))
    with pytest.raises(WrongDirectory, match=f"format {records.FORMAT + 1}.*up to {records.FORMAT}"):
        recovered(disk)
    preamble, _ = pack_preamble(Preamble(0, SEGMENT, 1, IDENTITY, 1, 0))
    disk.write_raw(segment(1), preamble + image[64:])
    with pytest.raises(Corrupt, match="format 0"):
        recovered(disk)


def test_records_that_check_out_but_make_no_sense() -> None:
    """What a bug in the writer would leave: well formed, wrong. Replay finds it."""
    cases: list[tuple[str, list[tuple[int, int, int, int, bytes]]]] = [
        ("does not follow", [(records.ENTRY, 0, 7, 1, b"gap")]),
        ("comes twice", [(records.ENTRY, 0, 1, 1, b"a"), (records.ENTRY, 0, 1, 1, b"b")]),
        ("does not follow", [(records.ENTRY, records.CUT, 1, 1, b"cuts nothing")]),
        ("term went back", [(records.ENTRY, 0, 1, 5, b"a"), (records.ENTRY, 0, 2, 4, b"b")]),
        ("hard state went back", [(records.HARD_STATE, 0, 0, 5, bytes(8)), (records.HARD_STATE, 0, 0, 4, bytes(8))]),
        (
            "vote of term 5 changed",
            [(records.HARD_STATE, 0, 0, 5, b"\1" + bytes(7)), (records.HARD_STATE, 0, 0, 5, b"\2" + bytes(7))],
        ),
        ("a vote of 3 bytes", [(records.HARD_STATE, 0, 0, 5, b"abc")]),
        ("not a snapshot mark", [(records.SNAPSHOT, 0, 0, 5, b"abc")]),
        ("past the log's last entry", [(records.SNAPSHOT, 0, 9, 5, records.pack_mark(SnapshotMeta(9, 5)))]),
        ("type 99", [(99, 0, 1, 1, b"")]),
        ("segment's head", [(records.GROUP, 0, 1, 1, b"")]),
        ("commit 7 is past the last entry 0", [(records.HARD_STATE, 0, 7, 5, bytes(8))]),
    ]
    for words, content in cases:
        disk = SimDisk()
        WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT).close()
        image = bytearray(disk.read_raw(segment(1)))
        head = records.unpack_record(memoryview(image), 64, IDENTITY.salt)
        assert not isinstance(head, str)
        chain, at = head.crc, SECTOR_BYTES
        for number, (kind, flags, index, term, payload) in enumerate(
            [*content, (records.SYNC, 0, len(content) + 1, 0, b"")]
        ):
            first = records.FIRST if number == 0 else 0
            header, chain = pack_record(IDENTITY.salt, chain, 2, kind, flags | first, 0, 0, index, term, payload)
            image[at : at + len(header) + len(payload)] = header + payload
            at += len(header) + len(payload)
        disk.write_raw(segment(1), bytes(image))
        with pytest.raises(Corrupt, match=words):
            recovered(disk)


def test_a_torn_tail_is_kept_aside_and_cut() -> None:
    """A multi-sector batch whose first sector is missing: zeros, then garbage. It must not surface later (BZ-103)."""
    disk = SimDisk()
    good = small_log(disk)
    end = len(disk.read_raw(segment(1)).rstrip(b"\0")) // SECTOR_BYTES + 1
    disk.put_sector(segment(1), end + 1, Random(1).randbytes(SECTOR_BYTES))
    log, found = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
    assert found.groups == good and "never synced" in found.repaired
    torn = [name for name in disk.listdir(PATH) if ".torn-" in name]
    assert len(torn) == 1 and disk.read_raw(f"{PATH}/{torn[0]}")[SECTOR_BYTES:] == Random(1).randbytes(SECTOR_BYTES)
    assert not any(disk.read_raw(segment(1))[end * SECTOR_BYTES :])
    log.append(0, None, entries(6, 1, 2))
    log.sync()
    log.close()
    assert recovered(disk)[0].entries[:-1] == good[0].entries


def test_zeros_inside_a_rotten_value_do_not_make_it_a_torn_write() -> None:
    """The trap of heuristics that look for zeroed sectors: the value itself is full of zeros."""
    disk = SimDisk()
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    log.append(0, None, [Entry(1, 1, 0, b"x" + bytes(1500) + b"y")])
    log.sync()
    log.close()
    disk.flip_bit(segment(1), SECTOR_BYTES + 48)
    with pytest.raises(Corrupt):
        recovered(disk)


def test_a_whole_batch_replaced_by_another_valid_one() -> None:
    """Same log, same batch number, right checksums, other content: only the chain of the next batch can tell."""
    images = []
    disk = SimDisk()
    for word in (b"promised", b"replaced"):
        disk = SimDisk()
        log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
        for index, payload in enumerate((word, b"next"), 1):
            log.append(0, None, [Entry(1, index, 0, payload)])
            log.sync()
        log.close()
        images.append(bytearray(disk.read_raw(segment(1))))
    images[0][SECTOR_BYTES : 2 * SECTOR_BYTES] = images[1][SECTOR_BYTES : 2 * SECTOR_BYTES]
    disk.write_raw(segment(1), bytes(images[0]))
    with pytest.raises(Corrupt, match="hash chain"):
        recovered(disk)


def test_a_head_that_forgets_a_group() -> None:
    """What a bug in the writer would leave. The group's vote would be gone with the segment before."""
    disk = SimDisk()
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    log.append(4, HardState(3, 1, 0), ())
    log.append(0, None, entries(1, 3, size=900))
    log.sync()
    del log._written[4]
    log.append(0, None, entries(4, 1, size=900))
    log.sync()
    log.close()
    with pytest.raises(Corrupt, match="tells of 1 groups out of 2"):
        recovered(disk)


@pytest.mark.parametrize("seed", range(10))
def test_a_missing_last_segment_is_known_even_after_a_power_loss(seed: int) -> None:
    disk = SimDisk()
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    log.append(0, None, entries(1, 4, size=900))
    log.sync()
    assert log.segment_count == 2
    disk.power_loss(Random(seed))
    disk.remove_raw(segment(2))
    with pytest.raises(Corrupt, match=segment_name(2)):
        recovered(disk)


@pytest.mark.parametrize("noted", [False, True])
def test_a_watermark_left_behind_vouches_only_once_it_is_written(noted: bool) -> None:
    """With the last batch damaged: unnoted it passes for a torn tail, noted it is rot."""
    disk = SimDisk()
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=4096)
    log.append(0, HardState(1, 1, 0), [Entry(1, 1, 0, b"first")])
    log.sync()
    log.append(0, None, [Entry(1, 2, 0, b"second")])
    log.sync(note=False)
    if noted:
        log.note_synced()
    segment = next(name for name in disk.listdir(PATH) if name.endswith(".wal"))
    raw = bytes(disk.read_raw(f"{PATH}/{segment}"))
    disk.kill()
    disk.write_raw(f"{PATH}/{segment}", raw.replace(b"second", b"sEcond"))
    if noted:
        with pytest.raises(Corrupt):
            WriteAheadLog.open(disk, PATH)
    else:
        _, found = WriteAheadLog.open(disk, PATH)
        assert found.repaired
        assert [e.payload for e in found.groups[0].entries] == [b"first"]
