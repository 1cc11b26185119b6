"""The parts of the simulated world, each alone: choices, clocks, the reference model, the store, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from oarlock.cli.sim import sim
from oarlock.errors import ConfigurationError
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.kv.machine import KvMachine
from oarlock.node.replica.sessions import in_session, open_session
from oarlock.sim.world.choices import Choices
from oarlock.sim.world.disks import CheckpointedStore, WorldDisk
from oarlock.sim.world.model import Model, plain_result
from oarlock.sim.world.outcome import Replay
from oarlock.sim.world.process import Clock
from oarlock.sim.world.swarm import CLASSES, draw_swarm


def test_choices_are_repeated_by_the_seed_and_changed_by_edits() -> None:
    first, second = Choices(5), Choices(5, {"a": {1: 0}})
    drawn = [first.draw("a", 1000) for _ in range(4)]
    edited = [second.draw("a", 1000) for _ in range(4)]
    assert drawn[1] != 0
    assert edited == [drawn[0], 0, *drawn[2:]]
    assert first.recorded() == {"a": drawn}
    assert [Choices(6).draw("a", 1000) for _ in range(1)] != drawn[:1]


def test_streams_do_not_disturb_each_other() -> None:
    alone = Choices(9)
    mixed = Choices(9)
    mixed.draw("other", 10)
    assert [alone.draw("a", 100) for _ in range(5)] == [mixed.draw("a", 100) for _ in range(5)]


def test_the_value_zero_is_the_quiet_one() -> None:
    quiet = Choices(1, {"c": dict.fromkeys(range(10), 0)}).stream("c")
    assert not any(quiet.chance(999_999) for _ in range(10))


def test_a_class_that_is_off_is_not_in_the_swarm() -> None:
    for seed in range(50):
        swarm = draw_swarm(Choices(seed), frozenset(CLASSES))
        assert not swarm.classes
        assert not swarm.interval
        assert swarm.loss == swarm.duplicate == swarm.ghost == swarm.crash_effect == 0


def test_a_clock_never_goes_back_and_says_when() -> None:
    clock = Clock()
    seen = [clock.read(0)]
    clock.set_rate(10, 1_500_000)
    seen.append(clock.read(1000))
    clock.freeze(1000, 500)
    seen.append(clock.read(1400))
    clock.set_rate(1600, 400_000)
    seen.append(clock.read(5000))
    assert seen == sorted(seen)
    assert seen[1] == seen[2]
    local = clock.read(5000) + 77
    when = clock.when(local)
    assert clock.read(when) >= local > clock.read(when - 3)


def test_the_model_agrees_with_the_machine_on_every_kind_of_command() -> None:
    absent, other = kv.Compare(0, 0, b"a", 0), kv.Compare(3, 0, b"a", b"x")
    written: list[list[kv.Command]] = [
        [kv.Put(b"a", b"1"), kv.Put(b"b", b"2", prev_kv=True), kv.Put(b"a", b"3", prev_kv=True)],
        [kv.Range(b"a", b"\0", limit=1), kv.Range(b"a", revision=2), kv.Range(b"a", revision=99)],
        [kv.DeleteRange(b"a", b"z", prev_kv=True), kv.Range(b"", b"\0", count_only=True)],
        [kv.Txn([absent], [kv.Put(b"a", b"4"), kv.Range(b"a"), kv.DeleteRange(b"a"), kv.Range(b"a")])],
        [kv.Txn([other], [], [kv.Txn([], [kv.Put(b"c", b"5", prev_kv=True)])])],
        [kv.Compact(3), kv.Compact(3), kv.Compact(99), kv.Range(b"a", revision=2)],
        [kv.Txn([], [kv.Range(b"a", revision=1)]), kv.Range(b"b", b"d", revision=4)],
    ]
    batches = [[kv.encode(command) for command in commands] for commands in written] + [[b"\xc1"]]
    machine, model = KvMachine.in_memory(), Model()
    for index, batch in enumerate(batches, 1):
        results = machine.apply(Context(index, 1, 0), batch)
        assert [plain_result(result) for result in results] == model.apply(batch)
    assert model.revision == machine.revision
    assert plain_result(machine.range(kv.Range(b"", b"\0"))) == model.read(kv.Range(b"", b"\0"), len(batches))


def test_the_model_executes_a_session_command_once() -> None:
    model = Model()
    ((_, session),) = model.apply([open_session(7)])
    command = in_session(session, 1, 1, kv.encode(kv.Put(b"k", b"v")))
    assert model.apply([command, command]) == [("put", 2, None), ("put", 2, None)]
    assert model.revision == 2
    assert model.apply([in_session(session, 2, 2, kv.encode(kv.Put(b"k", b"w"))), command])[1] == (
        "rejected", "sequence_forgotten"
    )  # fmt: skip
    assert model.apply([in_session(99, 1, 1, kv.encode(kv.Put(b"k", b"v")))]) == [("rejected", "session_expired")]


def test_the_durable_store_shows_its_last_completed_checkpoint() -> None:
    disk = WorldDisk()
    machine = KvMachine(CheckpointedStore(disk, "m", TABLES))
    machine.apply(Context(1, 1, 0), [kv.encode(kv.Put(b"k", b"1"))])
    checkpoint = machine.checkpoint()
    machine.apply(Context(2, 1, 0), [kv.encode(kv.Put(b"k", b"2"))])
    assert machine.capture().index == 0
    checkpoint.write()
    machine.checkpointed(checkpoint)
    assert machine.capture().index == 1
    disk.kill()
    again = KvMachine(CheckpointedStore(disk, "m", TABLES))
    assert again.applied_index == 1
    assert again.revision == 2


def test_a_paused_member_goes_on_when_the_world_heals() -> None:
    """It stayed still until its pause would have ended, long after the heal: the others elected somebody else, and a
    healthy group seemed to be restless."""
    from oarlock.sim.world.world import World

    world = World(208, off=frozenset(CLASSES))
    world._advance(lambda: world.leader() is not None, 100 * world.swarm.timeout, 10_000)
    leader = world.leader()
    assert leader is not None
    term = leader.core.current_term
    leader.paused_until = world.now + 50 * world.swarm.timeout
    world._advance(lambda: False, world.now + 2 * world.swarm.heartbeat, 10_000)
    world._heal()
    world._advance(lambda: False, world.now + 5 * world.swarm.timeout, 100_000)
    assert world.leader() is leader
    assert leader.core.current_term == term


def test_a_member_that_was_called_sick_is_well_when_the_world_heals() -> None:
    """Its disk was repaired and it was not told: it gave leadership away, long after, in a healthy group."""
    from oarlock.raft.events import DiskHealth
    from oarlock.sim.world.world import World

    world = World(208, off=frozenset(CLASSES))
    world._advance(lambda: world.leader() is not None, 100 * world.swarm.timeout, 10_000)
    for process in world.up():
        process.called_sick = True
        process.give(DiskHealth(True))
    world._advance(lambda: False, world.now + 2 * world.swarm.timeout, 10_000)
    assert all(process.core.status().disk_sick for process in world.up())
    world._heal()
    world._advance(lambda: False, world.now + world.swarm.timeout, 100_000)
    assert not any(process.core.status().disk_sick for process in world.up())


# ---------------------------------------------------------------- the command


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(sim, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_digest_is_the_last_line_and_the_same_each_time() -> None:
    first, second = (
        run("--seed", "207", "--events", "200", "--digest"),
        run("--seed", "207", "--events", "200", "--digest"),
    )
    assert first == second
    assert first[0] == 0
    digest = first[1].splitlines()[-1]
    assert len(digest) == 32
    assert int(digest, 16)


def test_json_says_what_was_reached() -> None:
    code, output = run("--seeds", "3", "--start", "207", "--events", "100", "--jobs", "1", "--json")
    report = json.loads(output)
    assert code == 0
    assert report["seeds"] == 3
    assert report["statistics"]["turns"] > 100
    assert "failure" not in report


def test_all_cores_and_one_give_the_same() -> None:
    reports = [
        json.loads(run("--seeds", "6", "--events", "100", "--jobs", jobs, "--json")[1])["statistics"]
        for jobs in ("1", "2")
    ]
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not a replay file"),
        (b'{"seed": "x"}', "not a replay file"),
        (b'{"seed": 1, "format": 9}', "has format 9"),
        (b'{"seed": 1, "off": ["los"]}', "turns off los"),
    ],
)
def test_a_replay_file_that_is_none_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Replay.load(content, "x.json")


def test_a_replay_of_another_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(Replay(seed=207, events=50, version="0.0.0").dump())
    code, output = run("--replay", str(path))
    assert code == 0
    assert "may not replay" in output


def test_options_that_exclude_each_other() -> None:
    assert run("--trace")[0] == 2
    assert run("--seed", "1", "--dask", "tcp://127.0.0.1:1")[0] == 2
    assert run("--seed", "1", "--off", "los")[0] == 2
