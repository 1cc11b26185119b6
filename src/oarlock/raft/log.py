"""The log in memory: the entries after the compaction base, and how far they are durable, committed and applied.

Entries at or below `snapshot_index` are compacted away; the term of that one index is still known, because the
consistency check of AppendEntries may ask for it (Raft 7). What `term` does not know is `None`, never 0: a compacted
entry must not look like the empty log.
"""

from __future__ import annotations

from collections.abc import Sequence

from oarlock.raft.types import Entry, Index, LogPosition, Term


class Log:
    """See the module. Indexes only move as Raft 5.3 allows; `validate` states the chain of progress."""

    __slots__ = (
        "_entries",
        "commit_index",
        "last_applied",
        "last_index",
        "snapshot_index",
        "snapshot_term",
        "stable_index",
    )

    def __init__(self, snapshot_index: Index = 0, snapshot_term: Term = 0, entries: Sequence[Entry] = ()) -> None:
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self._entries = list(entries)
        self.last_index = snapshot_index + len(self._entries)
        self.stable_index = self.last_index  # what recovery gave back is durable
        self.commit_index = snapshot_index
        self.last_applied = snapshot_index
        for expected, entry in enumerate(self._entries, snapshot_index + 1):
            assert entry.index == expected, f"gap in a recovered log: wanted {expected}, found {entry}"

    # -- reading

    @property
    def first_index(self) -> Index:
        """The first index whose entry may still be here."""
        return self.snapshot_index + 1

    @property
    def last_term(self) -> Term:
        return self._entries[-1].term if self._entries else self.snapshot_term

    @property
    def position(self) -> LogPosition:
        """`(last_term, last_index)`, to be compared as Raft 5.4.1 does."""
        return (self.last_term, self.last_index)

    def term(self, index: Index) -> Term | None:
        """The term of the entry at `index`; None where it is compacted away or not there yet."""
        offset = index - self.snapshot_index
        if offset == 0:
            return self.snapshot_term
        if offset < 0 or offset > len(self._entries):
            return None
        return self._entries[offset - 1].term

    def entry(self, index: Index) -> Entry:
        """The entry at `index`, which must be here."""
        assert self.first_index <= index <= self.last_index, f"{index} is not in {self.first_index}..{self.last_index}"
        return self._entries[index - self.snapshot_index - 1]

    def slice(self, first: Index, last: Index, bytes_max: int) -> tuple[Entry, ...]:
        """Entries `first`..`last`, cut before the one that would exceed `bytes_max` of payload; at least one if any.

        The result is always contiguous from `first`.
        """
        assert first >= self.first_index, f"{first} is compacted away (base {self.snapshot_index})"
        start = first - self.snapshot_index - 1
        stop = min(last, self.last_index) - self.snapshot_index
        if stop - start == 1:
            return (self._entries[start],)
        size = 0
        for position in range(start, stop):
            size += len(self._entries[position].payload)
            if size > bytes_max and position > start:
                # sometimes: more entries than a message holds
                stop = position
                break
        return tuple(self._entries[start:stop])

    def matches(self, index: Index, term: Term) -> bool:
        """Whether the log holds an entry with this identity (the consistency check of Raft 5.3)."""
        return self.term(index) == term

    def hint(self, index: Index, term: Term) -> tuple[Index, Term]:
        """The largest index not above `index` whose term is not above `term`, with its term. (Raft 5.3, last
        paragraphs)

        Whole terms are skipped in one exchange. Where the terms are compacted away the base is the answer.
        """
        index = min(index, self.last_index)
        while index > self.snapshot_index:
            known = self._entries[index - self.snapshot_index - 1].term
            if known <= term:
                return index, known
            index -= 1
        return self.snapshot_index, self.snapshot_term

    def payload_bytes(self, first: Index, last: Index) -> int:
        first = max(first, self.first_index)
        return sum(len(e.payload) for e in self._entries[first - self.snapshot_index - 1 : last - self.snapshot_index])

    # -- writing

    def append(self, entry: Entry) -> None:
        assert entry.index == self.last_index + 1, f"gap: {entry} after {self.last_term}.{self.last_index}"
        assert entry.term >= self.last_term, f"term went back: {entry} after {self.last_term}.{self.last_index}"
        self._entries.append(entry)
        self.last_index = entry.index

    def truncate_from(self, index: Index) -> None:
        """Drop `index` and everything after it. Never anything committed."""
        assert index > self.commit_index, f"cut at {index} would lose committed entries (commit {self.commit_index})"
        del self._entries[index - self.snapshot_index - 1 :]
        self.last_index = index - 1
        self.stable_index = min(self.stable_index, index - 1)

    def commit_to(self, index: Index) -> None:
        assert self.commit_index <= index <= self.last_index, f"{self.commit_index} <= {index} <= {self.last_index}"
        self.commit_index = index

    def compact_to(self, index: Index) -> None:
        """Forget entries at or below `index`, which must be applied and durable."""
        assert self.snapshot_index <= index <= self.last_applied, f"compaction at {index}, applied {self.last_applied}"
        term = self.term(index)
        assert term is not None
        del self._entries[: index - self.snapshot_index]
        self.snapshot_index, self.snapshot_term = index, term
        self.stable_index = max(self.stable_index, index)

    def reset_to(self, index: Index, term: Term) -> None:
        """A snapshot replaces the whole log. Nothing counts as durable until its own persist returns."""
        assert index > self.commit_index, f"snapshot at {index} is not ahead of commit {self.commit_index}"
        self._entries.clear()
        self.snapshot_index, self.snapshot_term = index, term
        self.last_index = self.commit_index = index
        self.stable_index = 0

    def validate(self) -> None:
        assert self.commit_index <= self.last_index, f"commit {self.commit_index} above last {self.last_index}"
        assert self.last_applied <= self.commit_index, f"applied {self.last_applied} above commit {self.commit_index}"
        assert self.snapshot_index <= self.commit_index, f"base {self.snapshot_index} above commit {self.commit_index}"
        assert self.last_index == self.snapshot_index + len(self._entries)
        assert self.stable_index <= self.last_index, f"stable {self.stable_index} above last {self.last_index}"
