"""Programs that embed a member, as real processes: the examples, `kill -9`, restarts, pauses."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.programs import PATIENCE_S, Program

from oarlock.cli.local_cluster import free_ports

ROOT = Path(__file__).resolve().parents[2]


def until(what: Callable[[], bool], programs: list[Program]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "\n".join(f"{each.name}: {each.lines[-10:]}" for each in programs)
        time.sleep(0.02)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Callable[[str], list[Program]]]:
    made: list[Program] = []

    def make(example: str) -> list[Program]:
        text = (ROOT / "examples" / example).read_text()
        for old, new in zip(sorted(set(re.findall(r":(7\d\d\d)\"", text))), free_ports(3), strict=True):
            text = text.replace(f":{old}", f":{new}")
        file = tmp_path / example
        file.write_text(text)
        made.extend(Program([sys.executable, str(file), name], name, tmp_path) for name in ("n1", "n2", "n3"))
        for each in made:
            each.start()
        return made

    yield make
    for each in made:
        each.kill()


def counts(program: Program) -> list[int]:
    return [int(line.split()[0]) for line in program.lines if re.match(r"\d+ (leader|by n\d)", line)]


@pytest.mark.timeout(400)
def test_three_copies_of_one_file_count_on_when_one_is_killed(copies: Callable[[str], list[Program]]) -> None:
    """examples/counter.py"""
    programs = copies("counter.py")
    until(lambda: all(len(counts(each)) >= 5 for each in programs), programs)
    leader = next(each for each in programs if each.lines[-1].endswith("leader"))
    others = [each for each in programs if each is not leader]
    leader.signal(signal.SIGKILL)
    leader.wait()
    before = {each.name: len(counts(each)) for each in others}
    until(lambda: all(len(counts(each)) >= before[each.name] + 5 for each in others), programs)
    seen = len(leader.lines)
    leader.start()
    until(lambda: len(counts(leader)) > 0 and len(leader.lines) > seen + 5, programs)
    for each in programs:
        each.signal(signal.SIGINT)
        assert each.wait() == 0
    numbers = [number for each in programs for number in counts(each)]
    assert len(set(numbers)) == len(numbers), "each number was given once"
    for each in programs:
        assert counts(each) == sorted(counts(each))
    missing = set(range(1, max(numbers) + 1)) - set(numbers)
    assert len(missing) <= 4, f"{missing}: only a command under way at a kill or a stop may have had no answer"


@pytest.mark.timeout(400)
def test_a_paused_writer_is_refused(copies: Callable[[str], list[Program]]) -> None:
    """examples/one_writer.py"""
    programs = copies("one_writer.py")
    until(lambda: any("wrote with" in line for each in programs for line in each.lines), programs)
    paused = max(programs, key=lambda each: sum("wrote with" in line for line in each.lines))
    others = [each for each in programs if each is not paused]
    paused.signal(signal.SIGSTOP)
    before = {each.name: len(each.lines) for each in others}
    until(lambda: any("wrote with" in line for each in others for line in each.lines[before[each.name] :]), programs)
    seen = len(paused.lines)
    paused.signal(signal.SIGCONT)
    until(lambda: any("wrote with" in line for line in paused.lines[seen + 1 :]), programs)
    for each in programs:
        each.signal(signal.SIGINT)
        assert each.wait() == 0
    with sqlite3.connect(paused.cwd / "out.db") as connection:
        rows = connection.execute("SELECT token, text FROM lines ORDER BY rowid").fetchall()
    tokens = [token for token, _ in rows]
    assert tokens == sorted(tokens), "no write with an older token follows one with a newer"
    writers = {token: text.split()[0] for token, text in rows}
    assert all(writers[token] == text.split()[0] for token, text in rows), "a token has one writer"
    assert len({text.split()[0] for _, text in rows}) >= 2


def test_the_example_for_threads_runs() -> None:
    """examples/from_threads.py"""
    command = [sys.executable, str(ROOT / "examples" / "from_threads.py")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S, env=environ)
    assert done.stdout.strip() == "[('ada', 10), ('bob', 5)]"


def test_the_tutorial_s_program_is_the_example() -> None:
    """docs/tutorial/replicate-an-object.md: what is run above is what the page shows, but for its frame."""
    page = (ROOT / "docs" / "tutorial" / "replicate-an-object.md").read_text()
    shown = page.split("```python\n", 1)[1].split("```", 1)[0].splitlines()
    example = (ROOT / "examples" / "counter.py").read_text().splitlines()
    body = [line for line in shown if line.strip() and not line.strip().startswith("asyncio.run")]
    assert len(body) > 20
    assert [line for line in body if line not in example] == []


def test_the_readmes_ten_lines_of_python_run(tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    port = free_ports(1)[0]
    alone = re.sub(r"PEERS = .*", f'PEERS = {{"n1": "127.0.0.1:{port}"}}', program)
    assert alone != program and len([line for line in program.splitlines() if line.strip()]) <= 10
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for visits in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", alone], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert (done.stdout.strip(), done.returncode) == (visits, 0), done.stderr


def test_the_program_for_threads_of_the_page_runs(tmp_path: Path) -> None:
    """docs/how-to/use-from-threads.md"""
    page = (ROOT / "docs" / "how-to" / "use-from-threads.md").read_text()
    program = page.split("```python\n", 1)[1].split("```", 1)[0]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


def test_the_class_of_the_page_on_versions_is_sound() -> None:
    """docs/how-to/upgrade-your-code.md"""
    page = (ROOT / "docs" / "how-to" / "upgrade-your-code.md").read_text()
    program = page.split("```python\n", 1)[1].split("```", 1)[0]
    check = "\nfrom oarlock.machines.objects.machine import Spec\nprint(sorted(Spec(Counter()).entries))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program + check], env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "['add', 'add_and_count', 'reset']", done.stderr
