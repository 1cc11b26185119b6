"""A member's log as an observer keeps it: from what was ordered to be written, or from what was synced."""

from __future__ import annotations

from oarlock.raft.events import Persist
from oarlock.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    SnapshotMeta,
    Term,
    decode_configuration,
)
from oarlock.storage import GroupState


class Ledger:
    """Terms of the entries after `base`, hard state, snapshot mark, and the configurations in between.

    The content of an entry is checked where it is written (`Oracle`), so that here its term says which one it is.
    """

    __slots__ = ("base", "configurations", "hard_state", "snapshot", "terms")

    def __init__(self, initial: Configuration) -> None:
        self.base: Index = 0
        self.terms: list[Term] = []
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta()
        self.configurations: list[tuple[Index, Configuration]] = [(0, initial)]

    @staticmethod
    def recovered(state: GroupState, initial: Configuration) -> Ledger:
        found = Ledger(initial)
        snapshot = state.snapshot
        found.hard_state = state.hard_state
        found.snapshot = snapshot
        found.base = state.entries[0].index - 1 if state.entries else snapshot.index
        found.terms = [entry.term for entry in state.entries]
        if snapshot.index:
            found.configurations = [(snapshot.index, snapshot.configuration)]
        for entry in state.entries:
            if entry.kind == EntryKind.CONFIG and entry.index > snapshot.index:
                found.configurations.append((entry.index, decode_configuration(entry.payload)))
        return found

    def copy(self) -> Ledger:
        other = Ledger(Configuration())
        other.base, other.terms = self.base, list(self.terms)
        other.hard_state, other.snapshot = self.hard_state, self.snapshot
        other.configurations = list(self.configurations)
        return other

    @property
    def last_index(self) -> Index:
        return max(self.base + len(self.terms), self.snapshot.index)

    @property
    def last_term(self) -> Term:
        return self.terms[-1] if self.terms else self.snapshot.term

    @property
    def configuration(self) -> Configuration:
        return self.configurations[-1][1]

    def configuration_at(self, index: Index) -> Configuration | None:
        for at, configuration in reversed(self.configurations):
            if at <= index:
                return configuration
        return None

    def term(self, index: Index) -> Term | None:
        """The term of the entry at `index`; None where nothing is known."""
        offset = index - self.base - 1
        if 0 <= offset < len(self.terms):
            return self.terms[offset]
        if index == self.snapshot.index:
            return self.snapshot.term
        return 0 if index == 0 else None

    def holds(self, index: Index, term: Term) -> bool:
        """Whether the entry is here, or in the state that the snapshot mark stands for (which is committed)."""
        return index <= self.snapshot.index or self.term(index) == term

    def mark(self, snapshot: SnapshotMeta, reset: bool) -> None:
        if reset or snapshot.index > self.base + len(self.terms):
            self.base, self.terms = snapshot.index, []
            self.configurations = [(snapshot.index, snapshot.configuration)]
        self.snapshot = snapshot

    def append(self, entry: Entry) -> None:
        offset = entry.index - self.base - 1
        if offset < len(self.terms):
            del self.terms[offset:]
            while len(self.configurations) > 1 and self.configurations[-1][0] >= entry.index:
                self.configurations.pop()
        self.terms.append(entry.term)
        if entry.kind == EntryKind.CONFIG:
            self.configurations.append((entry.index, decode_configuration(entry.payload)))

    def apply(self, persist: Persist) -> None:
        if persist.snapshot is not None:
            self.mark(persist.snapshot, persist.reset_log)
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        for entry in persist.entries:
            self.append(entry)

    def same_as(self, other: Ledger) -> bool:
        """Whether a restart from the one gives what a restart from the other gives, but for the commit index."""
        ours, theirs = self.hard_state, other.hard_state
        if (ours.term, ours.vote) != (theirs.term, theirs.vote) or self.snapshot != other.snapshot:
            return False
        if self.last_index != other.last_index:
            return False
        return all(self.term(i) == other.term(i) for i in range(self.snapshot.index + 1, self.last_index + 1))
