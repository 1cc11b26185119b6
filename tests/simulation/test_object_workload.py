"""A program's own object in the simulated world: what is right passes, what is not is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from oarlock import StateMachine, command, query
from oarlock.embed.locks import Lock
from oarlock.testing import (
    Choose,
    HolderEvent,
    ObjectWorkload,
    calling,
    lease_granted,
    lease_renewed,
    lease_revoked,
    run,
    time_passes,
)
from oarlock.testing.objects import Call


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    @command
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @command
    def when(self) -> float:
        return self.context.time

    @command
    def chance(self) -> float:
        return random.random()

    @command
    def any_of(self, word: str) -> str:
        return next(iter({word + "x", word + "y", word + "z"}))

    @query
    def get(self) -> int:
        return self.value


class Forgetful(Counter):
    """Its snapshot leaves something out."""

    def snapshot(self) -> bytes:
        return b"%d" % (self.value // 10)

    def restore(self, data: bytes) -> None:
        self.value = 10 * int(data)


class Right(ObjectWorkload):
    make = Counter

    def call(self, choose: Choose) -> Any:
        return calling(Counter.add, choose.below(5)) if choose.below(4) else calling(Counter.when)

    def ask(self, choose: Choose) -> Any:
        return calling(Counter.get)

    def holds(self, target: Any) -> None:
        assert target.value >= 0


class Chance(Right):
    def call(self, choose: Choose) -> Any:
        return calling(Counter.chance)


class Order(Right):
    def call(self, choose: Choose) -> Any:
        return calling(Counter.any_of, f"word {choose.below(100)}")


class Loses(Right):
    make = Forgetful


class Bounded(Right):
    def holds(self, target: Any) -> None:
        assert target.value < 20, target.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "invariant"),
    [(Right, ""), (Chance, "IMPURE"), (Order, "ORDER"), (Bounded, "CHECK"), (Loses, "RESTORE HASH LIN READ")],
)
def test_what_is_wrong_with_an_object_is_named(
    workload: type[ObjectWorkload], invariant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = run(workload, seeds=6, events=150)
    assert report.invariant in (invariant.split() or [""]), report.what
    if invariant == "IMPURE":
        assert "random.random" in report.what and "test_object_workload.py" in report.what


def test_a_workload_gives_calls_of_commands() -> None:
    class Wrong(Right):
        def call(self, choose: Choose) -> Any:
            return calling(Counter.get)

    with pytest.raises(TypeError, match="get, which is no @command"):
        Wrong().command(None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="what clients call"):
        ObjectWorkload().call(None)  # type: ignore[arg-type]


class Leased(ObjectWorkload):
    """Clients that take a lock by leases, while leases are renewed, revoked and run out."""

    make = Lock

    def call(self, choose: Choose) -> Call | HolderEvent:
        name = choose.of("a", "b", "c")
        return choose.of(
            lease_granted(name, choose.of(1, 2)),
            calling(Lock.enter, name),
            calling(Lock.enter_nowait, name),
            time_passes(choose.between(0, 10) / 10),
            lease_renewed(name, 1),
            lease_revoked(name),
        )

    def ask(self, choose: Choose) -> Call:
        return calling(Lock.owner)

    def holds(self, target: Lock) -> None:
        tokens = [claim.token for claim in target.claims]
        assert tokens == sorted(set(tokens)), "whoever comes later has the greater token"
        assert all(target.holder_lives(claim.holder) for claim in target.claims), "the dead hold something"


class Lasting(Lock):
    """A lock that its holder's end does not free."""

    def holder_ended(self, holder: str) -> None:
        pass


class LeasedForEver(Leased):
    make = Lasting


@pytest.mark.slow
def test_leases_are_part_of_the_simulated_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(Leased, seeds=10, events=200).invariant == ""
    report = run(LeasedForEver, seeds=10, events=200)
    assert report.invariant == "CHECK" and "the dead hold something" in report.what
