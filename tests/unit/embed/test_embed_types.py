"""What type checkers see: calls are typed as their methods were declared, on both faces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
from typing import reveal_type
import oarlock
import oarlock.sync


class Plain(oarlock.StateMachine):
    def __init__(self) -> None:
        self.queue: oarlock.ReplicatedQueue[str] = oarlock.ReplicatedQueue()
        self.lock = oarlock.Lock()

    @oarlock.command
    def add(self, n: int, *, twice: bool = False) -> int:
        return n

    @oarlock.query
    def get(self) -> str:
        return ""


class Blocking(oarlock.sync.StateMachine):
    def __init__(self) -> None:
        self.queue: oarlock.sync.ReplicatedQueue[str] = oarlock.sync.ReplicatedQueue()
        self.lock = oarlock.sync.Lock()

    @oarlock.sync.command
    def add(self, n: int, *, twice: bool = False) -> int:
        return n


async def plain(node: oarlock.Node[Plain]) -> None:
    reveal_type(await node.machine.add(1, twice=True))
    reveal_type(await node.machine.get.options(consistency=oarlock.bounded(1))())
    reveal_type(await node.machine.queue.get())
    reveal_type(await node.machine.lock.acquire())
    await node.machine.add("x")


def blocking(node: oarlock.sync.Node[Blocking]) -> None:
    reveal_type(node.machine.add(1))
    reveal_type(node.machine.queue.get())
    reveal_type(node.machine.lock.acquire())
    reveal_type(node.machine.lock.acquire().release())
    node.machine.add(1, thrice=True)
"""


@pytest.mark.slow
def test_calls_have_the_types_of_their_methods(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(tmp_path / "program.py")],
        cwd=ROOT, env={"MYPYPATH": "src", "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    revealed = [line.split('"')[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert revealed == ["int", "str", "str", "oarlock.embed.hold.Held", "int", "str", "oarlock.sync.Held", "None"]
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 2, done.stdout
    assert 'incompatible type "str"; expected "int"' in errors[0]
    assert 'Unexpected keyword argument "thrice"' in errors[1]


def test_the_types_for_threads_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "build_sync_stubs.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python tools/build_sync_stubs.py"


def test_both_faces_have_the_same_names() -> None:
    import oarlock
    import oarlock.sync

    assert set(oarlock.sync.__all__) - set(oarlock.__all__) == {"Leading"}, "what on_leader gives a thread"
    assert set(oarlock.__all__) <= set(oarlock.sync.__all__)
    stub = (ROOT / "src" / "oarlock" / "sync.pyi").read_text()
    for name in oarlock.sync.__all__:
        assert f"class {name}" in stub or f"def {name}(" in stub or f" as {name}\n" in stub, name
