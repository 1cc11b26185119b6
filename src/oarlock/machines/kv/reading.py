"""Reads of the key-value machine in pieces of a bounded size, each of the state as it was when the read began.

A `Reading` is a generator that has a number of *units* for each step: one for a key that is looked at, a step back in
history, or `UNIT_BYTES` of key-values. Between two steps the machine applies further entries. What they change is kept
for the reading in its `Moment`, which it looks into on its way; the log that it may go back into is not purged
meanwhile. So a step never waits for anything, and whoever drives many readings decides who goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from oarlock.machines.kv.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteResult,
    KvError,
    Op,
    PutResult,
    Range,
    RangeResult,
    Refused,
    SortOrder,
    SortTarget,
    Txn,
    TxnResult,
)
from oarlock.machines.kv.counts import KeyCounts
from oarlock.machines.kv.encoding import KeyValue, decode_key_value, without_value
from oarlock.machines.kv.history import Walk
from oarlock.machines.ordered import OrderedMap
from oarlock.machines.store import Table, nearest

STEP_UNITS: Final = 1024
"""Units of one step of a reading, unless its driver says otherwise."""

UNIT_BYTES: Final = 4096
PAGE_KEYS: Final = 256
PAGE_BYTES: Final = 1 << 20
"""What is taken from the store at once: a step goes over its units by no more."""

SORTED_LIMIT_MAX: Final = 1024
"""Up to this limit a sorted range keeps only the best that it has seen; beyond, it keeps everything and merges."""

RANGE_BYTES_MAX: Final = 64 << 20
"""Key-values in the answer to one command, roughly. What would answer with more is refused, alike on every member."""

Steps: TypeAlias = Generator[None, None, "T"]
T = TypeVar("T")
R = TypeVar("R")

_first = itemgetter(0)
_NOTHING = KeyValue(b"", 0, 0, 0, b"", 0)
_SORT_KEYS: Final[dict[int, Callable[[KeyValue], int | bytes]]] = {
    SortTarget.KEY: lambda kv: kv.key,
    SortTarget.VERSION: lambda kv: kv.version,
    SortTarget.CREATE: lambda kv: kv.create_revision,
    SortTarget.MOD: lambda kv: kv.mod_revision,
    SortTarget.VALUE: lambda kv: kv.value,
}


class StateReplaced(Exception):
    """A snapshot has taken the place of the state that was read: read again."""


class Moment:
    """What has changed since a reading began: for each such key the record and the deletion that it had then."""

    __slots__ = ("changed", "lost", "oldest")

    def __init__(self, oldest: int) -> None:
        self.changed: OrderedMap[tuple[bytes | None, bytes | None]] = OrderedMap()
        self.oldest = oldest
        """The log after this revision is needed."""

        self.lost = False

    def keep(self, key: bytes, record: bytes | None, deletion: bytes | None) -> None:
        """For the machine, before it changes `key`."""
        if key not in self.changed.data:
            self.changed.data[key] = (record, deletion)


class Source(Protocol):
    """What a reading needs of the machine."""

    moments: list[Moment]
    """Of all readings that are under way."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def current(self) -> Table: ...
    @property
    def tombstones(self) -> Table: ...
    @property
    def counts(self) -> KeyCounts: ...
    @property
    def key_count(self) -> int: ...

    def walk_back(self, walk: Walk, revision: int, steps: int) -> int: ...


