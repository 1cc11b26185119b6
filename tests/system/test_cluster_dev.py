"""`oarlock dev`: a cluster for development that says where it is, goes on where it was, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from oarlock.cli.dev import FILE, Row, Show, dev
from oarlock.cli.local_cluster import wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "oarlock", "dev"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}

PROGRAM = """
import asyncio, os, sys
from oarlock import Node, RaftError, ReplicatedCounter

async def main(name, peers, data_dir):
    assert os.environ["OARLOCK_NODE_NAME"] == name
    peers = dict(each.split("=") for each in peers.split(","))
    async with Node(ReplicatedCounter(), name, peers=peers, data_dir=data_dir) as node:
        while True:
            try:
                print("counted", await node.machine.add(1))
            except RaftError as error:
                print(error)
            await asyncio.sleep(0.1)

asyncio.run(main(*sys.argv[1:]))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(
    *arguments: str,
) -> Iterator[tuple[subprocess.Popen[str], Callable[[Callable[[dict[str, Any]], bool]], dict[str, Any]]]]:
    """The command with `--json`, and a function that reads its events until one fits."""
    process = subprocess.Popen(
        [*COMMAND, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    lines = process.stdout

    def until(fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            if fits(event):
                return event
        assert process.stderr is not None
        raise AssertionError(f"it ended with {process.wait()}: {process.stderr.read()}")

    try:
        yield process, until
    finally:
        process.kill()
        process.wait()
        lines.close()
        assert process.stderr is not None
        process.stderr.close()


def is_ready(event: dict[str, Any]) -> bool:
    return event["event"] == "ready"


def has_leader(event: dict[str, Any]) -> bool:
    return event["event"] == "status" and [row["role"] for row in event["members"]].count("leader") == 1


def all_serve(event: dict[str, Any]) -> bool:
    return event["event"] == "status" and {row["role"] for row in event["members"]} == {"leader", "follower"}


def ask(endpoint: str, path: str, **fields: str) -> dict[str, Any]:
    body = json.dumps({name: base64.b64encode(text.encode()).decode() for name, text in fields.items()})
    request = urllib.request.Request(f"{endpoint}{path}", body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_servers_are_shown_and_go_on_in_their_directory(tmp_path: Path) -> None:
    with running("--data-dir", str(tmp_path / "dev")) as (process, until):
        ready = until(is_ready)
        assert ready["directory"] == str(tmp_path / "dev") and len(ready["endpoints"]) == 3
        assert ready["environment"]["ETCDCTL_ENDPOINTS"] == ",".join(ready["endpoints"])
        status = until(all_serve)
        ask(ready["endpoints"][0], "/v3/kv/put", key="a", value="b")
        pids = [row["pid"] for row in status["members"]]
        leader = next(row for row in status["members"] if row["role"] == "leader")
        os.kill(leader["pid"], signal.SIGKILL)

        def shows_the_dead(event: dict[str, Any]) -> bool:
            rows = event["members"] if event["event"] == "status" else []
            return any((row["name"], row["role"], row["exit_code"]) == (leader["name"], "down", -9) for row in rows)

        until(lambda event: shows_the_dead(event) and has_leader(event))  # at each change: both may be one
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(map(alive, pids))
    with running("--data-dir", str(tmp_path / "dev")) as (process, until):
        again = until(is_ready)
        assert again["endpoints"] == ready["endpoints"]
        found = ask(again["endpoints"][1], "/v3/kv/range", key="a")
        assert base64.b64decode(found["kvs"][0]["value"]) == b"b"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.timeout(300)
def test_what_is_thrown_away_and_nothing_outlives_a_kill() -> None:
    with running("--members", "1", "--flag=--storage=memory") as (process, until):
        ready = until(is_ready)
        assert Path(ready["directory"]).is_dir()
        [row] = until(has_leader)["members"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not alive(row["pid"]) and not Path(ready["directory"]).exists()
    with running("--members", "1") as (process, until):
        directory = Path(until(is_ready)["directory"])
        [row] = until(has_leader)["members"]
        process.kill()
        process.wait()
        wait_until(lambda: not alive(row["pid"]), 30, "the member ends with the command that started it")
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        directory.rmdir()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_copies_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [sys.executable, str(tmp_path / "program.py"), "{name}", "{peers}", "{data_dir}"]
    with running("--data-dir", str(tmp_path / "dev"), "--", *program) as (process, until):
        ready = until(is_ready)
        assert ready["environment"]["OARLOCK_NODE_PEERS"].startswith(f"n1={ready['endpoints'][0]},n2=")
        status = until(lambda event: event["event"] == "status")
        for name in ("n1", "n2", "n3"):
            until(lambda event, name=name: event.get("member") == name and event["line"].startswith("counted "))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(alive(row["pid"]) for row in status["members"])


def test_a_program_that_ends_ends_the_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(dev, ["--members", "2", "--", sys.executable, "-c", "print('said'); raise SystemExit(3)"],
                              standalone_mode=False)  # fmt: skip
    assert done.return_value == 1
    assert "n1 | said" in done.stdout and "n2 | said" in done.stdout
    assert "down (exit code 3)" in done.stdout and "no member runs any more" in done.stderr


def test_what_cannot_be(tmp_path: Path) -> None:
    def message(*arguments: str) -> str:
        done = CliRunner().invoke(dev, ["--data-dir", str(tmp_path), *arguments], standalone_mode=False)
        return f"{done.exception} {done.stderr}"

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / FILE).write_text(json.dumps({"kind": "oarlock", "ports": [port, port]}))
        assert f"port {port} of the members in {tmp_path} is taken" in message("--members", "1")
    assert "was made for 1 members of oarlock: give --members=1" in message("--members", "3")
    assert "--flag is for servers" in message("--flag=--x", "--", "true")
    (tmp_path / FILE).write_text("[")
    assert "cannot be read" in message()
    (tmp_path / FILE).unlink()
    assert "there is no such program" in message("--members", "1", "--", "no-such-program-here")


def test_what_is_shown_changes_only_with_news(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(as_json=False)
    row = Row("n1", "http://x", 7, "leader", term=1, index=5)
    for index in (5, 6, 7):
        show.rows([Row(row.name, row.address, row.pid, row.role, term=1, index=index)])
    show.rows([Row("n1", "http://x", 0, "down", -9)])
    assert capsys.readouterr().out == "n1 http://x leader term 1 pid 7\nn1 http://x down (exit code -9)\n"
