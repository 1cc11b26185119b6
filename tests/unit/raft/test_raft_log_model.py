"""The log against a list: what a list of entries would answer, the log answers. (Raft 5.3, 7)"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oarlock.raft.log import Log
from oarlock.raft.types import Entry, EntryKind


class LogMachine(RuleBasedStateMachine):
    """`model` is the whole history, entry 1 first; `base`, `commit`, `applied` and `stable` are numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.model: list[Entry] = []
        self.base = self.commit = self.applied = self.stable = 0
        self.term = 1
        self.known_base_term = 0

    @property
    def last(self) -> int:
        return max(len(self.model), self.base)

    def term_of(self, index: int) -> int | None:
        if index == self.base:
            return self.known_base_term
        if self.base < index <= len(self.model):
            return self.model[index - 1].term
        return None

    @rule(size=st.integers(0, 30), raise_term=st.booleans())
    def append(self, size: int, raise_term: bool) -> None:
        self.term += raise_term
        entry = Entry(self.term, self.last + 1, EntryKind.NORMAL, b"x" * size)
        self.log.append(entry)
        self.model.append(entry)

    @precondition(lambda self: self.last > self.commit)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.commit + 1, self.last))
        self.log.truncate_from(index)
        del self.model[index - 1 :]
        self.stable = min(self.stable, index - 1)

    @rule(data=st.data())
    def commit_more(self, data: st.DataObject) -> None:
        self.commit = data.draw(st.integers(self.commit, self.last))
        self.log.commit_to(self.commit)

    @rule(data=st.data())
    def apply_more(self, data: st.DataObject) -> None:
        self.applied = data.draw(st.integers(self.applied, self.commit))
        self.log.last_applied = self.applied

    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        self.stable = data.draw(st.integers(self.stable, self.last))
        self.log.stable_index = self.stable

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.base, max(self.base, self.applied)))
        term = self.term_of(index)
        self.log.compact_to(index)
        assert term is not None
        self.base, self.known_base_term = index, term
        self.stable = max(self.stable, index)

    @rule(ahead=st.integers(1, 5))
    def install(self, ahead: int) -> None:
        """A snapshot ahead of what is committed replaces everything."""
        index = self.commit + ahead
        self.log.reset_to(index, self.term)
        self.model = [Entry(self.term, i, EntryKind.NORMAL, b"") for i in range(1, index + 1)]
        self.base = self.commit = index
        self.known_base_term = self.term
        self.stable = 0
        self.log.last_applied = self.applied = index

    @invariant()
    def same_positions(self) -> None:
        self.log.validate()
        assert (self.log.snapshot_index, self.log.last_index) == (self.base, self.last)
        assert self.log.first_index == self.base + 1
        assert (self.log.commit_index, self.log.stable_index) == (self.commit, self.stable)
        assert self.log.position == (self.term_of(self.last), self.last)

    @invariant()
    def same_terms(self) -> None:
        for index in range(self.last + 3):
            assert self.log.term(index) == self.term_of(index), index
            for term in range(self.term + 2):
                assert self.log.matches(index, term) == (self.term_of(index) == term)

    @invariant()
    def same_entries(self) -> None:
        for index in range(self.base + 1, self.last + 1):
            assert self.log.entry(index) == self.model[index - 1]
            assert self.log.payload_bytes(index, self.last) == sum(len(e.payload) for e in self.model[index - 1 :])

    @precondition(lambda self: self.last > self.base)
    @rule(data=st.data())
    def slices(self, data: st.DataObject) -> None:
        """Contiguous from its beginning, at least one entry, and not one more than fits. (reliability BZ-25)"""
        first = data.draw(st.integers(self.base + 1, self.last))
        last = data.draw(st.integers(first, self.last + 2))
        limit = data.draw(st.integers(0, 100))
        expected = [self.model[first - 1]]
        for entry in self.model[first : min(last, self.last)]:
            if sum(len(e.payload) for e in expected) + len(entry.payload) > limit:
                break
            expected.append(entry)
        assert self.log.slice(first, last, limit) == tuple(expected)

    @rule(data=st.data())
    def hints(self, data: st.DataObject) -> None:
        """The largest index not above the one asked whose term is not above the one asked."""
        index = data.draw(st.integers(self.base, self.last + 3))
        term = data.draw(st.integers(0, self.term + 1))
        candidates = [
            i
            for i in range(self.base + 1, min(index, self.last) + 1)
            if (known := self.term_of(i)) is not None and known <= term
        ]
        best = max(candidates, default=self.base)
        assert self.log.hint(index, term) == (best, self.term_of(best))


LogMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLogMachine = LogMachine.TestCase


def test_what_must_not_happen_is_refused() -> None:
    log = Log(entries=[Entry(1, 1, 0, b""), Entry(2, 2, 0, b"")])
    log.commit_to(1)
    with pytest.raises(AssertionError, match="gap"):
        log.append(Entry(2, 4, 0, b""))
    with pytest.raises(AssertionError, match="term went back"):
        log.append(Entry(1, 3, 0, b""))
    with pytest.raises(AssertionError, match="lose committed"):
        log.truncate_from(1)
    with pytest.raises(AssertionError):
        log.commit_to(3)
    with pytest.raises(AssertionError):
        log.commit_to(0)
    with pytest.raises(AssertionError, match="compaction"):
        log.compact_to(1)  # not applied yet
    with pytest.raises(AssertionError, match="not ahead"):
        log.reset_to(1, 1)
    with pytest.raises(AssertionError, match="gap"):
        Log(0, 0, [Entry(1, 2, 0, b"")])


def test_a_compacted_index_is_unknown_and_not_term_zero() -> None:
    """Reliability BZ-24: what is compacted must not look like the beginning of an empty log."""
    log = Log(entries=[Entry(1, i, 0, b"") for i in range(1, 5)])
    log.commit_to(4)
    log.last_applied = 4
    log.compact_to(3)
    assert [log.term(i) for i in range(6)] == [None, None, None, 1, 1, None]
    assert not log.matches(0, 0)
    assert not log.matches(2, 0)
