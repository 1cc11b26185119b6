"""Mixed versions: what members of other releases send goes through bytes, and a codec that cannot take it is found."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from oarlock.raft.messages import AppendEntries, AppendEntriesReply, ChangeMembers, Message, RequestVote
from oarlock.raft.types import Entry
from oarlock.sim.invariants import Violation
from oarlock.sim.world import run_seed
from oarlock.sim.world.choices import Choices
from oarlock.sim.world.swarm import draw_swarm
from oarlock.sim.world.versions import AFTER, BEFORE, PRESENT, carried
from oarlock.wire import frames

Patch = pytest.MonkeyPatch
APPEND = AppendEntries(term=3, prev_log_index=4, prev_log_term=2, entries=(Entry(3, 5, 0, b"x"),), commit_index=4)


def mixed_seeds(count: int, start: int = 41_000) -> list[int]:
    seeds = range(start, start + 40 * count)
    return [seed for seed in seeds if "versions" in draw_swarm(Choices(seed), frozenset()).classes][:count]


def of(release: int, node: int = 1) -> Any:
    return SimpleNamespace(id=node, release=release)


@pytest.mark.parametrize("sender", [BEFORE, PRESENT, AFTER])
@pytest.mark.parametrize("receiver", [BEFORE, PRESENT, AFTER])
@pytest.mark.parametrize("message", [APPEND, RequestVote(term=2, last_log_index=1, last_log_term=1)])
def test_every_release_understands_the_others(sender: int, receiver: int, message: Message) -> None:
    assert carried(of(sender), of(receiver, 2), message) == message


def test_a_type_that_came_later_reaches_nobody_of_the_release_before() -> None:
    change = ChangeMembers(term=1, request=1, payload=b"p")
    assert carried(of(PRESENT), of(BEFORE, 2), change) is None
    assert carried(of(BEFORE), of(PRESENT, 2), change) is None
    assert carried(of(AFTER), of(PRESENT, 2), change) == change


def test_a_tenth_of_all_messages_goes_through_bytes() -> None:
    totals: Counter[str] = Counter()
    plain = [s for s in range(42_000, 42_100) if "versions" not in draw_swarm(Choices(s), frozenset()).classes][:3]
    for seed in plain:
        totals.update(run_seed(seed, events=400).statistics)
    assert 10 * totals["encoded"] >= totals["messages"] > 300


def test_mixed_seeds_hold_and_mix() -> None:
    totals: Counter[str] = Counter()
    for seed in mixed_seeds(5):
        outcome = run_seed(seed)
        assert not outcome.failed, f"{outcome.trace}\n{outcome.what}\n{outcome.command()}"
        totals.update(outcome.statistics)
    assert totals["fault.versions"] > 20
    assert 4 * totals["encoded"] > totals["messages"]
    assert totals["committed"] > 30


def strict_about_length(patch: Patch) -> None:
    """A decoder that takes no field that it does not know."""
    real = frames.decode_body

    def decode(number: int, body: Any) -> Message:
        if number == 3 and len(msgspec.msgpack.decode(body)) > 5:
            raise ValueError("an array of another length")
        return real(number, body)

    patch.setattr(frames, "decode_body", decode)


def hint_is_lost(patch: Patch) -> None:
    """An encoder that forgets one field."""
    patch.setitem(frames._ENCODE, AppendEntriesReply, (4, lambda m: (m.term, m.success, m.index, 0, 0)))


def unknown_types_are_errors(patch: Patch) -> None:
    """A parser that does not skip what a newer release sends."""
    real = frames.FrameParser.__init__
    patch.setattr(frames.FrameParser, "__init__", lambda self, peer="?", **more: real(self, peer))


@pytest.mark.interpreted
@pytest.mark.parametrize("plant", [strict_about_length, hint_is_lost, unknown_types_are_errors])
def test_a_codec_that_is_not_ready_for_other_releases_is_found(plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in mixed_seeds(20):
        outcome = run_seed(seed)
        if outcome.failed:
            assert outcome.invariant == "WIRE", outcome.what
            return
    raise AssertionError("nothing was found")


def test_what_is_decoded_otherwise_is_a_violation(monkeypatch: Patch) -> None:
    refusal = AppendEntriesReply(term=2, success=False, index=3, hint_index=2, hint_term=1)
    assert carried(of(PRESENT), of(PRESENT, 2), refusal) == refusal
    hint_is_lost(monkeypatch)
    with pytest.raises(Violation, match="WIRE"):
        carried(of(PRESENT), of(PRESENT, 2), refusal)
