"""What a leader knows of a follower: the window, and that `next` stays above `match` whatever arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from oarlock.raft.progress import Inflights, Progress, ProgressState


class WindowMachine(RuleBasedStateMachine):
    """The window against a list of what is under way."""

    @rule(messages=st.integers(1, 4), size=st.integers(1, 50))
    def fresh(self, messages: int, size: int) -> None:
        self.__init__()  # type: ignore[misc]
        self.window = Inflights(messages, size)

    def __init__(self) -> None:
        super().__init__()
        self.window = Inflights(3, 40)
        self.model: list[tuple[int, int]] = []
        self.last = 0

    @rule(step=st.integers(1, 3), size=st.integers(0, 30))
    def add(self, step: int, size: int) -> None:
        if self.window.full:
            with pytest.raises(AssertionError, match="full window"):
                self.window.add(self.last + step, size)
            return
        self.last += step
        self.window.add(self.last, size)
        self.model.append((self.last, size))

    @rule(back=st.integers(-2, 6))
    def free(self, back: int) -> None:
        index = self.last - back
        self.window.free_to(index)
        self.model = [pair for pair in self.model if pair[0] > index]

    @rule()
    def clear(self) -> None:
        """Reliability BZ-40: the byte count must not survive."""
        self.window.clear()
        self.model = []

    @invariant()
    def same(self) -> None:
        assert len(self.window) == len(self.model)
        assert self.window.bytes == sum(size for _, size in self.model)
        full = len(self.model) >= self.window.messages_max or self.window.bytes >= self.window.bytes_max
        assert self.window.full == full


WindowMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWindowMachine = WindowMachine.TestCase

LAST = 20
events = st.lists(
    st.tuples(
        st.sampled_from(["match", "refusal", "probe", "replicate", "snapshot", "send"]),
        st.integers(0, LAST),
        st.integers(0, LAST),
    ),
    max_size=40,
)


@given(events)
def test_next_stays_above_match_and_match_never_falls(moves: list[tuple[str, int, int]]) -> None:
    """Reliability BZ-29: answers that arrive late or in another order never move the view of a follower back."""
    progress = Progress(LAST + 1, 3, 100, 0)
    for what, a, b in moves:
        before = progress.match_index
        if what == "match":
            assert progress.record_match(a) == (a > before)
        elif what == "refusal":
            progress.record_refusal(a, b)
        elif what == "probe":
            progress.become_probe()
        elif what == "replicate":
            progress.become_replicate()
        elif what == "snapshot":
            progress.become_snapshot()
        elif progress.state is ProgressState.REPLICATE and progress.may_send and progress.next_index <= LAST:
            progress.inflights.add(progress.next_index, 10)
            progress.next_index += 1
        assert progress.match_index >= before
        assert progress.next_index > progress.match_index
        if progress.state is not ProgressState.REPLICATE:
            assert len(progress.inflights) == 0


def test_a_probe_goes_out_once() -> None:
    progress = Progress(5, 3, 100, 0)
    assert progress.may_send
    progress.probe_sent = True
    assert not progress.may_send
    assert progress.record_refusal(4, 2)
    assert (progress.next_index, progress.may_send) == (3, True)


def test_a_stale_refusal_is_no_news() -> None:
    progress = Progress(5, 3, 100, 0)
    progress.record_match(4)
    progress.become_replicate()
    assert not progress.record_refusal(3, 1)
    assert (progress.match_index, progress.next_index, progress.state) == (4, 5, ProgressState.REPLICATE)
    probing = Progress(5, 3, 100, 0)
    assert not probing.record_refusal(9, 2)


def test_a_refusal_always_makes_progress() -> None:
    """Each refusal that counts lowers `next`, so probing ends after at most as many exchanges as there are entries."""
    progress = Progress(10, 3, 100, 0)
    for expected in range(9, 0, -1):
        before = progress.next_index
        assert progress.record_refusal(progress.next_index - 1, LAST)
        assert progress.next_index == max(1, before - 1) == expected


def test_no_message_leaves_while_a_snapshot_is_on_its_way() -> None:
    progress = Progress(5, 3, 100, 0)
    progress.become_snapshot()
    assert not progress.may_send
