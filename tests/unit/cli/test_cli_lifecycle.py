"""The life of the server process, with a member that is not real: signals, faults, bounds and exit codes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from oarlock.cli import lifecycle
from oarlock.cli.app import main
from oarlock.cli.exits import Exit
from oarlock.cli.lifecycle import HaltedError, exit_code, live
from oarlock.cli.systemd import notify
from oarlock.errors import ConfigurationError, Corrupt, DirectoryInUse, SyncFailed

SOURCE = Path(__file__).resolve().parents[3] / "src"


class Fake:
    """A member that halts and stops as told."""

    def __init__(self, *, halt: BaseException | None = None, stops: bool = True, signals: int = 1) -> None:
        self.halt, self.stops, self.signals = halt, stops, signals
        self.stopped = False

    def describe(self) -> str:
        return "name=fake"

    async def wait_halted(self) -> BaseException:
        if self.halt is not None:
            return self.halt
        for _ in range(self.signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        if not self.stops:
            await asyncio.get_running_loop().create_future()
        self.stopped = True


@pytest.fixture(autouse=True)
def _no_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle.gc, "freeze", lambda: None)  # the test process goes on
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


def run(fake: Fake, timeout_s: float = 30) -> int:
    async def start() -> Fake:
        return fake

    return asyncio.run(live(start, timeout_s))


def test_a_signal_stops_cleanly(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake()
    assert run(fake) == Exit.CLEAN
    assert fake.stopped
    assert capsys.readouterr().out == f"oarlock ready name=fake pid={os.getpid()}\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (SyncFailed("fdatasync failed", path="wal/1"), Exit.STORAGE),
        (HaltedError("this member was removed"), Exit.HALTED),
        (AssertionError("two leaders"), Exit.INTERNAL),
    ],
)
def test_a_fault_stops_with_its_code(reason: BaseException, code: Exit, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(halt=reason)
    assert run(fake) == code
    assert fake.stopped
    assert str(reason) in capsys.readouterr().err


def test_stopping_has_a_bound() -> None:
    assert run(Fake(stops=False), timeout_s=0.01) == Exit.UNCLEAN


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), Exit.CONFIGURATION),
        (Corrupt("x"), Exit.STORAGE),
        (DirectoryInUse("x"), Exit.STORAGE),
        (OSError(errno.EADDRINUSE, "in use"), Exit.ADDRESS),
        (OSError(errno.EACCES, "permission", "/data"), Exit.STORAGE),
        (OSError(errno.EACCES, "permission"), Exit.ADDRESS),  # a port below 1024
        (RuntimeError("x"), Exit.INTERNAL),
    ],
)
def test_exit_codes(error: BaseException, code: Exit) -> None:
    assert exit_code(error) is code


def test_what_cannot_start_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    async def start() -> Fake:
        raise DirectoryInUse("another process holds n1.oarlock")

    assert asyncio.run(live(start, 1)) == Exit.STORAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: could not start: another process holds n1.oarlock\n"


def test_a_signal_during_the_start_cancels_it() -> None:
    cancelled = []

    async def start() -> Fake:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert asyncio.run(live(start, 30)) == Exit.CLEAN
    assert cancelled


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = """if True:
        import asyncio, os, signal
        from oarlock.cli.lifecycle import live
        class Slow:
            def describe(self): return "name=slow"
            async def wait_halted(self):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.get_running_loop().create_future()
            async def stop(self):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.get_running_loop().create_future()
        async def start(): return Slow()
        asyncio.run(live(start, 60))
    """
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, timeout=200)
    assert ran.returncode == Exit.UNCLEAN, ran.stderr


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert run(Fake()) == Exit.CLEAN
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]
    assert notify("READY=1") is False  # nobody there any more: not an error


def test_the_server_refuses_to_run_without_its_assertions() -> None:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run(
        [sys.executable, "-O", "-m", "oarlock", "serve"], env=environ, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == Exit.CONFIGURATION
    assert "python -O" in ran.stderr


def test_serve_complains_before_it_imports_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--name", "n1", "--election-timeout", "100"]) == Exit.CONFIGURATION
    assert "at least 5 times heartbeat-interval" in capsys.readouterr().err
