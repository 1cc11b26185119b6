"""Programs that tests start, read, signal and end: examples, mostly, as their users run them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.support.environments import ROOT

PATIENCE_S = 180


class Program:
    """One run of a command at a time, its output read as it comes. It ends with this process at the latest."""

    def __init__(self, command: Sequence[str], name: str, cwd: Path) -> None:
        self.name = name
        self.lines: list[str] = []
        before = shutil.which("setpriv")
        self.command = [*((before, "--pdeathsig", "KILL", "--") if before else ()), *command]
        self.cwd = cwd
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        stdout = self.process.stdout
        assert stdout is not None

        def read() -> None:
            with stdout:
                for line in stdout:
                    self.lines.append(line.rstrip())

        threading.Thread(target=read, daemon=True).start()

    def said(self, text: str, *, since: int = 0) -> bool:
        """Whether a line from number `since` on has that text in it."""
        return any(text in line for line in self.lines[since:])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in, and wait; nothing happens if it does not run."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
