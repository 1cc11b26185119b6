"""`oarlock wal verify|dump`: what it prints, what it exits with, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from oarlock.cli.wal import wal
from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.records import Identity
from oarlock.storage.wal import WriteAheadLog

SEGMENT = "0000000000000001.wal"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "wal"
    log = WriteAheadLog.create(RealDisk(), str(place), Identity(0xC1, 0xA, 0xFEED), segment_bytes=4096)
    mark = SnapshotMeta(0, 0, Configuration.of_voters(0xA))
    log.append(0, HardState(1, 0xA, 0), [Entry(1, 1, 1, b""), Entry(1, 2, 0, b"secret" * 50)], snapshot=mark)
    log.sync()
    log.append(0, HardState(2, 0, 1), [Entry(2, 2, 0, b"x")])
    log.sync()
    log.close()
    return place


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(wal, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def snapshot_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def damage(path: Path, offset: int) -> None:
    content = bytearray((path / SEGMENT).read_bytes())
    content[offset] ^= 1
    (path / SEGMENT).write_bytes(content)


def test_verify_a_clean_log(path: Path) -> None:
    before = snapshot_of(path)
    code, out, _ = run("verify", str(path))
    assert code == 0 and "clean" in out
    assert "cluster c1 member a incarnation feed: 1 segments, 3 batches, known to be synced up to batch 3" in out
    assert "group 0: t2 vote 0 commit 1 snapshot 0.0 log 1.1 to 2.2" in out
    assert snapshot_of(path) == before


def test_verify_as_json(path: Path) -> None:
    code, out, _ = run("verify", "--json", str(path))
    report = json.loads(out)
    assert code == 0 and report["verdict"] == "clean"
    assert report["groups"]["0"] == {
        "term": 2,
        "vote": "0",
        "commit": 1,
        "snapshot": "0.0",
        "first": "1.1",
        "last": "2.2",
    }


def test_dump(path: Path) -> None:
    code, out, _ = run("dump", str(path))
    lines = out.splitlines()
    assert code == 0 and len(lines) == 9 and "secret" not in out
    assert lines[0].startswith(f"{SEGMENT}@64 ") and lines[0].endswith("batch 1  sync 1 records")
    assert lines[1].endswith("group 0  snapshot 0.0 0 B, 1 members")
    assert lines[2].endswith("group 0  hard-state t1 vote a commit 0")
    assert lines[3].endswith("group 0  entry 1.1 noop 0 B") and lines[4].endswith("group 0  entry 1.2 normal 300 B")
    assert lines[5].endswith("sync 5 records")
    assert lines[7].endswith("batch 3  group 0  entry 2.2 normal 1 B cut") and lines[8].endswith("sync 3 records")


def test_dump_as_json(path: Path) -> None:
    code, out, _ = run("dump", "--json", str(path))
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["type"] for record in records[:3]] == ["sync", "snapshot", "hard-state"]
    (cut,) = [record for record in records if record.get("cut")]
    assert (cut["entry"], cut["bytes"], cut["kind"], cut["batch"]) == ("2.2", 1, "normal", 3)


def test_rot_exits_with_2_and_says_where_and_what_to_do(path: Path) -> None:
    damage(path, 600)
    before = snapshot_of(path)
    for arguments in (("verify",), ("verify", "--json"), ("dump",)):
        code, out, err = run(*arguments, str(path))
        assert code == 2
        assert f"{path}/{SEGMENT}, offset" in out + err and "Do not delete anything" in out + err
    report = json.loads(run("verify", "--json", str(path))[1])
    assert (report["verdict"], report["file"]) == ("rotten", f"{path}/{SEGMENT}") and report["offset"] >= 512
    assert snapshot_of(path) == before


def test_a_torn_tail_exits_with_1_and_the_next_start_repairs_it(path: Path) -> None:
    damage(path, 3000)
    before = snapshot_of(path)
    code, out, _ = run("verify", str(path))
    assert code == 1 and "torn tail" in out and "never synced" in out
    assert run("dump", str(path))[0] == 1
    assert snapshot_of(path) == before
    log, recovered = WriteAheadLog.open(RealDisk(), str(path), segment_bytes=4096)
    log.close()
    assert recovered.repaired
    assert run("verify", str(path))[0] == 0


def test_what_cannot_be_looked_at_exits_with_3(path: Path, tmp_path: Path) -> None:
    code, out, _ = run("verify", str(tmp_path / "nowhere"))
    assert code == 3 and "there is no log" in out
    log, _ = WriteAheadLog.open(RealDisk(), str(path), segment_bytes=4096)
    code, out, _ = run("verify", str(path))
    assert code == 3 and "a server is using" in out
    log.close()
    assert run("verify", str(path))[0] == 0
    assert run("verify")[0] == 2, "click's own usage error"


def test_neither_lock_nor_write_permission_is_needed(path: Path) -> None:
    (path / "lock").unlink()
    for file in path.iterdir():
        file.chmod(0o400)
    path.chmod(0o500)
    try:
        assert run("verify", str(path))[0] == 0
        assert not (path / "lock").exists()
    finally:
        path.chmod(0o700)
