"""Compaction by the clock: which revision, and when."""

from __future__ import annotations

from typing import Any

import pytest

from oarlock.api.etcd.compactor import AutoCompaction, Compactor
from oarlock.config import load, validate
from oarlock.errors import ConfigurationError, LeadershipLost
from oarlock.machines.kv.commands import CompactResult, decode, encode
from oarlock.machines.kv.commands_alarm import AutoCompact


class Server:
    """Stands for context, backend and machine; `asked` are the revisions that were compacted."""

    def __init__(self) -> None:
        self.backend = self.kv = self
        self.encode = encode
        self.member_id = self.leader = 1
        self.revision, self.compact_revision = 1, -1
        self.asked: list[int] = []
        self.error: Exception | None = None

    def status(self) -> Server:
        return self

    def propose(self, data: bytes, done: Any) -> None:
        command = decode(data)
        assert isinstance(command, AutoCompact)
        if self.error is not None:
            done(self.error)
            return
        self.asked.append(command.revision)
        self.compact_revision = command.revision
        done(CompactResult(self.revision))


def run(
    rule: AutoCompaction, seconds: int, *, server: Server | None = None, per_second: int = 1
) -> list[tuple[int, int]]:
    """A revision (or several) a second; returns when what was compacted."""
    server = server or Server()
    compactor = Compactor(server, rule)  # type: ignore[arg-type]
    seen = []
    for now in range(seconds):
        before = len(server.asked)
        compactor.tick(1000.0 + now)
        seen += [(now, revision) for revision in server.asked[before:]]
        server.revision += per_second
    return seen


def test_periodic_keeps_the_time_that_was_asked_for() -> None:
    seen = run(AutoCompaction("periodic", retention_s=600), 3000)
    assert [now for now, _ in seen] == [600, 1200, 1800, 2400]
    for now, revision in seen:  # a revision a second: what is kept is the last ten minutes, to a sample
        assert now - 600 - 60 <= revision - 1 <= now - 600


def test_periodic_of_many_hours_compacts_every_hour() -> None:
    seen = run(AutoCompaction("periodic", retention_s=3 * 3600), 6 * 3600)
    assert [now // 3600 for now, _ in seen] == [3, 4, 5]
    assert all(now - 3 * 3600 - 360 <= revision <= now - 3 * 3600 + 1 for now, revision in seen)


def test_revision_keeps_so_many() -> None:
    assert run(AutoCompaction("revision", revisions=1000), 1000, per_second=10) == [
        (300, 2001),
        (600, 5001),
        (900, 8001),
    ]


def test_only_the_leader_compacts_and_a_failure_is_tried_again() -> None:
    server = Server()
    server.leader = 2
    rule = AutoCompaction("revision", revisions=10)
    assert run(rule, 700, server=server) == []
    server.leader = 1
    server.error = LeadershipLost("x")
    assert run(rule, 400, server=server) == []
    server.error = None
    assert len(run(rule, 400, server=server)) == 1


def test_off_is_off_and_an_idle_store_is_left_alone() -> None:
    assert run(AutoCompaction(), 8000) == run(AutoCompaction("revision"), 8000) == []
    assert len(run(AutoCompaction("periodic", retention_s=600), 8000, per_second=0)) == 1


@pytest.mark.parametrize(
    ("mode", "retention", "right"),
    [("periodic", "1h30m", True), ("periodic", "5", True), ("periodic", "soon", False), ("revision", "1000", True),
     ("revision", "1h", False), ("revision", "-1", False)],
)  # fmt: skip
def test_the_options(mode: str, retention: str, right: bool) -> None:
    flags = {"auto-compaction-mode": mode, "auto-compaction-retention": retention}
    if right:
        validate(load(flags, {}))
    else:
        with pytest.raises(ConfigurationError, match="auto-compaction-retention"):
            validate(load(flags, {}))
