"""`oarlock demo`: it finds what is wrong, says what is missing, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.clusters import cluster_of, program_under_test
from tests.support.etcd_wire import EtcdClient

from oarlock.cli import demo as demo_module
from oarlock.cli.demo import Etcdctl, MemberReport, batches_of, compare, demo, load_airports, transaction_text
from oarlock.cli.local_cluster import ProgramMissing, find_program, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "oarlock", "demo", "--no-stay", f"--server={program_under_test().name}"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_demo_loses_nothing_and_says_so_as_json() -> None:
    done = subprocess.run(
        [*COMMAND, "--json"], capture_output=True, text=True, env=ENVIRONMENT, timeout=380, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["ok"] is True
    assert summary["keys"] == 28298
    assert [member["keys"] for member in summary["members"]] == [28298] * 3
    assert summary["attempts"] >= summary["batches"] == 222
    assert 0 < summary["failover_seconds"] < 200
    assert "with SIGKILL" in done.stderr


def children_of(parent: int) -> set[int]:
    """The processes whose parent is that one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(after_name[1]) == parent:
                found.add(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def members_of(parent: int) -> set[int]:
    """Its children that are members. (Right after the cluster is ready there may be clients too.)"""
    members = set()
    for pid in children_of(parent):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"--initial-cluster-token" in Path(f"/proc/{pid}/cmdline").read_bytes():
                members.add(pid)
    return members


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_demo_that_is_stopped_leaves_no_member_behind(way: signal.Signals) -> None:
    process = subprocess.Popen(
        # A shell that runs tests in the background makes them ignore Ctrl-C, and that is inherited.
        ["/usr/bin/env", "--default-signal=INT", *COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        directory = ""
        for line in process.stdout:
            if " members of " in line:
                directory = line.rsplit(" in ", 1)[1].strip()
            if "ready:" in line:
                break
        started = members_of(process.pid)
        assert len(started) == 3
        process.send_signal(way)
        process.stdout.read()
        code = process.wait(120)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert code == (-signal.SIGKILL if way is signal.SIGKILL else 130)
    wait_until(lambda: not any(map(alive, started)), 120, "the members gone")
    if way is signal.SIGKILL:
        shutil.rmtree(directory)  # nobody was left to do it
    assert not Path(directory).exists()


def clients_of(endpoint: str) -> set[int]:
    """Processes other than members that were told of that endpoint."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = (entry / "cmdline").read_bytes()
                if endpoint.encode() in line and b"--endpoints=" in line:
                    found.add(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_clients_of_a_demo_end_with_it() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        directory = endpoint = ""
        for line in process.stdout:
            if " members of " in line:
                directory = line.rsplit(" in ", 1)[1].strip()
            if "ready:" in line:
                endpoint = line.rsplit("ready:", 1)[1].split(",")[0].strip()
                break
        wait_until(lambda: bool(clients_of(endpoint)), 60, "a client of the demo")
        for pid in members_of(process.pid):
            os.kill(pid, signal.SIGSTOP)  # so that a client waits for an answer that does not come
        wait_until(lambda: bool(clients_of(endpoint)), 60, "a client that waits")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    wait_until(lambda: not clients_of(endpoint), 30, "the clients gone")
    shutil.rmtree(directory, ignore_errors=True)  # nobody was left to do it


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Etcdctl, dict[str, str], object]]:
    """One member that holds a few hundred airports, loaded as the demonstration loads them."""
    data = dict(list(load_airports().items())[:300])
    with cluster_of(1) as cluster:
        client = Etcdctl(find_program("etcdctl"), cluster.endpoints)
        for batch in batches_of(data, 128):
            done = client.run("txn", stdin=transaction_text(batch), seconds=60)
            assert done.stdout.startswith("SUCCESS"), done.stderr
        yield client, data, cluster


def test_comparison_is_content_with_the_truth(loaded) -> None:
    client, data, cluster = loaded
    report = MemberReport("m1", "", "leader", 1, 1, 1, 1)
    assert compare(client, cluster.members[0], data, report) == []
    assert report.equal
    assert report.keys == len(data)


def test_batch_sent_again_changes_nothing(loaded) -> None:
    client, data, cluster = loaded
    with EtcdClient(cluster.endpoints[0]) as wire:
        before = wire.status().header.revision
        for batch in batches_of(data, 128):
            assert client.run("txn", stdin=transaction_text(batch), seconds=60).stdout.startswith("FAILURE")
        assert wire.status().header.revision == before


def test_comparison_finds_every_kind_of_difference(loaded) -> None:
    client, data, cluster = loaded
    lost, changed, doubled = list(data)[10:13]
    with EtcdClient(cluster.endpoints[0]) as wire:
        wire.delete(lost.encode())
        wire.delete(changed.encode())
        wire.put(changed.encode(), b"{}")
        wire.put(doubled.encode(), data[doubled].encode())
        wire.put(b"airports/nowhere", b"{}")
    report = MemberReport("m1", "", "leader", 1, 1, 1, 1)
    differences = compare(client, cluster.members[0], data, report)
    assert (report.missing, report.different, report.doubled, report.unexpected) == (1, 1, 1, 1)
    assert not report.equal
    assert f"m1: {lost} is missing" in differences
    assert f"m1: {doubled} was written 2 times" in differences


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ProgramMissing(f"{name} is not installed: pip install it")

    monkeypatch.setattr(demo_module, "find_program", missing)
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 2
    assert "error: etcdctl is not installed" in result.output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 2
    assert "pip install airportsdata" in result.output
