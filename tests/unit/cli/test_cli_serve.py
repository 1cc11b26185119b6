"""`oarlock serve` as a process: the ready line, exit codes, and both event loops and HTTP/2 engines."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from oarlock.cli.exits import Exit
from oarlock.cli.local_cluster import free_ports

SOURCE = Path(__file__).resolve().parents[3] / "src"
SECONDS = 60

pytestmark = pytest.mark.system


def command(directory: Path, *flags: str, client: int = 0, peer: int = 0) -> list[str]:
    peer = peer or free_ports(1)[0]
    client_url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    urls = [f"--listen-client-urls={client_url}", f"--advertise-client-urls={client_url}"]
    urls += [f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}"]
    return [sys.executable, "-m", "oarlock", "serve", f"--data-dir={directory}", *urls, *flags]


def environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("OARLOCK_", "ETCD_"))}
    return {**kept, "PYTHONPATH": str(SOURCE)}


@contextmanager
def serving(arguments: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A server that has printed its ready line, and that line's fields."""
    with log.open("w") as errors:
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("oarlock ready "), line + log.read_text()
        yield process, dict(field.split("=", 1) for field in line.split()[2:])
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def refused(arguments: list[str]) -> tuple[int, str]:
    ran = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert ran.stdout == "", "a server that cannot run must not say that it is ready"
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "flags",
    [
        (),
        pytest.param(
            ("--uvloop",),
            marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
        ),
        ("--http2=h2", "--storage=memory", "-log-format=json"),
    ],
)
def test_a_member_serves_and_stops_cleanly(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with serving(command(tmp_path / "n1", *flags), tmp_path / "log") as (process, fields):
        assert int(fields["pid"]) == process.pid
        address = urlsplit(fields["client"])
        assert address.port, "port 0 stands for a free one, and the ready line says which"
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=SECONDS)
        connection.request("GET", "/version")
        assert b"etcdserver" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == Exit.CLEAN, (tmp_path / "log").read_text()


def test_what_is_taken_is_refused_with_its_exit_code(tmp_path: Path) -> None:
    [peer] = free_ports(1)
    with serving(command(tmp_path / "n1", peer=peer), tmp_path / "log") as (process, fields):
        code, says = refused(command(tmp_path / "n1"))
        assert (code, "in use by process" in says) == (Exit.STORAGE, True), says
        code, says = refused(command(tmp_path / "n2", client=urlsplit(fields["client"]).port or 0))
        assert (code, "address already in use" in says) == (Exit.ADDRESS, True), says
        code, says = refused(command(tmp_path / "n3", peer=peer))
        assert (code, "Address already in use" in says) == (Exit.ADDRESS, True), says
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == Exit.CLEAN


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, says = refused(command(tmp_path / "file" / "n1"))
    assert (code, str(tmp_path / "file") in says) == (Exit.STORAGE, True), says
