"""The snapshot store: publishing, reading, receiving, rot, and a power loss at every operation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from oarlock.errors import Corrupt, Overloaded, StorageError, SyncFailed
from oarlock.raft.types import Configuration, SnapshotMeta
from oarlock.storage import snapshots as snapshots_module
from oarlock.storage.sim_disk import Fault, Operation, PowerCut, SimDisk
from oarlock.storage.snapshots import SnapshotStore

GOLDEN = Path(__file__).parent / "golden" / "format-1.snap"
CONF = Configuration.of_voters(1, 2, 3)
CHUNKS = [b"one", b"", bytes(3000), b"x" * 700]


def written(
    store: SnapshotStore, index: int = 9, term: int = 2, group: int = 0, chunks: list[bytes] = CHUNKS
) -> SnapshotMeta:
    writer = store.begin(group, index, term, CONF)
    for chunk in chunks:
        writer.write(chunk)
    return writer.finish()


def content(store: SnapshotStore, meta: SnapshotMeta, group: int = 0) -> list[bytes]:
    reader = store.open(group, meta)
    try:
        return list(reader.chunks())
    finally:
        reader.close()


def stream(store: SnapshotStore, meta: SnapshotMeta) -> bytes:
    reader = store.open(0, meta)
    parts = []
    offset = 0
    while part := reader.read(offset, 100):
        parts.append(part)
        offset += len(part)
    reader.close()
    return b"".join(parts)


def test_write_and_read() -> None:
    store = SnapshotStore(SimDisk(), "s")
    assert store.newest(0) is None
    meta = written(store)
    assert store.newest(0) == meta and meta.has_file and (meta.index, meta.term, meta.configuration) == (9, 2, CONF)
    assert content(store, meta) == CHUNKS
    raw = stream(store, meta)
    assert len(raw) == meta.size and hashlib.sha256(raw).digest() == meta.digest
    assert store.newest(1) is None


def test_equal_chunks_make_equal_bytes_whatever_the_rest() -> None:
    one, two = SnapshotStore(SimDisk(), "s"), SnapshotStore(SimDisk(), "t")
    first, second = written(one, 9, 2), written(two, 10, 3)
    assert (first.size, first.digest) == (second.size, second.digest)
    assert stream(one, first) == stream(two, second)
    assert written(two, 11, 3, chunks=[b"on", b"e", bytes(3000), b"x" * 700]).digest != first.digest


def test_nothing_is_visible_before_finish_and_abort_removes() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    writer = store.begin(0, 9, 2, CONF)
    writer.write(b"x")
    assert store.newest(0) is None
    writer.abort()
    assert disk.listdir("s") == []


def test_the_newest_is_by_index_and_prune_keeps_it() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    metas = [written(store, index, 2) for index in (5, 20, 100)]
    written(store, 7, 1, group=3)
    store.begin(0, 50, 2, CONF).write(b"never finished")
    assert store.newest(0) == metas[2]
    store.prune(0, 20)
    assert [store._disk.exists(f"s/00000000-{i:016x}-{2:016x}.snap") for i in (5, 20, 100)] == [False, True, True]
    store.prune(0, 1000)
    assert store.newest(0) == metas[2] and len(disk.listdir("s")) == 2
    assert store.newest(3) is not None


def test_bounds() -> None:
    store = SnapshotStore(SimDisk(), "s")
    writer = store.begin(0, 1, 1, CONF)
    with pytest.raises(Overloaded, match="CHUNK_BYTES_MAX"):
        writer.write(bytes(snapshots_module.CHUNK_BYTES_MAX + 1))
    writer.write(bytes(snapshots_module.CHUNK_BYTES_MAX))
    assert [len(chunk) for chunk in content(store, writer.finish())] == [snapshots_module.CHUNK_BYTES_MAX]


@pytest.mark.interpreted
def test_a_large_snapshot_is_synced_along_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "WRITE_BYTES", 1000)
    monkeypatch.setattr(snapshots_module, "SYNC_EVERY_BYTES", 5000)
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    chunks = [bytes([n]) * 600 for n in range(60)]
    meta = written(store, chunks=chunks)
    assert content(store, meta) == chunks
    assert sum(kind == "sync" for kind, _ in disk.log) > 4


def test_open_what_is_not_there_or_another() -> None:
    store = SnapshotStore(SimDisk(), "s")
    meta = written(store)
    with pytest.raises(StorageError, match=r"there is no snapshot 2\.8"):
        store.open(0, SnapshotMeta(8, 2, CONF, meta.size, meta.digest))
    with pytest.raises(Corrupt, match="were expected"):
        store.open(0, SnapshotMeta(9, 2, CONF, meta.size, b"z" * 32))


# ---------------------------------------------------------------- receiving


def test_receive_in_pieces_and_resume_after_a_restart() -> None:
    source = SnapshotStore(SimDisk(), "s")
    meta = written(source)
    raw = stream(source, meta)
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    receiver = store.receiver(0, meta)
    assert receiver.next_offset == 0 and not receiver.finish()
    assert receiver.write(0, raw[:500]) == 500
    assert receiver.write(0, raw[:500]) == 500, "a repeated piece changes nothing"
    assert receiver.write(900, raw[900:]) == 500, "a gap is not filled with guesses"
    assert receiver.write(500, raw[500:] + b"more") == 500, "what passes the end is refused"
    receiver.close()
    again = store.receiver(0, meta)
    at = again.next_offset
    assert 0 < at <= 500
    assert again.write(at, raw[at:]) == meta.size
    assert store.newest(0) is None
    assert again.finish() and again.finish()
    assert store.newest(0) == meta and content(store, meta) == CHUNKS
    assert disk.listdir("s") == [f"00000000-{9:016x}-{2:016x}.snap"]


def test_a_wrong_digest_starts_again() -> None:
    source = SnapshotStore(SimDisk(), "s")
    meta = written(source)
    raw = stream(source, meta)
    store = SnapshotStore(SimDisk(), "s")
    receiver = store.receiver(0, meta)
    receiver.write(0, raw[:-1] + b"?")
    assert not receiver.finish() and receiver.next_offset == 0 and store.newest(0) is None
    receiver.write(0, raw)
    assert receiver.finish() and content(store, meta) == CHUNKS


def test_a_damaged_partial_file_is_resumed_from_its_good_part() -> None:
    source = SnapshotStore(SimDisk(), "s")
    meta = written(source, chunks=[b"a" * 1000, b"b" * 1000, b"c" * 1000])
    raw = stream(source, meta)
    for offset in range(0, 2500, 97):
        disk = SimDisk()
        store = SnapshotStore(disk, "s")
        receiver = store.receiver(0, meta)
        receiver.write(0, raw[:2500])
        receiver.close()
        (name,) = disk.listdir("s")
        disk.flip_bit(f"s/{name}", offset)
        again = store.receiver(0, meta)
        assert again.next_offset <= offset
        again.write(again.next_offset, raw[again.next_offset :])
        assert again.finish()


# ---------------------------------------------------------------- rot


def test_every_byte_of_a_snapshot_is_guarded() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    meta = written(store, chunks=[b"one", b"", b"three"])
    name = f"s/{disk.listdir('s')[0]}"
    raw = disk.read_raw(name)
    for offset in range(len(raw)):
        changed = bytearray(raw)
        changed[offset] ^= 1 << (offset % 8)
        disk.write_raw(name, bytes(changed))
        with pytest.raises(Corrupt) as caught:
            found = store.newest(0)
            assert found == meta
            content(store, meta)
        assert caught.value.path == name + ".corrupt" and disk.read_raw(name + ".corrupt") == bytes(changed)
        for _ in range(2):
            with pytest.raises(Corrupt, match="rotten and set aside"):
                store.newest(0)
        disk.remove_raw(name + ".corrupt")


def test_every_length_of_a_snapshot_file() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    written(store, chunks=[b"one", b"three"])
    name = f"s/{disk.listdir('s')[0]}"
    raw = disk.read_raw(name)
    for length in range(len(raw)):
        disk.write_raw(name, raw[:length])
        with pytest.raises(Corrupt):
            store.newest(0)
        disk.remove_raw(name + ".corrupt")


def test_an_older_snapshot_is_not_taken_for_the_newest_until_a_new_one_comes() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    written(store, 5)
    meta = written(store, 9)
    name = f"s/00000000-{9:016x}-{2:016x}.snap"
    disk.flip_bit(name, 20)
    with pytest.raises(Corrupt):
        content(store, meta)
    with pytest.raises(Corrupt, match="Fetch it again"):
        store.newest(0)
    with pytest.raises(Corrupt, match=r"found rotten and set aside as .*corrupt"):  # also by the next life
        store.open(0, meta)
    store.prune(0, 1000)
    assert disk.exists(name + ".corrupt"), "never deleted"
    again = written(store, 9)
    assert store.newest(0) == again
    disk.flip_bit(name, 20)
    with pytest.raises(Corrupt):
        content(store, again)
    assert disk.exists(name + ".corrupt") and disk.exists(name + ".2.corrupt")


def test_swapped_files_are_noticed() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    written(store, 5)
    disk.write_raw(f"s/00000000-{9:016x}-{2:016x}.snap", disk.read_raw(f"s/00000000-{5:016x}-{2:016x}.snap"))
    with pytest.raises(Corrupt, match="renamed or cut"):
        store.newest(0)


def test_a_sender_can_check_its_own_copy() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    meta = written(store)
    store.open(0, meta).verify()
    reader = store.open(0, meta)
    disk.flip_bit(f"s/{disk.listdir('s')[0]}", 100)
    with pytest.raises(Corrupt, match="checksum"):
        reader.verify()
    assert disk.listdir("s")[0].endswith(".corrupt")


def test_the_golden_file_of_format_1() -> None:
    """Written by the first release of format 1; it must be readable for ever."""
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    meta = written(store, 0x1234, 7, group=3, chunks=[b"first", b"", b"third"])
    name = f"{3:08x}-{0x1234:016x}-{7:016x}.snap"
    assert disk.read_raw(f"s/{name}") == GOLDEN.read_bytes(), (
        "the format changed: raise STREAM_FORMAT, keep reading this"
    )
    old = SimDisk()
    old.mkdir("s")
    old.write_raw(f"s/{name}", GOLDEN.read_bytes())
    again = SnapshotStore(old, "s")
    assert again.newest(3) == meta
    assert content(again, meta, group=3) == [b"first", b"", b"third"]


# ---------------------------------------------------------------- crashes


def write_two(store: SnapshotStore, done: list[SnapshotMeta]) -> None:
    done.append(written(store, 5))
    done.append(written(store, 9))
    store.prune(0, 9)


def receive_two(store: SnapshotStore, done: list[SnapshotMeta]) -> None:
    source = SnapshotStore(SimDisk(), "s")
    for index in (5, 9):
        meta = written(source, index)
        raw = stream(source, meta)
        receiver = store.receiver(0, meta)
        for at in range(receiver.next_offset, meta.size, 700):
            receiver.write(at, raw[at : at + 700])
        assert receiver.finish()
        done.append(meta)
        store.prune(0, index)


@pytest.mark.parametrize("work", [write_two, receive_two])
def test_power_loss_at_every_operation(work: Callable[[SnapshotStore, list[SnapshotMeta]], None]) -> None:
    for cut_at in range(1000):
        for seed in range(6):
            disk = SimDisk()
            disk.cut_at = cut_at
            done: list[SnapshotMeta] = []
            try:
                work(SnapshotStore(disk, "s"), done)
                return
            except PowerCut:
                disk.power_loss(Random(seed))
            store = SnapshotStore(disk, "s")
            newest = store.newest(0)
            if done:
                assert newest is not None and newest.index >= done[-1].index, "a published snapshot is gone"
            if newest is not None:
                assert content(store, newest) == CHUNKS
            work(store, [])
            assert store.newest(0) is not None


@pytest.mark.parametrize("kind", ["write", "sync", "rename", "sync_dir"])
def test_a_failing_disk_publishes_nothing(kind: Operation) -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, "s")
    old = written(store, 5)
    disk.inject(kind, Fault.EIO)
    with pytest.raises(SyncFailed if "sync" in kind else StorageError):
        written(store, 9)
    disk.power_loss(Random(1))
    assert SnapshotStore(disk, "s").newest(0) in (old, SnapshotMeta(9, 2, CONF, old.size, old.digest))
