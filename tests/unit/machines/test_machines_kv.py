"""The key-value machine's single rules, each as etcd 3.5 was seen to do it. The model test has their combinations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oarlock.machines.base import Context
from oarlock.machines.kv import leases as kv_leases
from oarlock.machines.kv import machine as kv_machine
from oarlock.machines.kv import reading as kv_reading
from oarlock.machines.kv.commands import (
    Command,
    Compact,
    CompactResult,
    Compare,
    DeleteRange,
    DeleteResult,
    KvError,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
    encode,
)
from oarlock.machines.kv.commands_lease import LeaseGrant, LeaseRevoke
from oarlock.machines.kv.encoding import decode_key_value, encode_key_value
from oarlock.machines.kv.layout import ALARMS, AUTH, LEASE_KEYS, LEASES
from oarlock.machines.kv.machine import TXN_DEPTH_MAX, KvMachine

ALL = (b"\0", b"\0")


class Client:
    def __init__(self, machine: KvMachine) -> None:
        self.machine = machine
        self.index = 0

    def __call__(self, *commands: Command) -> Any:
        results = self.raw(*map(encode, commands))
        return results[0] if len(commands) == 1 else results

    def raw(self, *commands: bytes) -> list[object]:
        self.index += 1
        return self.machine.apply(Context(self.index, 1, 0), commands)

    def keys(self, request: Range) -> list[bytes]:
        result = self.machine.range(request)
        assert isinstance(result, RangeResult), result
        return [decode_key_value(kv).key for kv in result.kvs]


@pytest.fixture(params=["memory", "disk"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    machine = KvMachine.in_memory() if request.param == "memory" else KvMachine.on_disk(tmp_path / "state")
    yield Client(machine)
    machine.validate()
    machine.close()


def test_revisions_versions_and_previous_values(kv: Client) -> None:
    assert kv.machine.revision == 1 and kv.machine.compact_revision == -1
    assert kv(Put(b"k", b"1", prev_kv=True)) == PutResult(2, None)
    assert kv(Put(b"k", b"2", prev_kv=True)) == PutResult(3, encode_key_value(b"k", 2, 2, 1, b"1", 0))
    assert kv.machine.range_one(b"k") == encode_key_value(b"k", 2, 3, 2, b"2", 0)
    assert kv(DeleteRange(b"no")) == DeleteResult(3, 0, []), "a delete that matches nothing is no change"
    assert kv(DeleteRange(b"k", prev_kv=True)) == DeleteResult(4, 1, [encode_key_value(b"k", 2, 3, 2, b"2", 0)])
    assert kv(Put(b"k", b"3")) == PutResult(5, None)
    assert kv.machine.range_one(b"k") == encode_key_value(b"k", 5, 5, 1, b"3", 0), "a new life begins at version 1"
    assert [c[:4] for c in kv.machine.changes(3)] == [(3, 0, b"k", False), (4, 0, b"k", True), (5, 0, b"k", False)]


def test_ranges_at_revisions(kv: Client) -> None:
    kv(Put(b"a", b"1"), Put(b"b", b"1"), Put(b"a", b"2"), DeleteRange(b"b"), Put(b"c", b"1"))
    assert [kv.keys(Range(*ALL, revision=r)) for r in range(1, 7)] == [
        [], [b"a"], [b"a", b"b"], [b"a", b"b"], [b"a"], [b"a", b"c"]
    ]  # fmt: skip
    assert kv.machine.range(Range(b"a", revision=7)) == Refused(KvError.FUTURE_REVISION, 6)
    assert kv.keys(Range(b"a", revision=-5)) == [b"a"], "below 1 is now"
    assert kv(Range(b"a", revision=3)).kvs == [encode_key_value(b"a", 2, 2, 1, b"1", 0)], "a range in the log too"


def test_limits_sorting_and_counts(kv: Client) -> None:
    for n, key in enumerate([b"a", b"b", b"c", b"d", b"e", b"f"]):
        kv(*[Put(key, b"%d" % v) for v in range(6 - n)])
    every = Range(b"a", b"z")
    result = kv.machine.range(Range(b"a", b"z", limit=2, sort_order=2, keys_only=True))
    assert isinstance(result, RangeResult)
    assert [decode_key_value(r) for r in result.kvs] == [(b"f", 22, 22, 1, b"", 0), (b"e", 20, 21, 2, b"", 0)]
    assert (result.more, result.count) == (True, 6)
    by_version = Range(b"a", b"z", limit=2, sort_order=1, sort_target=1)
    assert kv.keys(by_version) == [b"f", b"e"]
    by_version.sort_order = 0
    assert kv.keys(by_version) == [b"c", b"b"], "without an order etcd sorts what the limit and one more have left"
    assert kv.machine.range(Range(b"a", b"z", count_only=True, min_mod_revision=10)) == RangeResult(22, [], False, 6)
    assert kv.keys(Range(b"a", b"z", limit=1, min_mod_revision=10)) == [b"b"]
    assert kv.keys(Range(b"a", b"z", max_create_revision=13, min_create_revision=8)) == [b"b", b"c"]
    assert kv.keys(Range(b"a", b"z", max_mod_revision=12)) == [b"a", b"b"]
    assert len(kv.keys(Range(b"a", b"z", limit=-3))) == 6
    assert kv.keys(Range(b"c", b"a")) == kv.keys(Range(b"c", b"c")) == []
    assert kv.keys(Range(b"c", b"\0")) == [b"c", b"d", b"e", b"f"]
    assert len(kv.keys(every)) == 6


def test_a_txn_is_one_revision_and_its_ranges_see_its_writes(kv: Client) -> None:
    kv(Put(b"a", b"1"))
    nested = Txn(
        [Compare(0, 0, b"n", 0)],  # true before the transaction, though it puts the key first
        [Range(b"n"), Put(b"m", b"2"), Range(*ALL, revision=2)],
        [Put(b"wrong")],
    )
    result = kv(
        Txn([], [Range(b"a"), DeleteRange(b"x"), Put(b"n", b"1"), nested, DeleteRange(b"x"), DeleteRange(b"a")])
    )
    assert isinstance(result, TxnResult) and result.revision == 3
    assert [r.revision for r in result.responses] == [2, 2, 3, 0, 3, 3], "each as etcd's headers show it"
    inner = result.responses[3]
    assert isinstance(inner, TxnResult) and inner.succeeded
    assert [getattr(r, "count", None) for r in inner.responses] == [1, None, 1]
    assert [(c.main, c.sub, c.key, c.deleted) for c in kv.machine.changes(3)] == [
        (3, 0, b"n", False),
        (3, 1, b"m", False),
        (3, 2, b"a", True),
    ]
    assert kv(Txn()) == TxnResult(3, True, [])
    assert kv(Txn([], [Range(b"n"), DeleteRange(b"x")])).revision == 3, "nothing was written"


def test_a_key_deleted_and_put_in_one_txn(kv: Client) -> None:
    kv(Put(b"k", b"1"))
    kv(Txn([], [DeleteRange(b"k"), Put(b"k", b"2"), Put(b"k", b"3"), DeleteRange(b"k"), Put(b"k", b"4")]))
    kv(Put(b"k", b"5"))
    values = [decode_key_value(kv(Range(b"k", revision=r)).kvs[0]).value for r in (2, 3, 4)]
    assert values == [b"1", b"4", b"5"]


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(0, 0, b"a", 2), True),
        (Compare(1, 0, b"a", 2), True),
        (Compare(2, 0, b"a", 3), True),
        (Compare(3, 0, b"a", b"2"), True),
        (Compare(3, 1, b"a", b"1"), True),
        (Compare(3, 2, b"a", b"2"), False),
        (Compare(3, 3, b"a", b"3"), True),
        (Compare(4, 0, b"a", 0), True),
        (Compare(0, 1, b"a", 2), False),
        (Compare(0, 2, b"a", 3), True),
        (Compare(0, 3, b"a", 2), False),
        (Compare(0, 0, b"none", 0), True),
        (Compare(3, 0, b"none", b""), False),
        (Compare(3, 3, b"none", b"x"), False),
        (Compare(0, 1, b"a", 0, b"c"), True),
        (Compare(0, 1, b"a", 1, b"c"), False),
        (Compare(0, 0, b"y", 0, b"z"), True),
        (Compare(3, 3, b"y", b"x", b"z"), False),
        (Compare(0, 7, b"a", 99), True),
        (Compare(9, 0, b"a", 99), True),
        (Compare(9, 1, b"a", 99), False),
        (Compare(0, 0, b"a", b"x"), False),
        (Compare(3, 1, b"a", 5), True),
    ],
)
def test_compares(kv: Client, compare: Compare, holds: bool) -> None:
    kv(Put(b"a", b"1"), Put(b"a", b"2"), Put(b"b", b"1"))
    assert kv(Txn([compare])).succeeded is holds


def test_refusals_leave_nothing(kv: Client) -> None:
    kv(Put(b"a", b"1"), Put(b"a", b"2"), Compact(2))
    before = kv.machine.hash(), kv.machine.revision
    write = Put(b"w", b"")
    for command, error in [
        (Put(b"a", b"", 5), KvError.LEASE_NOT_FOUND),
        (Put(b"no", b"", 5, ignore_value=True), KvError.LEASE_NOT_FOUND),
        (Put(b"no", b"", ignore_value=True), KvError.KEY_NOT_FOUND),
        (Put(b"no", b"1", ignore_lease=True), KvError.KEY_NOT_FOUND),
        (Txn([], [write, Put(b"no", b"", 5, ignore_value=True)]), KvError.KEY_NOT_FOUND),
        (Txn([], [write, Range(b"a", revision=9), Put(b"a", b"", 5)]), KvError.LEASE_NOT_FOUND),
        (Txn([], [write, Txn([], [Range(b"a", revision=9)])]), KvError.FUTURE_REVISION),
        (Txn([], [write, Range(b"a", revision=4)]), KvError.FUTURE_REVISION),
        (Txn([], [write, Range(b"a", revision=1)]), KvError.COMPACTED),
        (Txn([], [write, Range(b"a", revision=-2)]), KvError.COMPACTED),
        (Range(b"a", revision=1), KvError.COMPACTED),
        (Compact(2), KvError.COMPACTED),
        (Compact(4), KvError.FUTURE_REVISION),
        (Put(b""), KvError.MALFORMED),
        (Txn([], [], [write, Txn([], [Put(b"")])]), KvError.MALFORMED),
        (Range(b"a", sort_target=5), KvError.MALFORMED),
        (Range(b"a", sort_order=3), KvError.MALFORMED),
    ]:
        assert kv(command) == Refused(error, 3), command
    assert kv(Txn([], [Range(b"a", revision=2)])).responses[0].count == 1, "at the compacted revision is allowed"
    assert (kv.machine.hash(), kv.machine.revision) == before
    assert kv.keys(Range(*ALL)) == [b"a"]


def test_malformed_bytes_are_refused(kv: Client) -> None:
    good = encode(Put(b"a", b"1"))
    bad = [b"", b"\xc1", good[:-1], good + b"\0", b"\x91\x63", b"\x80", b"\x92\x01\x05", b"\x93\x04\x90\x91\x90"]
    assert kv.raw(*bad, good) == [Refused(KvError.MALFORMED, 1)] * len(bad) + [PutResult(2, None)]


def nest(depth: int) -> Txn:
    txn = Txn([], [Put(b"deep")])
    for _ in range(depth - 1):
        txn = Txn([], [txn])
    return txn


def test_transactions_nest_up_to_the_bound(kv: Client) -> None:
    assert isinstance(kv(nest(TXN_DEPTH_MAX)), TxnResult)
    assert kv(nest(TXN_DEPTH_MAX + 1)) == Refused(KvError.MALFORMED, 2)
    endless = b"\x93\x04\x90\x91" * 100_000
    assert kv.raw(endless) == [Refused(KvError.MALFORMED, 2)]


@pytest.mark.interpreted
def test_ignore_value_and_ignore_lease(kv: Client) -> None:
    kv.machine.lease_exists = lambda lease: lease == 7  # type: ignore[method-assign]
    kv(Put(b"a", b"1", 7))
    kv(Put(b"a", b"2", ignore_lease=True))
    assert kv.machine.range_one(b"a") == encode_key_value(b"a", 2, 3, 2, b"2", 7)
    kv(Put(b"a", ignore_value=True))
    assert kv.machine.range_one(b"a") == encode_key_value(b"a", 2, 4, 3, b"2", 0), "lease 0 detaches"


def test_compaction_refuses_below_and_keeps_from_there_on(kv: Client) -> None:
    kv(Put(b"a", b"1"), Put(b"a", b"2"), DeleteRange(b"a"), Put(b"b", b"1"), Put(b"a", b"3"))
    reads = [kv.keys(Range(*ALL, revision=r)) for r in range(1, 7)]
    assert kv(Compact(0)) == CompactResult(6)
    assert kv(Compact(0)) == Refused(KvError.COMPACTED, 6)
    for compacted in range(1, 7):
        assert kv(Compact(compacted)) == CompactResult(6)
        while kv.machine.compact_some(1):
            pass
        assert kv.machine.range(Range(b"a", revision=compacted - 1 or 1)) == (
            Refused(KvError.COMPACTED, 6) if compacted > 1 else RangeResult(6, [], False, 0)
        )
        assert [kv.keys(Range(*ALL, revision=r)) for r in range(compacted, 7)] == reads[compacted - 1 :]
        kv.machine.validate()
    assert kv.machine.compact_revision == 6


@pytest.mark.interpreted
def test_a_capture_does_not_tell_how_far_purging_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_machine, "PURGE_ENTRIES", 1)
    monkeypatch.setattr(kv_machine, "PURGE_ENTRIES_PER_COMMAND", 0)
    streams = []
    for purged in range(12):
        kv = Client(KvMachine.in_memory())
        kv(*[Put(b"%d" % (n % 3), b"%d" % n) for n in range(8)], DeleteRange(b"0", b"2"), Put(b"1", b"again"))
        kv(Compact(11))
        if purged:
            kv.machine.compact_some(purged)
        capture = kv.machine.capture()
        streams.append(b"".join(capture.chunks()))
        copy = KvMachine.in_memory()
        copy.restore(2, [streams[-1]])
        copy.validate()
        assert b"".join(copy.capture().chunks()) == streams[0]
    assert len(set(streams)) == 1


def test_the_annex_is_part_of_the_state(kv: Client) -> None:
    machine = kv.machine
    machine.annex_put(b"2", b"two")
    machine.annex_put(b"1", b"one")
    machine.annex_put(b"3", b"three")
    machine.annex_delete(b"3")
    kv(Put(b"a"))
    assert machine.annex_items() == [(b"1", b"one"), (b"2", b"two")]
    assert (machine.annex_get(b"1"), machine.annex_get(b"3")) == (b"one", None)
    assert kv.keys(Range(*ALL)) == [b"a"], "and not among the keys"
    if machine.durable:
        checkpoint = machine.checkpoint()
        checkpoint.write()
        machine.checkpointed(checkpoint)
    capture = machine.capture()
    copy = KvMachine.in_memory()
    copy.restore(capture.index, capture.chunks())
    capture.close()
    assert copy.annex_items() == machine.annex_items()


def test_a_capture_names_the_oldest_format_that_can_hold_it(kv: Client) -> None:
    kv(Put(b"k", b"v"))
    capture = kv.machine.capture()
    if kv.machine.durable:
        checkpoint = kv.machine.checkpoint()
        checkpoint.write()
        kv.machine.checkpointed(checkpoint)
        capture.close()
        capture = kv.machine.capture()
    plain = b"".join(capture.chunks())
    capture.close()
    assert plain[:12] == b"OARLOCK\x01KV" + b"\x01\x00"


def test_tables_of_format_2_go_through_a_capture() -> None:
    kv = Client(KvMachine.in_memory())
    kv(Put(b"k", b"v"))
    kv(LeaseGrant(7, 60), Put(b"k", b"v", lease=7))
    for table in (ALARMS,):
        kv.machine._store.table(table).put(table.encode(), b"value of " + table.encode())
    kv.machine._store.table(AUTH).put(b"s", b"\x92\xc2\x07")  # off, at revision 7
    data = b"".join(kv.machine.capture().chunks())
    assert data[10:12] == b"\x02\x00"
    copy = KvMachine.in_memory()
    copy.restore(2, [data])
    for table in (LEASES, LEASE_KEYS, AUTH, ALARMS):
        assert copy._store.table(table).items() == kv.machine._store.table(table).items() != []
    assert copy.auth.revision == 7
    assert copy.leases.keys(7) == [b"k"] and copy.leases.attached == 1
    newer = data[:10] + b"\x03\x00" + data[12:]
    with pytest.raises(ValueError, match=r"format 3.*formats 1 to 2"):
        copy.restore(2, [newer])
    older = data[:10] + b"\x01\x00" + data[12:]
    with pytest.raises(ValueError, match="table 5"):
        copy.restore(2, [older])


def test_a_big_value_goes_through_a_capture(kv: Client) -> None:
    kv(Put(b"big", bytes(range(256)) * 12000), Put(b"small", b"1"))
    if kv.machine.durable:
        checkpoint = kv.machine.checkpoint()
        checkpoint.write()
        kv.machine.checkpointed(checkpoint)
    capture = kv.machine.capture()
    chunks = list(capture.chunks())
    capture.close()
    assert max(map(len, chunks)) <= 1 << 20 and sum(map(len, chunks)) > 3_000_000
    copy = KvMachine.in_memory()
    copy.restore(1, chunks)
    assert copy.range_one(b"big") == kv.machine.range_one(b"big")
    assert copy.hash() == kv.machine.hash()


def test_leases_have_a_bound(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_leases, "LEASES_MAX", 2)
    assert not any(isinstance(kv(LeaseGrant(n, 60)), Refused) for n in (1, 2))
    assert kv(LeaseGrant(3, 60)) == Refused(KvError.LEASES_FULL, 1)
    kv(LeaseRevoke(1))
    assert not isinstance(kv(LeaseGrant(3, 60)), Refused)


def test_an_answer_has_a_bound(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, ranges in transactions and deletes that show what was there; what shows less is not concerned."""
    for module in (kv_machine, kv_reading):
        monkeypatch.setattr(module, "RANGE_BYTES_MAX", 100_000)
    kv(*(Put(b"k%03d" % n, b"x" * 1000) for n in range(200)))
    too_large = Refused(KvError.RANGE_TOO_LARGE, kv.machine.revision)
    everything = Range(*ALL)
    assert kv.machine.range(everything) == too_large
    for request in (
        Range(*ALL, sort_order=2),
        Range(*ALL, sort_order=1, sort_target=4),
        Range(*ALL, limit=1025, sort_order=1, sort_target=1),
        Range(*ALL, limit=150),
        Range(*ALL, revision=kv.machine.revision - 1),
    ):
        assert kv.machine.range(request) == too_large, request
    for request, count in (
        (Range(*ALL, limit=90), 90),
        (Range(*ALL, limit=90, sort_order=2), 90),
        (Range(b"k000", b"k090"), 90),
        (Range(*ALL, limit=5, sort_order=1, sort_target=1), 5),
        (Range(*ALL, keys_only=True, sort_order=1, sort_target=4), 200),
        (Range(*ALL, count_only=True), 0),
    ):
        assert len(kv.keys(request)) == count, request
    before = kv.machine.hash()
    for command in (
        everything,
        DeleteRange(*ALL, prev_kv=True),
        Txn([], [Put(b"new", b""), everything], []),
        Txn([], [Put(b"new", b""), Txn([], [DeleteRange(*ALL, prev_kv=True)], [])], []),
        Txn([], [Range(b"k000", b"k060"), Range(b"k000", b"k060")], []),
    ):
        assert kv(command) == Refused(KvError.RANGE_TOO_LARGE, kv.machine.revision), command
    assert kv.machine.hash() == before
    assert isinstance(kv(Txn([], [Put(b"new", b""), Range(*ALL, limit=50)], [everything])), TxnResult)
    assert kv(DeleteRange(*ALL)).deleted == 201


def test_a_range_is_the_same_however_it_is_read(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kv(*(Put(b"k%03d" % n, b"x" * (n % 7)) for n in range(300)))
    requests = [
        Range(*ALL, limit=limit, sort_order=order)
        for limit in (0, 1, 63, 64, 65, 128, 299, 300, 301)
        for order in (0, 1, 2)
    ]
    whole = [kv.machine.range(request) for request in requests]
    monkeypatch.setattr(kv_reading, "PAGE_KEYS", 3)
    monkeypatch.setattr(kv_reading, "PAGE_BYTES", 40)
    assert [kv.machine.range(request) for request in requests] == whole
