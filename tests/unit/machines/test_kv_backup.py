"""Backup files: read back as written, refused at any damage with the offset; states for a new cluster."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from oarlock.errors import Corrupt
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.backup import BLOCK_BYTES, DIGEST_BYTES, BackupFile, BackupHeader, encode_backup
from oarlock.machines.kv.capture import summarize
from oarlock.machines.kv.commands_alarm import AlarmActivate, AlarmType
from oarlock.machines.kv.commands_lease import LeaseGrant, LeaseTick
from oarlock.machines.kv.fresh import FreshStart
from oarlock.machines.kv.machine import KvMachine

SECOND = 1_000_000_000


def filled(machine: KvMachine) -> KvMachine:
    index = machine.applied_index

    def apply(*commands: Any) -> None:
        nonlocal index
        index += 1
        for result in machine.apply(Context(index, 3, index * SECOND), [kv.encode(c) for c in commands]):
            assert not isinstance(result, kv.Refused), result

    apply(LeaseGrant(77, 100))
    for n in range(30):
        apply(kv.Put(b"k%02d" % (n % 10), b"v%d" % n, 77 if n % 3 == 0 else 0))
    apply(kv.DeleteRange(b"k05"))
    apply(LeaseTick(3, 80 * SECOND))
    apply(AlarmActivate(5, int(AlarmType.NOSPACE)))
    machine.annex_put(b"session/1", b"of the old cluster")
    machine.annex_put(b"stamp", b"kept")
    return machine


def backup_of(machine: KvMachine) -> list[bytes]:
    header = BackupHeader(0xC1, 0xA1, machine.applied_index, 3, machine.revision, "0.1")
    capture = machine.capture()
    return list(encode_backup(header, capture.chunks()))


def read(data: bytes) -> tuple[BackupFile, list[bytes]]:
    backup = BackupFile(io.BytesIO(data), "file")
    return backup, list(backup.whole_chunks())


def test_a_backup_is_read_as_it_was_written_and_its_size_says_that_a_hash_follows() -> None:
    machine = filled(KvMachine.in_memory())
    pieces = backup_of(machine)
    data = b"".join(pieces)
    assert len(pieces[-1]) == DIGEST_BYTES
    assert len(data) % BLOCK_BYTES == DIGEST_BYTES  # what stock etcdctl looks at
    backup, chunks = read(data)
    assert backup.header == BackupHeader(0xC1, 0xA1, machine.applied_index, 3, machine.revision, "0.1")
    assert chunks == list(machine.capture().chunks())
    assert (backup.sha256, backup.size) == (pieces[-1], len(data))
    assert summarize(backup.header.index, chunks) == (machine.revision, -1, 9)


def test_every_flipped_byte_and_every_cut_is_refused_with_an_offset() -> None:
    data = b"".join(backup_of(filled(KvMachine.in_memory())))
    for at in range(0, len(data), 7):
        with pytest.raises(Corrupt, match=r"file, offset \d+: .*Take another copy") as caught:
            read(data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :])
        assert caught.value.offset is not None
    for size in (*range(0, len(data), 11), len(data) - 1):
        with pytest.raises(Corrupt):
            read(data[:size])
    with pytest.raises(Corrupt, match="bytes follow"):
        read(data + b"x")


def test_other_files_are_named() -> None:
    bolt = bytes(16) + bytes.fromhex("edda0ced") + bytes(4096)
    for data, text in [(bolt, "etcd's own database"), (b"", "no backup"), (b"x" * 5000, "no backup")]:
        with pytest.raises(Corrupt, match=text):
            read(data)


def restored(chunks: Sequence[bytes], index: int, machine: KvMachine, **fresh: Any) -> KvMachine:
    machine.restore(index, chunks, fresh=FreshStart(annex_prefixes=[b"session/"], **fresh))
    machine.validate()
    return machine


def everything(machine: KvMachine, revision: int = 0) -> list[bytes]:
    found = machine.range(kv.Range(b"\0", b"\0", revision=revision))
    assert isinstance(found, kv.RangeResult)
    return list(found.kvs)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_new_cluster_gets_keys_history_and_leases_and_nothing_of_the_old_members(
    tmp_path: Path, on_disk: bool
) -> None:
    old = filled(KvMachine.in_memory())
    _, chunks = read(b"".join(backup_of(old)))
    target = KvMachine.on_disk(tmp_path / "kv") if on_disk else KvMachine.in_memory()
    new = restored(chunks, old.applied_index, target)
    assert (new.revision, new.applied_index) == (old.revision, old.applied_index)
    for revision in (0, 5, 20):
        assert everything(new, revision) == everything(old, revision)
    assert list(new.lease_ids()) == [77]
    assert list(new.keys_of_lease(77)) == list(old.keys_of_lease(77))
    assert new.annex_items() == [(b"stamp", b"kept")]
    assert old.alarms.active()
    assert not new.alarms.active()
    new.close()


def test_a_lease_gets_its_whole_time_again() -> None:
    old = filled(KvMachine.in_memory())
    _, chunks = read(b"".join(backup_of(old)))
    new = restored(chunks, old.applied_index, KvMachine.in_memory())
    before, after = old.leases.get(77), new.leases.get(77)
    assert before is not None
    assert after is not None
    assert before[1] - old.leases.clock < 100 * SECOND  # 80 of its seconds are over
    assert after[1] - new.leases.clock >= 100 * SECOND


def test_the_revision_can_be_raised_and_what_was_before_be_compacted() -> None:
    old = filled(KvMachine.in_memory())
    _, chunks = read(b"".join(backup_of(old)))
    new = restored(chunks, old.applied_index, KvMachine.in_memory(), bump_revision=1_000_000, mark_compacted=True)
    assert new.revision == old.revision + 1_000_000 == new.compact_revision
    assert everything(new) == everything(old)
    refused = new.range(kv.Range(b"\0", b"\0", revision=old.revision))
    assert isinstance(refused, kv.Refused)
    assert refused.error is kv.KvError.COMPACTED
    (result,) = new.apply(Context(new.applied_index + 1, 4, 99 * SECOND), [kv.encode(kv.Put(b"new", b"1"))])
    assert isinstance(result, kv.PutResult)
    assert result.revision == old.revision + 1_000_001
    while new.compact_some(10):
        pass
    new.validate()
    assert len(everything(new)) == len(everything(old)) + 1


def test_a_bump_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="bump-revision"):
        FreshStart(bump_revision=-1)
