"""Reads in steps: what a step costs has a bound, however much there is, and what is read is of one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oarlock.machines.base import Context
from oarlock.machines.kv import reading as kv_reading
from oarlock.machines.kv.commands import (
    Compact,
    Compare,
    DeleteRange,
    Put,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
    encode,
)
from oarlock.machines.kv.encoding import key_of
from oarlock.machines.kv.hashing import HashSource
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.reading import PAGE_KEYS, STEP_UNITS, Reading, StateReplaced

KEYS = 8_000
ALL = (b"\0", b"\0")
STEP_MAX = STEP_UNITS + 4 * PAGE_KEYS + 2
"""Units of a step: what it is given, and a page of everything that a read looks into."""


class Filled:
    """A machine with many keys, each put twice, and as many that were deleted."""

    def __init__(self, machine: KvMachine) -> None:
        self.machine = machine
        self.index = 0
        keys = [b"k%05d" % ((n * 7919) % KEYS) for n in range(KEYS)]
        for at in range(0, KEYS, 2000):
            self(*(Put(key, b"first") for key in keys[at : at + 2000]))
        self.filled = machine.revision
        for at in range(0, KEYS, 2000):
            self(*(Put(b"d" + key, b"") for key in keys[at : at + 2000]))
        self(DeleteRange(b"d", b"e"))
        if machine.durable:
            checkpoint = machine.checkpoint()
            checkpoint.write()
            machine.checkpointed(checkpoint)
        for at in range(0, KEYS, 2000):
            self(*(Put(key, b"second") for key in keys[at : at + 2000]))

    def __call__(self, *commands: Put | DeleteRange | Compact) -> None:
        self.index += 1
        self.machine.apply(Context(self.index, 1, 0), [encode(command) for command in commands])


@pytest.fixture(scope="module", params=["memory", "disk"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    in_memory = request.param == "memory"
    machine = KvMachine.in_memory() if in_memory else KvMachine.on_disk(tmp_path_factory.mktemp("kv") / "state")
    yield Filled(machine)
    machine.close()


def run(reading: Reading | Refused, between: Callable[[], None] = lambda: None) -> tuple[object, int]:
    """The result, and how many steps it took."""
    assert isinstance(reading, Reading)
    steps = 1
    while not reading.step():
        assert reading.spent <= STEP_MAX, reading.spent
        steps += 1
        between()
    assert reading.spent <= STEP_MAX, reading.spent
    return reading.result, steps


REQUESTS = {
    "all": Range(*ALL),
    "descending": Range(*ALL, sort_order=2),
    "by value": Range(*ALL, sort_order=2, sort_target=4),
    "by revision, the last five": Range(*ALL, limit=5, sort_order=2, sort_target=3),
    "filtered": Range(*ALL, min_mod_revision=2 * KEYS + KEYS // 2),
    "filtered, nothing passes": Range(*ALL, max_mod_revision=2),
    "past": Range(*ALL, revision=KEYS // 2),
    "past, counted": Range(*ALL, revision=KEYS + KEYS // 2, count_only=True),
    "past, limited": Range(*ALL, revision=KEYS, limit=3),
    "past, what is deleted now": Range(b"d", b"e", revision=2 * KEYS, sort_order=2),
    "a transaction": Txn(
        [Compare(1, 1, b"k", 1, b"l")], [Range(b"k", b"l", count_only=True), Txn([], [Range(*ALL, keys_only=True)])]
    ),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_step_has_a_bound(filled: Filled, request_: Range | Txn) -> None:
    result, steps = run(filled.machine.read(request_))
    assert isinstance(result, RangeResult | TxnResult)
    assert steps >= KEYS / STEP_UNITS / 2
    reading = filled.machine.read(request_)
    assert isinstance(reading, Reading) and reading.whole() == result
    assert not filled.machine.moments


def test_what_is_hashed_is_gathered_in_steps(filled: Filled) -> None:
    machine = filled.machine
    reading = machine.read_hash()
    assert not isinstance(reading, Refused)
    turns = 0
    while not reading.step():
        assert reading.spent <= STEP_MAX
        turns += 1
        if turns == 3:
            filled(Put(b"k00000", b"new"), DeleteRange(b"k07999"))
    assert turns > KEYS / STEP_UNITS
    found = reading.result
    assert isinstance(found, HashSource)
    again = machine.read_hash(found.revision)
    assert not isinstance(again, Refused)
    later = again.whole()
    assert isinstance(later, HashSource) and found.digest() == later.digest(), "what came meanwhile is in neither"
    filled(Put(b"k00000", b"second"), Put(b"k07999", b"second"))


def test_counting_does_not_go_through_the_keys(filled: Filled) -> None:
    """Only the first time, on disk. Then what is counted stays right whatever is put and deleted."""
    few = Range(b"k00002", b"k07990", limit=2)
    result, steps = run(filled.machine.read(few))
    assert isinstance(result, RangeResult) and (len(result.kvs), result.count) == (2, 7988)
    for request, count in (
        (few, 7988),
        (Range(b"k", b"l", count_only=True), KEYS),
        (Range(b"k04", b"\0", count_only=True), KEYS // 2),
        (Range(b"k05000", b"k05001", count_only=True), 1),
        (Range(*ALL, count_only=True), KEYS),
    ):
        result, steps = run(filled.machine.read(request))
        assert isinstance(result, RangeResult) and (result.count, steps) == (count, 1), request
    for _ in range(3):
        filled(DeleteRange(b"k03000", b"k06000"), *(Put(b"k03%07d" % n, b"") for n in range(5000)))
        for start, end, count in ((b"k", b"l", KEYS + 2000), (b"k03", b"k04", 5000), (b"k04", b"k06", 0)):
            result, steps = run(filled.machine.read(Range(start, end, count_only=True)))
            assert isinstance(result, RangeResult) and result.count == count
            assert steps <= 12, "what has grown is divided, and nothing else is looked at"
        filled.machine.counts.validate()
        filled(DeleteRange(b"k03", b"k04"), *(Put(b"k%05d" % n, b"first") for n in range(3000, 6000)))
    filled.machine.counts.validate()


@pytest.mark.parametrize("name", ["all", "descending", "by value", "past", "a transaction"])
def test_what_happens_meanwhile_does_not_show(filled: Filled, name: str) -> None:
    """Writes, deletes, compactions and purges between the steps of a read."""
    machine = filled.machine
    request = REQUESTS[name]
    filled(*(Put(b"k%05d" % n, b"third") for n in range(0, KEYS, 100)))
    once = machine.read(request)
    assert isinstance(once, Reading)
    expected = once.whole()
    turn = 0

    def meanwhile() -> None:
        nonlocal turn
        turn += 1
        key = b"k%05d" % (turn * 501 % KEYS)
        filled(Put(b"j%05d" % turn, b"new"), DeleteRange(key), Put(b"kk%05d" % turn, b""), Put(b"l" + key, b""))
        filled(Put(key, b"again"))

    result, steps = run(machine.read(request), meanwhile)
    assert steps > 5
    assert result == expected
    filled(DeleteRange(b"j", b"k"), DeleteRange(b"kk", b"kl"), DeleteRange(b"lk", b"ll"))


def test_the_past_is_not_purged_while_it_is_read() -> None:
    filled = Filled(KvMachine.in_memory())
    machine = filled.machine
    request = Range(*ALL, revision=KEYS // 2)
    reading = machine.read(request)
    assert isinstance(reading, Reading)
    expected = reading.whole()

    def meanwhile() -> None:
        if machine.compact_revision < 0:
            filled(Compact(machine.revision))
        filled(*(Put(b"k%05d" % n, b"later") for n in range(0, KEYS, 50)), DeleteRange(b"k01", b"k015"))
        machine.compact_some(100_000)

    result, _ = run(machine.read(request), meanwhile)
    assert result == expected
    assert machine.purging, "the reading kept the log from being purged"
    while machine.compact_some(100_000):
        pass
    assert machine.changes(0, machine.compact_revision) == []
    assert isinstance(machine.range(request), Refused)
    machine.validate()


def test_a_transaction_is_not_refused_for_what_is_compacted_meanwhile() -> None:
    filled = Filled(KvMachine.in_memory())
    machine = filled.machine
    request = Txn([Compare(1, 1, b"k", 1, b"l")], [Range(b"k00001", revision=KEYS // 2)])
    once = machine.read(request)
    assert isinstance(once, Reading)
    expected = once.whole()
    assert isinstance(expected, TxnResult)

    def meanwhile() -> None:
        if machine.compact_revision < 0:
            filled(Compact(machine.revision))

    result, steps = run(machine.read(request), meanwhile)
    assert steps > 3 and result == expected


def test_a_replaced_state_is_read_again() -> None:
    filled = Filled(KvMachine.in_memory())
    machine = filled.machine
    reading = machine.read(Range(*ALL))
    assert isinstance(reading, Reading) and not reading.step()
    capture = machine.capture()
    machine.restore(capture.index, list(capture.chunks()))
    with pytest.raises(StateReplaced):
        reading.step()
    reading.close()
    assert not machine.moments


def test_a_page_of_large_values_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From disk no more is read at once than `PAGE_BYTES` and one value."""
    machine = KvMachine.on_disk(tmp_path / "state")
    value = bytes(300_000)
    machine.apply(Context(1, 1, 0), [encode(Put(b"k%02d" % n, value)) for n in range(20)])
    checkpoint = machine.checkpoint()
    checkpoint.write()
    machine.checkpointed(checkpoint)
    seen: list[int] = []
    page = machine.current.page

    def spy(*args: object, **kwargs: object) -> object:
        found = page(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(sum(len(record) for _, record in found[0]))
        return found

    monkeypatch.setattr(machine.current, "page", spy)
    result, _ = run(machine.read(Range(*ALL)))
    assert isinstance(result, RangeResult) and [key_of(kv) for kv in result.kvs] == [b"k%02d" % n for n in range(20)]
    assert len(seen) >= 5 and max(seen) <= kv_reading.PAGE_BYTES + len(value) + 100
    machine.close()
