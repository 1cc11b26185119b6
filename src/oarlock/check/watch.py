"""Was a watch told the truth, all of it, once, and in order? The nine properties that etcd's robustness tests check,
and completeness at the end.

`EventHistory` is what happened, in the order in which it happened: of a simulation the log is the witness, of a real
cluster its whole history read back. A `WatchChecker` follows one watch; it is given each response as it comes and works
in proportion to it. What it finds is a list of `WatchViolation`s, each under the name of the property that it breaks:

- *filter*: only events that were asked for, from the start revision on;
- *ordered*: revisions do not go back;
- *unique*: no event comes twice;
- *atomic*: the events of a revision come in one response, or in fragments that follow each other;
- *bookmarkable*: after a progress notification of a revision nothing comes that is not later, and before it everything
  came that is not;
- *resumable*: the first event is the first one that matches from the start revision on;
- *is-create*: an event says truly whether it made its key;
- *reliable*: every event that matches, with its own value, and none between two left out;
- *prev-kv*: what was there before, if it was asked for; absent only where it is compacted;
- *complete*: at the end everything up to the last revision came, or the watch was cancelled and said why.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WatchedEvent:
    """One change. `value` and `previous` are whatever the caller compares key-values by; None for what is not there."""

    revision: int
    key: bytes
    value: bytes | None  # None: a deletion
    is_create: bool
    previous: bytes | None

    @property
    def deleted(self) -> bool:
        return self.value is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequest:
    """What was asked for. `range_end` as in etcd's requests: empty is one key, one zero byte everything from `key` on.
    `start_revision` is the first revision that is wanted; 0 while that is not known."""

    key: bytes
    range_end: bytes = b""
    start_revision: int = 0
    no_put: bool = False
    no_delete: bool = False
    prev_kv: bool = False
    fragment: bool = False

    def matches(self, event: WatchedEvent) -> bool:
        if self.no_delete if event.deleted else self.no_put:
            return False
        if not self.range_end:
            return event.key == self.key
        return self.key <= event.key and (self.range_end == b"\0" or event.key < self.range_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchAnswer:
    """One response of a watch. `revision` is that of its header."""

    revision: int
    events: Sequence[WatchedEvent] = ()
    progress: bool = False
    fragment: bool = False  # more of this revision follows in the next answer
    compact_revision: int = 0
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class WatchViolation:
    property: str
    text: str

    def __str__(self) -> str:
        return f"{self.property}: {self.text}"


class EventHistory:
    """Everything that happened, oldest first."""

    def __init__(self, events: Iterable[WatchedEvent] = ()) -> None:
        self.events: list[WatchedEvent] = []
        self._revisions: list[int] = []
        for event in events:
            self.append(event)

    def append(self, event: WatchedEvent) -> None:
        assert not self._revisions or event.revision >= self._revisions[-1], f"{event} after {self._revisions[-1]}"
        self.events.append(event)
        self._revisions.append(event.revision)

    def place(self, revision: int) -> int:
        """The place of the first event at or after `revision`."""
        return bisect_left(self._revisions, revision)

    @property
    def revision(self) -> int:
        return self._revisions[-1] if self._revisions else 0


class WatchChecker:
    """Follows one watch. `violations` grows; it is empty for a watch that was told the truth."""

    def __init__(self, request: WatchRequest, history: EventHistory, *, name: str = "watch") -> None:
        self.request = request
        self.violations: list[WatchViolation] = []
        self.name = name
        self.cancelled = False
        self.delivered = 0
        self._history = history
        self._at = history.place(request.start_revision) if request.start_revision else -1
        self._last = 0  # revision of the last event
        self._seen: set[tuple[int, bytes, bool]] = set()
        self._progress = 0
        self._open_fragment = False
        self._compacted = 0

    def _broken(self, what: str, text: str) -> None:
        self.violations.append(WatchViolation(what, f"{self.name}: {text}"))

    def compacted(self, revision: int) -> None:
        """The cluster compacted up to `revision`: what was there before a change at or below it need not be known."""
        self._compacted = max(self._compacted, revision)

    def answer(self, answer: WatchAnswer) -> None:
        """Take the next response."""
        if self.cancelled:
            self._broken("filter", f"an answer after the end of the watch: {answer}")
        if answer.progress:
            self._take_progress(answer)
        first = True
        for event in answer.events:
            self._take(event, first)
            first = False
        if answer.events:
            if answer.fragment and not self.request.fragment:
                self._broken("atomic", f"a fragment that was not asked for, at {answer.events[-1].revision}")
            if answer.events[-1].revision > answer.revision:
                self._broken("bookmarkable", f"the header is at {answer.revision}, its events at {self._last}")
        self._open_fragment = answer.fragment
        if answer.compact_revision:
            self.compacted(answer.compact_revision)
            if answer.compact_revision <= self._last:
                self._broken("reliable", f"compacted at {answer.compact_revision}, and events came up to {self._last}")
        if answer.compact_revision or answer.cancelled:
            self.cancelled = True

    def _take_progress(self, answer: WatchAnswer) -> None:
        revision = answer.revision
        if revision < self._last or revision < self._progress:
            self._broken("bookmarkable", f"progress {revision} after {max(self._last, self._progress)}")
        self._progress = max(self._progress, revision)
        if self._at < 0:  # the start is the present, which is no later than this
            return
        missed = self._next(revision)
        if missed is not None:
            self._broken("bookmarkable", f"progress {revision} was told before {missed.key!r} at {missed.revision}")

    def _take(self, event: WatchedEvent, first_of_answer: bool) -> None:
        request, history = self.request, self._history
        self.delivered += 1
        if not request.matches(event):
            self._broken("filter", f"{event} does not match {request}")
        if event.revision < request.start_revision:
            self._broken("filter", f"{event} is before the start {request.start_revision}")
        if event.revision < self._last:
            self._broken("ordered", f"revision {event.revision} after {self._last}")
        name = (event.revision, event.key, event.deleted)
        # A revision may delete a key twice, with a put between: then the second one is what comes next.
        if name in self._seen and (self._at < 0 or not _same(self._next(event.revision), event)):
            self._broken("unique", f"{event.key!r} at {event.revision} came before")
        self._seen.add(name)
        if first_of_answer and event.revision == self._last and not self._open_fragment:
            self._broken("atomic", f"revision {event.revision} is split over two answers")
        if event.revision <= self._progress:
            self._broken("bookmarkable", f"{event.key!r} at {event.revision} after progress {self._progress}")
        self._compare(event, history)
        self._last = max(self._last, event.revision)

    def _compare(self, event: WatchedEvent, history: EventHistory) -> None:
        """The event beside the one that should come next."""
        begun = self._last > 0
        if self._at < 0:
            self._at = history.place(event.revision)
        expected = self._next(event.revision)
        if expected is None:
            self._broken("reliable", f"{event} did not happen, or was not to come here")
            return
        if not _same(expected, event):
            what = "reliable" if begun else "resumable"
            self._broken(what, f"{event.key!r} at {event.revision} came before {expected.key!r} at {expected.revision}")
            while expected is not None and not _same(expected, event):
                self._at += 1
                expected = self._next(event.revision)
            if expected is None:
                return
        self._at += 1
        if event.value != expected.value:
            self._broken("reliable", f"{event.key!r} at {event.revision} has another value than was stored")
        if event.is_create != expected.is_create:
            self._broken("is-create", f"{event.key!r} at {event.revision}: create is {event.is_create}")
        if not self.request.prev_kv:
            if event.previous is not None:
                self._broken("prev-kv", f"{event.key!r} at {event.revision} shows what was there; nobody asked")
        elif event.previous != expected.previous and (event.previous is not None or event.revision > self._compacted):
            self._broken("prev-kv", f"{event.key!r} at {event.revision} does not show what was there before")

    def _next(self, revision: int) -> WatchedEvent | None:
        """The next event that matches, up to `revision`; `_at` moves to it."""
        events = self._history.events
        while self._at < len(events) and events[self._at].revision <= revision:
            event = events[self._at]
            if event.revision >= self.request.start_revision and self.request.matches(event):
                return event
            self._at += 1
        return None

    def close(self, last_revision: int) -> None:
        """The watch is at its end and was to be told everything up to `last_revision`."""
        if self._open_fragment:
            self._broken("atomic", "the last fragment never came")
        if self.cancelled or self._at < 0:
            return
        missed = self._next(last_revision)
        if missed is not None:
            self._broken("complete", f"{missed.key!r} at {missed.revision} never came")


def _same(one: WatchedEvent | None, other: WatchedEvent) -> bool:
    """Whether two events are of the same change, whatever else they say."""
    return one is not None and (one.revision, one.key, one.deleted) == (other.revision, other.key, other.deleted)


def check_watch(
    request: WatchRequest, answers: Iterable[WatchAnswer], history: EventHistory, *, last_revision: int = 0
) -> list[WatchViolation]:
    """All that is wrong with one watch, of which all answers are known. With `last_revision` also what is missing."""
    checker = WatchChecker(request, history)
    for answer in answers:
        checker.answer(answer)
    if last_revision:
        checker.close(last_revision)
    return checker.violations
