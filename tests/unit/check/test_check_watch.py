"""Each property of a watch, kept and broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oarlock.check.watch import EventHistory, WatchAnswer, WatchChecker, WatchedEvent, WatchRequest, check_watch

A2 = WatchedEvent(2, b"a", b"1", True, None)
B2 = WatchedEvent(2, b"b", b"1", True, None)
A3 = WatchedEvent(3, b"a", b"2", False, b"1")
B4 = WatchedEvent(4, b"b", None, False, b"1")
C5 = WatchedEvent(5, b"c", b"9", True, None)
A6 = WatchedEvent(6, b"a", None, False, b"2")
HISTORY = EventHistory([A2, B2, A3, B4, C5, A6])
REQUEST = WatchRequest(key=b"a", range_end=b"c", start_revision=2, prev_kv=True)


def answer(*events: WatchedEvent, revision: int = 0, fragment: bool = False) -> WatchAnswer:
    return WatchAnswer(revision=revision or events[-1].revision, events=events, fragment=fragment)


def progress(revision: int) -> WatchAnswer:
    return WatchAnswer(revision=revision, progress=True)


def broken(request: WatchRequest, *answers: WatchAnswer, last: int = 0) -> set[str]:
    return {violation.property for violation in check_watch(request, answers, HISTORY, last_revision=last)}


TRUE = (answer(A2, B2, A3), progress(3), answer(B4), progress(5), answer(A6))


def test_a_true_watch() -> None:
    assert broken(REQUEST, *TRUE, last=6) == set()
    assert broken(replace(REQUEST, fragment=True), answer(A2, fragment=True), answer(B2), *TRUE[1:1], last=2) == set()
    assert broken(WatchRequest(key=b"a", no_delete=True), answer(replace(A3, previous=None)), last=6) == set()
    assert broken(REQUEST, answer(A2, B2), WatchAnswer(revision=9, compact_revision=5, cancelled=True), last=9) == set()
    compacted = WatchRequest(key=b"a", start_revision=3, prev_kv=True)
    assert broken(compacted, WatchAnswer(revision=3, events=[A3]), last=3) == set()


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("filter", (answer(A2, B2, A3, B4, C5),)),
        ("ordered", (answer(A2, B2), answer(B4), answer(A3))),
        ("unique", (answer(A2, B2), answer(A3), answer(A3))),
        ("atomic", (answer(A2), answer(B2))),
        ("atomic", (answer(A2, fragment=True), answer(B2))),
        ("bookmarkable", (answer(A2, B2), progress(3), answer(A3))),
        ("bookmarkable", (answer(A2, B2), progress(3))),
        ("bookmarkable", (answer(A2, B2, A3), progress(2))),
        ("resumable", (answer(B2, A3),)),
        ("is-create", (answer(replace(A2, is_create=False), B2),)),
        ("reliable", (answer(A2, B2), answer(B4))),
        ("reliable", (answer(A2, replace(B2, value=b"other")),)),
        ("prev-kv", (answer(A2, B2, replace(A3, previous=b"other")),)),
        ("prev-kv", (answer(A2, B2, replace(A3, previous=None)),)),
        ("complete", (answer(A2, B2), answer(A3), answer(B4))),
    ],
)
def test_each_property_is_found_broken(name: str, answers: tuple[WatchAnswer, ...]) -> None:
    assert name in broken(REQUEST, *answers, last=6 if name == "complete" else 0)


def test_a_filter_is_not_told_of_what_it_filters() -> None:
    assert "filter" in broken(replace(REQUEST, no_put=True), answer(A2, B2))
    assert "prev-kv" in broken(replace(REQUEST, prev_kv=False), answer(A2, B2, A3))
    assert "filter" in broken(replace(REQUEST, start_revision=3), answer(A2, B2))


def test_what_happens_later_may_be_before_the_start() -> None:
    """A watch may begin in the future."""
    history = EventHistory([A2])
    request = WatchRequest(key=b"a", start_revision=6)
    checker = WatchChecker(request, history)
    for event in (A3, A6):
        history.append(event)
    checker.answer(answer(replace(A6, previous=None)))
    checker.close(6)
    assert not checker.violations
