"""`oarlock.testing` finds what is wrong with people's machines, and says it so that they can mend it."""

from __future__ import annotations

import datetime
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import time as imported_by_name
from typing import Any

import pytest

from oarlock.errors import ConfigurationError
from oarlock.machines.base import Context
from oarlock.machines.volatile import VolatileMachine
from oarlock.sim.world.outcome import Replay
from oarlock.testing import Choose, Report, Workload, run, simulated
from oarlock.testing.runner import classes_of

SEEDS = 8


class Shelf(VolatileMachine):
    """`put x 3` and `take x`; everything is dumped."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[str, int] = {}
        self.taken = 0

    def command(self, context: Context, command: bytes) -> object:
        match command.decode().split():
            case ["put", name, count]:
                self.pieces[name] = self.pieces.get(name, 0) + int(count)
                return self.pieces[name]
            case ["take", name]:
                if not self.pieces.get(name):
                    return "none"
                self.pieces[name] -= 1
                self.taken += 1
                return self.taken
        return "what?"

    def dump(self) -> Iterable[bytes]:
        yield json.dumps([sorted(self.pieces.items()), self.taken]).encode()

    def load(self, pieces: Sequence[bytes]) -> None:
        found, self.taken = json.loads(pieces[0])
        self.pieces = dict(found)


class ShelfModel:
    """The same, thought of differently: a list of everything that was put."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self.count = 0

    def command(self, context: Context, command: bytes) -> object:
        words = command.decode().split()
        if words[0] == "put":
            self.things += [words[1]] * int(words[2])
            return self.things.count(words[1])
        if words[1] not in self.things:
            return "none"
        self.things.remove(words[1])
        self.count += 1
        return self.count

    def read(self, name: str) -> int:
        return self.things.count(name)


class Base(Workload):
    machine = Shelf

    def command(self, choose: Choose) -> bytes:
        name = choose.of("a", "b")
        return choose.of(f"take {name}", f"put {name} {choose.between(1, 3)}").encode()

    def query(self, choose: Choose) -> str:
        return choose.of("a", "b")

    def read(self, machine: Any, query: str) -> object:
        return machine.pieces.get(query, 0)

    def check(self, machine: Any) -> None:
        assert all(count >= 0 for count in machine.pieces.values()), "a shelf with less than nothing"


def found(workload: type[Workload], **options: Any) -> Report:
    report = run(workload, **{"seeds": SEEDS, "events": 300, "shrink": False, **options})
    assert report.failed, report.text()
    return report


class Modelled(Base):
    model = ShelfModel


def test_a_right_machine_passes() -> None:
    report = run(Modelled, seeds=SEEDS, events=300)
    assert not report.failed, report.text()
    assert report.seeds == SEEDS
    assert report.statistics["committed"] > 40
    assert report.statistics["reads"] > 10
    assert report.statistics["snapshots"] > 10
    assert "do not depend on PYTHONHASHSEED" in report.text()


class Forgets(Shelf):
    def dump(self) -> Iterable[bytes]:
        yield json.dumps([sorted(self.pieces.items()), 0]).encode()


def test_an_update_that_a_snapshot_loses() -> None:
    class Lossy(Base):
        machine = Forgets

    report = found(Lossy, seeds=40)
    assert report.invariant in ("LIN", "HASH")
    assert "`taken` is" in report.text()
    assert "after dump and load" in report.text()


class Drops(Shelf):
    def command(self, context: Context, command: bytes) -> object:
        if command == b"put b 3" and self.taken:
            return self.pieces.get("b", 0) + 3  # says so, and does nothing
        return super().command(context, command)


def test_an_update_that_the_machine_loses() -> None:
    class Wrong(Base):
        machine = Drops
        model = ShelfModel

    report = found(Wrong)
    assert report.invariant == "MODEL"
    assert "the model says" in report.what


def _clock() -> object:
    return time.time()


def _clock_by_name() -> object:
    return imported_by_name()


def _date() -> object:
    return str(datetime.datetime.now())


def _dice() -> object:
    return random.randint(1, 6)


def _bytes() -> object:
    return os.urandom(4)


def _hash() -> object:
    return hash("text")


def _identity() -> object:
    return id(object())


def _file() -> object:
    with open(os.devnull) as file:
        return file.read()