class Stepped(Generic[R]):
    """Something that is read in steps. `step` until it says that it is done, then look at `result`; `close` in any
    case. A subclass says what is done in `_read`; its `begun` is set where the moment is that will be shown.

    `now` is the revision that is the present: another than the machine's within a transaction that has written.
    """

    def __init__(self, source: Source, now: int = 0) -> None:
        self._source = source
        self._now = now or source.revision
        self._moment: Moment | None = None
        self.begun = False
        """Whether what is read is settled: nothing that happens from now on shows."""

        self._left = 0
        self._oldest = 1 << 63
        self.held = 0
        """Bytes of key-values gathered so far."""

        self.spent = 0
        """Units of the last step."""

        self.result: R | Refused | None = None
        self._steps = self._read()

    def _read(self) -> Steps[R]:
        raise NotImplementedError

    def step(self, units: int = STEP_UNITS) -> bool:
        """Go on for about so many units; whether the result is there. Raises `StateReplaced`."""
        if self._moment is not None and self._moment.lost:
            raise StateReplaced
        self._left = units
        try:
            next(self._steps)
        except StopIteration as end:
            self.result = end.value
            self.close()
            return True
        except _Refusal as refusal:
            self.result = Refused(refusal.error, self._now)
            self.close()
            return True
        finally:
            self.spent = units - self._left
        if self.begun and self._moment is None:
            self._moment = Moment(self._oldest)
            self._source.moments.append(self._moment)
        return False

    def whole(self) -> R | Refused:
        """The result, at once."""
        while not self.step(1 << 62):
            pass
        assert self.result is not None
        return self.result

    def close(self) -> None:
        """Nobody reads on. Idempotent."""
        moment, self._moment = self._moment, None
        if moment is not None and not moment.lost:
            self._source.moments.remove(moment)
        self._steps.close()

    def _spend(self, units: int) -> bool:
        self._left -= units
        return self._left <= 0

    def _page(
        self, start: bytes, end: bytes | None, reverse: bool, revision: int, most: int = PAGE_KEYS
    ) -> Steps[tuple[list[bytes], bytes | None]]:
        """The next records of a range as they were at `revision`, and where to go on (see `Table.page`)."""
        source, moment = self._source, self._moment
        limit = max(min(PAGE_KEYS, most, self._left), 1)
        pairs, stop = source.current.page(start, end, limit, PAGE_BYTES, reverse=reverse)
        self._left -= 1 + len(pairs)
        past = revision < self._now
        if not past and (moment is None or not moment.changed.data):
            records = [record for _, record in pairs]
            self._left -= sum(map(len, records)) // UNIT_BYTES
            return records, stop
        ends = [stop]
        found: dict[bytes, tuple[bytes | None, bytes | None]] = {key: (record, None) for key, record in pairs}
        if past:
            deleted, stop = source.tombstones.page(start, end, limit, PAGE_BYTES, reverse=reverse)
            self._left -= len(deleted)
            ends.append(stop)
            found.update((key, (None, place)) for key, place in deleted)
        if moment is not None:
            changed = moment.changed
            keys = changed.keys(start, end, limit, reverse)
            self._left -= len(keys)
            ends.append((keys[-1] if reverse else keys[-1] + b"\0") if len(keys) == limit else None)
            found.update((key, changed.data[key]) for key in keys)
        self._left -= len(found)  # putting them together costs as much again
        stop = nearest(ends, reverse)
        records = []
        for key in sorted(found, reverse=reverse):
            if stop is not None and (key < stop if reverse else key >= stop):
                continue
            record, deletion = found[key]
            if past:
                walk = Walk(key, record, deletion)
                while (left := source.walk_back(walk, revision, max(self._left, 0))) < 0:
                    self._left = 0
                    yield
                self._left = min(self._left, left)
                record = walk.record
            if record is not None:
                records.append(record)
        self._left -= sum(map(len, records)) // UNIT_BYTES
        return records, stop


