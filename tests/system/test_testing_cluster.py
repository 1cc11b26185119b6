"""`oarlock.testing.Cluster`: real members for one test, and nothing of them afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from oarlock.errors import RaftError
from oarlock.machines.base import Context
from oarlock.machines.volatile import VolatileMachine
from oarlock.pytest_plugin import cluster  # noqa: F401 - the fixture, also where the plug-in is not loaded
from oarlock.testing import Cluster, ClusterFailed


class Counter(VolatileMachine):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def command(self, context: Context, command: bytes) -> object:
        self.total += int(command)
        return self.total

    def dump(self) -> Iterable[bytes]:
        yield b"%d" % self.total

    def load(self, pieces: Sequence[bytes]) -> None:
        self.total = int(pieces[0])


def sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def test_a_group_survives_its_leader_and_leaves_nothing(tmp_path: Path) -> None:
    before, threads = sockets(), set(threading.enumerate())
    with Cluster(Counter, 3, directory=tmp_path) as group:
        assert group.running == ("m1", "m2", "m3")
        assert [group.propose(b"2"), group.propose(b"3", at="m2")] == [2, 5]
        leader = group.leader()
        group.stop(leader)
        assert group.propose(b"4") == 9
        group.start(leader)
        assert group.wait_level() > 0
        assert group.look(leader, lambda machine: machine.total) == 9
        assert {group.read(lambda machine: machine.total, at=name) for name in group.names} == {9}
        with pytest.raises(ClusterFailed, match="m1 is running"):
            group.start("m1")
        with pytest.raises(ClusterFailed, match="there is no member 'm9'"):
            group.stop("m9")
    assert sockets() == before
    assert set(threading.enumerate()) == threads
    with pytest.raises(ClusterFailed, match="no member is running"):
        group.propose(b"1")


def test_everything_stops_when_a_test_fails(tmp_path: Path) -> None:
    before, threads = sockets(), set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        with Cluster(Counter, 1, directory=tmp_path):
            raise ZeroDivisionError
    assert sockets() == before
    assert set(threading.enumerate()) == threads


def test_without_a_majority_it_says_so(tmp_path: Path) -> None:
    with Cluster(Counter, 3, directory=tmp_path) as group:
        group.stop("m1")
        group.stop("m2")
        with pytest.raises((ClusterFailed, RaftError)):
            group.propose(b"1", timeout=1.0)


class Raising(Counter):
    def command(self, context: Context, command: bytes) -> object:
        if command == b"13":
            raise ArithmeticError("thirteen")
        return super().command(context, command)


def test_a_machine_that_raises_is_named(tmp_path: Path) -> None:
    with Cluster(Raising, 1, directory=tmp_path) as group:
        assert group.propose(b"1") == 1
        with pytest.raises(ClusterFailed, match="member m1 stopped: ArithmeticError: thirteen"):
            group.propose(b"13")


def test_the_fixture(cluster: Callable[..., Cluster]) -> None:  # noqa: F811
    one, other = cluster(Counter, members=1), cluster(Counter, members=1)
    assert one.propose(b"7") == 7
    assert other.propose(b"1") == 1


def test_a_size_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 members"):
        Cluster(Counter, 0, directory=tmp_path)