@pytest.mark.parametrize(
    ("impure", "call"),
    [
        (_clock, "time.time()"),
        (_clock_by_name, "time.time()"),
        (_date, "datetime.now()"),
        (_dice, "random.getrandbits()"),
        (_bytes, "os.urandom()"),
        (_hash, "hash()"),
        (_identity, "id()"),
        (_file, "open()"),
    ],
)
def test_what_is_not_the_same_everywhere_is_named(impure: Any, call: str) -> None:
    class Impure(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            if command.startswith(b"put b"):
                impure()
            return super().command(context, command)

    class Touches(Base):
        machine = Impure

    report = found(Touches)
    assert report.invariant == "IMPURE"
    assert f"apply called {call} at {__file__}:" in report.what
    assert f"in {impure.__name__}" in report.what
    assert "the command was b'put b" in report.what


class Key:
    """A value that may be in a dict: its `__hash__` calls `hash`, and that is all right."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash((self.name, 1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.name == other.name


def test_what_is_all_right_is_not_complained_about() -> None:
    class Pure(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            held = {Key("a"): 1, Key("b"): 2}
            seeded = random.Random(context.index).randint(1, 6)  # from what all members know
            return [held[Key("b")], seeded, context.time_ns > 0, super().command(context, command)]

    class Fine(Base):
        machine = Pure

    report = run(Fine, seeds=4, events=200)
    assert not report.failed, report.text()
    assert "defined inside a function" in report.hash_order


def test_an_exception_is_reported_with_its_command_and_line() -> None:
    class Raising(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            if command == b"put b 3":
                raise KeyError("three")
            return super().command(context, command)

    class Bad(Base):
        machine = Raising

    report = found(Bad)
    assert report.invariant == "RAISES"
    assert "apply raised KeyError: 'three'" in report.what
    assert "in command: raise KeyError(\"three\"); the command was b'put b 3'" in report.what


def test_an_endless_loop_is_ended_and_shown() -> None:
    class Looping(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            while command == b"put b 3":
                pass
            return super().command(context, command)

    class Bad(Base):
        machine = Looping

    report = found(Bad)
    assert report.invariant == "LOOPS"
    assert 'in command: while command == b"put b 3":' in report.what or "in command: pass" in report.what
    assert "the command was b'put b 3'" in report.what


def test_what_check_forbids() -> None:
    class Strict(Base):
        def check(self, machine: Any) -> None:
            assert machine.pieces.get("b", 0) < 6, "too many of b"

    report = found(Strict)
    assert report.invariant == "CHECK"
    assert "too many of b" in report.what


def test_a_load_that_makes_another_state() -> None:
    class Doubling(Shelf):
        def load(self, pieces: Sequence[bytes]) -> None:
            super().load(pieces)
            self.taken *= 2

    class Bad(Base):
        machine = Doubling

    report = found(Bad)
    assert report.invariant in ("RESTORE", "HASH", "LIN")
    assert "after dump and load" in report.text()


class Plain:
    """A machine that is no `VolatileMachine`: a list of everything that came."""

    durable = False
    applied_index = 0

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.annex: dict[bytes, bytes] = {}

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        self.items += commands
        self.applied_index = context.index
        first = len(self.items) - len(commands) + 1
        return list(range(first, first + len(commands)))

    def capture(self) -> Any:
        return PlainCapture(self.applied_index, json.dumps([
            [item.decode() for item in self.items], [[k.hex(), v.hex()] for k, v in self.annex_items()]
        ]).encode())  # fmt: skip

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        items, annex = json.loads(b"".join(chunks))
        self.items = [item.encode() for item in items]
        self.annex = {bytes.fromhex(key): bytes.fromhex(value) for key, value in annex}
        self.applied_index = index

    def annex_get(self, key: bytes) -> bytes | None:
        return self.annex.get(key)

    def annex_put(self, key: bytes, value: bytes) -> None:
        self.annex[key] = value

    def annex_delete(self, key: bytes) -> None:
        self.annex.pop(key, None)

    def annex_items(self) -> list[tuple[bytes, bytes]]:
        return sorted(self.annex.items())

    def close(self) -> None:
        self.items = []


class PlainCapture:
    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self._data = data

    def chunks(self) -> Iterable[bytes]:
        yield self._data

    def close(self) -> None: ...


class Forgetful(Plain):
    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        super().restore(index, chunks)
        self.items = self.items[1:]


class PlainWorkload(Workload):
    machine = Plain

    def command(self, choose: Choose) -> bytes:
        return b"%d.%d" % (choose.client, choose.unique())

    def read(self, machine: Any, query: object) -> object:
        return len(machine.items)


def test_a_plain_machine() -> None:
    report = run(PlainWorkload, seeds=4, events=250)
    assert not report.failed, report.text()

    class Bad(PlainWorkload):
        machine = Forgetful

    broken = found(Bad)
    assert broken.invariant in ("RESTORE", "HASH", "LIN", "READ")
    assert "`items` is" in broken.text()


def test_a_read_that_writes() -> None:
    class Writes(Base):
        def read(self, machine: Any, query: str) -> object:
            machine.taken += 1
            return 0

    report = found(Writes)
    assert "read changed the machine" in report.what


class Ordered(Shelf):
    """Answers in the order of a set of texts."""

    def command(self, context: Context, command: bytes) -> object:
        super().command(context, command)
        return list({"ann", "bob", "cem", "dee"})


class HashOrder(Base):
    machine = Ordered


def test_the_order_of_a_set_is_found() -> None:
    report = found(HashOrder)
    assert report.invariant == "ORDER"
    assert "with PYTHONHASHSEED 1 and 2" in report.what


def test_the_identity_of_an_object_in_a_set_is_found() -> None:
    class Thing:
        pass

    class Sets(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            things = [Thing() for _ in range(8)]
            numbers = {thing: number for number, thing in enumerate(things)}
            return [numbers[thing] for thing in set(things)]

    class Bad(Base):
        machine = Sets

    assert found(Bad).invariant in ("LIN", "HASH")


def test_a_failure_is_made_short_kept_and_run_first(tmp_path: Path) -> None:
    class Raising(Shelf):
        def command(self, context: Context, command: bytes) -> object:
            if command == b"put b 3":
                raise ValueError
            return super().command(context, command)

    class Bad(Base):
        machine = Raising

    report = run(Bad, seeds=SEEDS, events=300, regressions=tmp_path / "kept")
    assert report.shrunk is not None
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == f"Bad.seed-{report.seed}.json"
    assert f"--oarlock-replay={report.file}" in report.command
    small = Replay.load(file.read_bytes(), "it")
    assert small.invariant == "RAISES"
    assert small.off
    again = run(Bad, seeds=1, start=99_999, regressions=tmp_path / "kept")
    assert again.invariant == "RAISES"
    assert again.seeds == 1


def test_a_replay_of_another_version_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Modelled.seed-1.json").write_bytes(Replay(seed=1, events=50, version="0.0.1").dump())
    assert not run(Modelled, seeds=1, events=50, regressions=tmp_path).failed
    assert "was written by version 0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("faults", "says"), [(["netwrk"], "'netwrk' is none; there are the groups network"), ("network", "a list of names")]
)
def test_faults_that_there_are_not(faults: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        simulated(faults=faults)


def test_faults_by_group_and_by_name() -> None:
    assert classes_of(["clocks", "loss"]) == {"drift", "wall", "freeze", "loss"}
    assert classes_of([]) == frozenset()


def test_workloads_that_cannot_run() -> None:
    with pytest.raises(ConfigurationError, match="must say in `machine`"):
        simulated()(type("Empty", (Workload,), {}))

    class Text(Base):
        def command(self, choose: Choose) -> bytes:
            return "text"  # type: ignore[return-value]

    with pytest.raises(ConfigurationError, match="commands are bytes"):
        run(Text, seeds=1)

    class Nothing(Base):
        machine = dict

    with pytest.raises(ConfigurationError, match="not durable"):
        run(Nothing, seeds=1)


def test_choices_are_plain_at_zero() -> None:
    from oarlock.testing.application import _Zeros

    choose = Choose(_Zeros(), 1)
    assert (choose.of("plain", "odd"), choose.between(3, 9), choose.chance(99)) == ("plain", 3, False)
    assert (choose.unique(), choose.unique()) == (1, 2)
    with pytest.raises(ValueError, match="nothing to choose"):
        choose.below(0)


def test_pytest_runs_a_seed_and_names_the_replay(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_testing_machines import Base, Shelf\n"
        "from oarlock.testing import simulated\n"
        "class Raising(Shelf):\n"
        "    def command(self, context, command):\n"
        "        raise RuntimeError('no')\n"
        "@simulated(seeds=3, events=100, faults=['network'])\n"
        "class TestIt(Base):\n"
        "    machine = Raising\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "oarlock.pytest_plugin"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def pytest_says(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout

    first = pytest_says("--oarlock-seed=2")
    assert "seed 2 of TestIt failed: RAISES: apply raised RuntimeError: no" in first
    replay = "replay: python -m pytest test_it.py::TestIt --oarlock-replay=regressions/TestIt.seed-2.json"
    assert replay in first
    assert "seed 2 of TestIt failed: RAISES" in pytest_says("--oarlock-replay=regressions/TestIt.seed-2.json")