class Reading(Stepped["RangeResult | TxnResult"]):
    """One read: a range, or a transaction of nothing but ranges."""

    def __init__(self, source: Source, request: Range | Txn, now: int = 0, bytes_max: int = 0) -> None:
        self._request = request
        self._fixed = bool(now)
        self._compacted = source.compact_revision  # then; what is compacted meanwhile can be read on
        self._bytes_max = bytes_max or RANGE_BYTES_MAX
        super().__init__(source, now)

    def holds(self, compare: Compare) -> bool:
        """Whether a compare holds now, at once."""
        self._left = 1 << 62
        try:
            next(self._compare(compare))
        except StopIteration as end:
            return bool(end.value)
        raise AssertionError("a compare did not come to its end")

    # -- the generators. They yield when a step is over.

    def _read(self) -> Steps[RangeResult | TxnResult]:
        source, request = self._source, self._request
        ranges = [request] if isinstance(request, Range) else list(_ranges(request))
        for each in ranges:
            if each.range_end and (each.count_only or each.limit > 0) and not 0 < each.revision < source.revision:
                # To make counts takes long, so it comes before there is a moment to be kept.
                start, end = bounds(each.key, each.range_end)
                while not source.counts.ready(start, end):
                    self._left -= source.counts.extend()
                    if self._left <= 0:
                        yield
        self.begun = True
        if not self._fixed:
            self._now = source.revision
        self._compacted = source.compact_revision
        if isinstance(request, Range):
            self._refuse(request.revision, in_txn=False)
            self._oldest = request.revision if request.revision > 0 else self._oldest
            return (yield from self._range(request))
        path: list[bool] = []
        self._oldest = min((each.revision for each in ranges if each.revision > 0), default=self._oldest)
        yield from self._decide(request, path)
        for each in taken_ranges(request, iter(path)):
            self._refuse(each.revision, in_txn=True)
        result = yield from self._txn(request, iter(path))
        result.revision = self._now
        return result

    def _refuse(self, at: int, *, in_txn: bool) -> None:
        """Outside of transactions a negative revision is the present; there etcd compares it like any other."""
        if at > self._now:
            raise _Refusal(KvError.FUTURE_REVISION)
        if (at > 0 or (in_txn and at)) and at < self._compacted:
            raise _Refusal(KvError.COMPACTED)

    def _txn(self, txn: Txn, path: Iterator[bool]) -> Steps[TxnResult]:
        success = next(path)
        responses: list[PutResult | DeleteResult | RangeResult | TxnResult] = []
        for op in txn.success if success else txn.failure:
            if isinstance(op, Txn):
                responses.append((yield from self._txn(op, path)))
            else:
                assert isinstance(op, Range), f"{op} in a transaction that only reads"
                responses.append((yield from self._range(op)))
        return TxnResult(0, success, responses)  # etcd gives a nested transaction no revision of its own

    def _decide(self, txn: Txn, path: list[bool]) -> Steps[None]:
        """Evaluate the compares of a transaction and of those nested on the way taken, depth first."""
        success = True
        for compare in txn.compare:
            success = yield from self._compare(compare)
            if not success:
                break
        path.append(success)
        for op in txn.success if success else txn.failure:
            if isinstance(op, Txn):
                yield from self._decide(op, path)

    def _compare(self, compare: Compare) -> Steps[bool]:
        """Whether every key of the range is as asked; one that does not exist has zeros, and no value at all."""
        nothing = True
        start, end = bounds(compare.key, compare.range_end) if compare.range_end else one_key(compare.key)
        going_on: bytes | None = start
        while going_on is not None:
            records, going_on = yield from self._page(going_on, end, False, self._now)
            self._left -= len(records)
            for record in records:
                nothing = False
                if not compare_one(compare, decode_key_value(record)):
                    return False
            if self._left <= 0:
                yield
        return not nothing or holds_for_one(compare, None)

    def _range(self, request: Range) -> Steps[RangeResult]:
        now, at = self._now, request.revision
        past = 0 < at < now
        order, target = request.sort_order, request.sort_target
        sorts = target != SortTarget.KEY
        backwards = order == SortOrder.DESCEND and not sorts
        wanted = request.limit + 1 if request.limit > 0 else 0
        start, end = bounds(request.key, request.range_end) if request.range_end else one_key(request.key)
        if request.count_only and not past:
            return RangeResult(now, [], False, self._count(start, end))
        filtered = bool(
            request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        )
        # With a sort target but no order etcd sorts only what the limit left, if there are no filters.
        sorts_few = sorts and order == SortOrder.NONE and wanted > 0 and not filtered
        kept = _Sorted(request, wanted) if sorts and not sorts_few else _InOrder(wanted)
        # One more than asked for tells whether there is more. (The count of the past needs all.)
        enough = wanted if not past and not kept.sorts else 0
        count = 0
        low: bytes | None = start
        high = end
        while True:
            assert low is not None
            most = enough - len(kept.records) if enough and not filtered else PAGE_KEYS
            records, going_on = yield from self._page(low, high, backwards, at if past else now, most)
            count += len(records)
            if not request.count_only:
                if filtered:
                    self._left -= len(records)
                    records = [record for record in records if passes(request, decode_key_value(record))]
                if kept.sorts:
                    self._left -= len(records)
                self.held += kept.add(records, request.keys_only and not sorts_few)
                if self.held > self._bytes_max:
                    raise _Refusal(KvError.RANGE_TOO_LARGE)
            if going_on is None:
                break
            if backwards:
                high = going_on
            else:
                low = going_on
            if enough and len(kept.records) >= enough:
                count = self._count(start, end)
                break
            if self._left <= 0:
                yield
        if request.count_only:
            return RangeResult(now, [], False, count)
        records = kept.records if isinstance(kept, _InOrder) else (yield from kept.merged(self._spend))
        if sorts_few:
            later = _Sorted(request, wanted)
            for first in range(0, len(records), PAGE_KEYS):
                later.add(records[first : first + PAGE_KEYS], request.keys_only)
            records = yield from later.merged(self._spend)
        more = 0 < request.limit < len(records)
        return RangeResult(now, records[: request.limit] if more else records, more, count)

    def _count(self, start: bytes, end: bytes | None) -> int:
        """How many keys there were in a range when this began."""
        source = self._source
        count = source.key_count if end is None and start <= b"\0" else source.counts.count(start, end)
        if self._moment is not None:
            changed = self._moment.changed
            for key in changed.keys(start, end):
                self._left -= 1
                count += (changed.data[key][0] is not None) - (source.current.get(key) is not None)
        self._left -= 1
        return count


class _InOrder:
    """Records as they come, up to those wanted."""

    sorts = False

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.records: list[bytes] = []

    def add(self, records: list[bytes], keys_only: bool) -> int:
        """Take records; how many bytes it were."""
        if self._wanted:
            records = records[: max(self._wanted - len(self.records), 0)]
        if keys_only:
            records = [without_value(record) for record in records]
        self.records += records
        return sum(map(len, records))


