"""APScheduler, the published package, in three processes of which one is at work: as members, and beside a server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.clusters import cluster_of, wait_until
from tests.support.environments import ROOT
from tests.support.programs import Program

from oarlock.cli.local_cluster import free_ports

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 90.0
NAMES = ("n1", "n2", "n3")


@pytest.fixture(params=["embedded", "server"])
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Program]]:
    """examples/one_scheduler.py, three times."""
    text = (ROOT / "examples" / "one_scheduler.py").read_text()
    for old, new in zip(sorted(set(re.findall(r":(7\d\d\d)\"", text))), free_ports(3), strict=True):
        text = text.replace(f":{old}", f":{new}")
    file = tmp_path / "one_scheduler.py"
    file.write_text(text)
    with ExitStack() as stack:
        arguments = []
        if request.param == "server":
            arguments.append(",".join(stack.enter_context(cluster_of(3)).endpoints))
        made = [Program([sys.executable, str(file), name, *arguments], name, tmp_path) for name in NAMES]
        for each in made:
            stack.callback(each.kill)
            each.start()
        try:
            yield made
        except BaseException:
            for each in made:
                print(f"{each.name}: {each.lines[-10:]}", file=sys.stderr)
            raise


def runs(directory: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(directory / "runs.db") as connection:
        return connection.execute("SELECT token, name FROM runs ORDER BY rowid").fetchall()


def leading(copies: list[Program], *, other_than: Program | None = None, runs: int = 3) -> Program:
    """The copy that says that it ran some times from now on."""
    since = {each.name: len(each.lines) for each in copies}
    found: list[Program] = []

    def look() -> bool:
        found[:] = [
            each for each in copies
            if each is not other_than and sum(" ran with " in line for line in each.lines[since[each.name] :]) >= runs
        ]  # fmt: skip
        return bool(found)

    wait_until(look, PATIENCE_S, "a scheduler at work")
    return found[0]


def test_one_scheduler_works_and_another_takes_over(copies: list[Program], tmp_path: Path) -> None:
    """Killed, then paused for longer than its leadership lasts."""
    first = leading(copies)
    first.kill()
    second = leading(copies, other_than=first)
    assert second is not first
    first.start()
    second.signal(signal.SIGSTOP)
    third = leading(copies, other_than=second)
    seen = len(second.lines)
    second.signal(signal.SIGCONT)
    wait_until(lambda: second.said("leads no more", since=seen), PATIENCE_S, "the one that was paused knows")
    leading(copies)
    for each in copies:
        each.signal(signal.SIGINT)
        assert each.wait() == 0

    written = runs(tmp_path)
    tokens = [token for token, _ in written]
    assert tokens == sorted(tokens), "no run with an older token follows one with a newer"
    names = dict(written)
    assert all(names[token] == name for token, name in written), "a token is one process's"
    assert {first.name, second.name, third.name} <= {name for _, name in written}


def test_the_page_shows_the_example() -> None:
    """docs/how-to/run-one-scheduler.md: every line of its programs is run above, but for the one about Celery."""
    page = (ROOT / "docs" / "how-to" / "run-one-scheduler.md").read_text()
    example = {line.strip() for line in (ROOT / "examples" / "one_scheduler.py").read_text().splitlines()}
    *programs, celery = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = [line.strip() for program in programs for line in program.splitlines()]
    assert len(shown) > 15
    assert [line for line in shown if line and line.replace("ttl=3", "ttl=TTL_S") not in example] == []
    assert "create_subprocess_exec" in celery


def test_the_page_s_guard_ends_its_process() -> None:
    """The page's `beat`, with a process that would run for long."""
    page = (ROOT / "docs" / "how-to" / "run-one-scheduler.md").read_text()
    program = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[-1]
    names: dict[str, Any] = {"asyncio": asyncio}
    exec(program.replace('"celery", "-A", "shop", "beat"', '"sleep", "1000"'), names)

    async def lead_and_lose() -> None:
        leading = asyncio.create_task(names["beat"](1))
        children = psutil.Process().children
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [each for each in children() if each.name() == "sleep"]):
                await asyncio.sleep(0.01)
            leading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leading
        assert not found[0].is_running()

    asyncio.run(lead_and_lose())
