"""The Python of the documentation runs: each block as it stands, with what the page takes for granted around it."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.clusters import LocalCluster, cluster_of
from tests.support.environments import ROOT, environment
from tests.support.single_backend import SingleBackend, make_machine

from oarlock import LeasedDict, Lock, Node, StateMachine, command
from oarlock.cli.local_cluster import free_ports
from oarlock.client import Client
from oarlock.fencing import Fenced

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 90.0
DOCS = ROOT / "docs"
NOTATION = {"explanation/architecture.md"}
"""Pages whose Python is not to be run: it names an idea."""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


async def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block in which `await` may stand anywhere; gives its names."""
    code = compile(block, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    made = eval(code, names)
    if inspect.isawaitable(made):
        await made
    return names


def program(text: str, cwd: Path, *, python: str = sys.executable, path: str = "") -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), path]))}
    done = subprocess.run(
        [python, "-c", text], cwd=cwd, env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone() -> Iterator[LocalCluster]:
    with cluster_of(1) as cluster:
        yield cluster


def test_every_page_with_python_is_run() -> None:
    tests = [*(ROOT / "tests" / "system").glob("*.py"), ROOT / "tests" / "test_docs.py"]
    text = "".join(test.read_text() for test in tests)
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        if blocks(name) and name not in NOTATION:
            assert name in text or f'"{page.name}"' in text, f"no test runs the Python of {name}"


def test_use_the_client(alone: LocalCluster, tmp_path: Path) -> None:
    """how-to/use-the-client.md"""
    whole, watching, holding, moving = blocks("how-to/use-the-client.md")
    endpoint = alone.endpoints[0]
    [printed] = [program(re.sub(r"127\.0\.0\.1:2\d+", endpoint, whole), tmp_path)]
    assert printed.splitlines() == ["hello 1", "True", "b'greeting' good day"]

    async def fragments(holding: str) -> None:
        async with asyncio.timeout(PATIENCE_S), Client(endpoint) as client:
            seen: list[tuple[Any, ...]] = []
            task = asyncio.create_task(run(watching, {"client": client, "print": lambda *what: seen.append(what)}))
            while not seen:  # the page says nothing when it has begun to watch
                await client.put("config/a", "1")
                await asyncio.sleep(0.05)
            task.cancel()
            assert seen[0] == ("put", b"config/a", "1")

            async def second() -> None:
                async with client.election("leader").campaign("second"):
                    await asyncio.Event().wait()

            found: list[str] = []
            assert holding.rstrip().endswith("observe(): ...")
            led = asyncio.Event()
            holding = holding.rstrip().removesuffix("...") + "found.append(kv.text); break"
            holding = holding.replace("async for", "led.set()\nasync for")
            held = asyncio.create_task(run(holding, {"client": client, "found": found, "led": led}))
            await led.wait()
            after = asyncio.create_task(second())
            await held
            assert found == ["second"]
            after.cancel()
            await asyncio.wait({after})
            assert await client.get("services/web-1") is None, "its lease has ended with the block"

            await client.put("left", "3")
            await client.put("right", "4")
            await run(moving, {"client": client})
            left, right = await client.get("left"), await client.get("right")
            assert left is not None and right is not None and (left.text, right.text) == ("2", "5")

    asyncio.run(fragments(holding))


def test_lock_and_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """how-to/lock-and-fence.md"""
    monkeypatch.chdir(tmp_path)
    locking, fencing, leasing, sessions = blocks("how-to/lock-and-fence.md")

    class App(StateMachine):
        def __init__(self) -> None:
            self.lock = Lock()
            self.services = LeasedDict[str, str]()

    names: dict[str, Any] = {"PEERS": {"n1": f"127.0.0.1:{free_ports(1)[0]}"}, "Lock": Lock, "Node": Node}
    held = asyncio.run(run(locking, dict(names)))["held"]
    frame = 'async with Node(App(), "n1", data_dir="app.oarlock") as node:\n' + textwrap.indent(leasing, "    ")
    assert asyncio.run(run(frame, {**names, "App": App}))["held"].token > 0
    exec(sessions, {"__name__": "page", "StateMachine": StateMachine, "command": command})
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE jobs (done INTEGER)")
    fencing = fencing.replace("UPDATE ...", "UPDATE jobs SET done = 1")
    asyncio.run(run(fencing, {"connection": connection, "held": held}))
    with pytest.raises(Fenced):
        asyncio.run(run(fencing, {"connection": connection, "held": SimpleNamespace(token=held.token - 1)}))
    connection.close()


def test_replicate_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tutorial/replicate-an-object.md: what follows the program, which test_embedded_examples.py runs."""
    monkeypatch.chdir(tmp_path)
    first, development, retried = blocks("tutorial/replicate-an-object.md")
    frame = f"{development}\nasync with node:\n    {retried.strip()}\n"
    names: dict[str, Any] = {"__name__": "page"}
    exec(first.partition("if __name__")[0], names)
    assert asyncio.run(run(frame, names))["total"] == 5


def test_find_members_by_dns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """how-to/find-members-by-dns.md: the node as the page makes it; test_discovery.py has the nameservers."""
    monkeypatch.chdir(tmp_path)

    class Counter(StateMachine):
        def __init__(self) -> None:
            self.value = 0

        @command
        def add(self) -> None:
            self.value += 1

    [text] = blocks("how-to/find-members-by-dns.md")
    names = asyncio.run(run(text, {"Node": Node, "Counter": Counter}))
    assert isinstance(names["node"], Node)


def test_test_an_object(tmp_path: Path) -> None:
    """reference/testing.md"""
    [text] = blocks("reference/testing.md")
    assert "seeds=50" in text
    (tmp_path / "test_page.py").write_text(text.replace("seeds=50", "seeds=2"))
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'examples'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_embed_the_api() -> None:
    """reference/api.md"""
    [text] = blocks("reference/api.md")
    port = free_ports(1)[0]

    async def served() -> None:
        shown: list[Any] = []
        backend = SingleBackend(make_machine())
        await run(text.replace("127.0.0.1:2379", f"127.0.0.1:{port}"), {"backend": backend, "print": shown.append})
        assert str(port) in str(shown[0])

    asyncio.run(served())


def test_use_tooz(alone: LocalCluster, tmp_path: Path) -> None:
    """how-to/use-tooz.md"""
    [text] = blocks("how-to/use-tooz.md")
    python = str(environment("tooz") / "python")
    text = text.replace("127.0.0.1:2379", alone.endpoints[0])
    program(
        f"{text}\nassert coordinator.get_members(b'workers').get() == {{b'w1'}}\ncoordinator.stop()",
        tmp_path,
        python=python,
    )


def test_use_with_django(alone: LocalCluster, tmp_path: Path) -> None:
    """how-to/use-with-django.md: its settings, and its lock with them."""
    settings, locking = blocks("how-to/use-with-django.md")
    settings = re.sub(r'"LOCATION": \[.*\]', f'"LOCATION": ["{alone.endpoints[0]}"]', settings)
    assert alone.endpoints[0] in settings
    frame = (
        f"{settings}\nfrom django.conf import settings\n"
        "settings.configure(CACHES=CACHES, SESSION_ENGINE=SESSION_ENGINE)\n"
        f"{locking}\nassert lock.token > 0 and not lock.valid\n"
        "cache.set('a', (1, 2))\n"
        "print(cache.get('a'), cache.client.range('shop-cache/', prefix=True).items[0].key)\n"
    )
    assert program(frame, tmp_path).strip() == "(1, 2) b'shop-cache/shop:1:a'"