class _Sorted:
    """Records by something else than their keys. Equal ones stay in ascending order of keys."""

    sorts = True

    def __init__(self, request: Range, wanted: int) -> None:
        self._key = _SORT_KEYS[request.sort_target]
        self._reverse = request.sort_order == SortOrder.DESCEND
        self._wanted = wanted
        self._best_only = 0 < wanted <= SORTED_LIMIT_MAX + 1
        self._runs: list[list[tuple[int | bytes, bytes]]] = []
        self.records: Sequence[bytes] = ()

    def add(self, records: list[bytes], keys_only: bool) -> int:
        """Take records; by how many bytes those that are kept have grown."""
        key = self._key
        run = [(key(decode_key_value(record)), without_value(record) if keys_only else record) for record in records]
        if not self._best_only or not self._runs:
            run.sort(key=_first, reverse=self._reverse)
            self._runs.append(run[: self._wanted] if self._best_only else run)
            return _size(self._runs[-1])
        before = _size(self._runs[0])
        best = self._runs[0] + run
        best.sort(key=_first, reverse=self._reverse)
        self._runs[0] = best[: self._wanted]
        return _size(self._runs[0]) - before

    def merged(self, spend: Callable[[int], bool]) -> Steps[list[bytes]]:
        """All that is wanted, in order."""
        merging = merge(*map(_taken_from, self._runs), key=_first, reverse=self._reverse)
        records: list[bytes] = []
        while part := list(islice(merging, min(PAGE_KEYS, self._wanted - len(records)) if self._wanted else PAGE_KEYS)):
            records += [record for _, record in part]
            if spend(len(part)):
                yield
        return records


def _taken_from(run: list[tuple[int | bytes, bytes]]) -> Iterator[tuple[int | bytes, bytes]]:
    """In order, and let go of as they are taken."""
    run.reverse()
    while run:
        yield run.pop()


def _size(run: list[tuple[int | bytes, bytes]]) -> int:
    return sum(len(record) for _, record in run)


class _Refusal(Exception):
    def __init__(self, error: KvError) -> None:
        super().__init__(error)
        self.error = error


def bounds(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """The half-open range of a request with a range end: one zero byte is no end."""
    return key, None if range_end == b"\0" else range_end


def one_key(key: bytes) -> tuple[bytes, bytes]:
    return key, key + b"\0"


def _ranges(txn: Txn) -> Iterator[Range]:
    """All ranges in a transaction, whichever way it takes."""
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Range):
            yield op
        elif isinstance(op, Txn):
            yield from _ranges(op)


def taken(txn: Txn, path: Iterator[bool]) -> Iterator[Op]:
    """The operations that will run on the way taken, in order."""
    for op in txn.success if next(path) else txn.failure:
        if isinstance(op, Txn):
            yield from taken(op, path)
        else:
            yield op


def taken_ranges(txn: Txn, path: Iterator[bool]) -> Iterator[Range]:
    return (op for op in taken(txn, path) if isinstance(op, Range))


def holds_for_one(compare: Compare, kv: KeyValue | None) -> bool:
    """A compare of one key, which may not exist."""
    if kv is None:
        return compare.target != CompareTarget.VALUE and compare_one(compare, _NOTHING)
    return compare_one(compare, kv)


def compare_one(compare: Compare, kv: KeyValue) -> bool:
    """One key-value against a compare. As in etcd, for unknown numbers every key is equal and every test is met."""
    operand = compare.operand
    if compare.target == CompareTarget.VALUE:
        wanted_value = operand if isinstance(operand, bytes) else b""
        order = (kv.value > wanted_value) - (kv.value < wanted_value)
    else:
        wanted = operand if isinstance(operand, int) else 0
        actual = {
            CompareTarget.VERSION: kv.version,
            CompareTarget.CREATE: kv.create_revision,
            CompareTarget.MOD: kv.mod_revision,
            CompareTarget.LEASE: kv.lease,
        }.get(compare.target, wanted)  # type: ignore[call-overload]
        order = (actual > wanted) - (actual < wanted)
    if compare.result == CompareResult.EQUAL:
        return order == 0
    if compare.result == CompareResult.GREATER:
        return order > 0
    if compare.result == CompareResult.LESS:
        return order < 0
    if compare.result == CompareResult.NOT_EQUAL:
        return order != 0
    return True


def passes(request: Range, kv: KeyValue) -> bool:
    """Whether the filters let a key-value through. Zero is no filter."""
    return (
        (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and (not request.min_mod_revision or kv.mod_revision >= request.min_mod_revision)
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
        and (not request.min_create_revision or kv.create_revision >= request.min_create_revision)
    )
