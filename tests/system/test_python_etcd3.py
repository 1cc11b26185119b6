"""python-etcd3, the published package, against one member of ours; and the page for those who come from it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.clusters import LocalCluster, cluster_of
from tests.support.environments import ROOT, environment

pytestmark = pytest.mark.timeout(300)
PAGE = ROOT / "docs" / "how-to" / "migrate-from-python-etcd3.md"
MODULES = ("client", "locks", "leases", "members", "events", "watch", "transactions", "exceptions")
INNER = {
    "EtcdTokenCallCredentials",
    "Event",
    "BaseCompare",
    "Transactions",
    "build_message",
    "build_compare",
    "add_callback",
    "get_response",
}
"""What nobody who uses the package writes."""


@pytest.fixture(scope="module")
def alone() -> Iterator[LocalCluster]:
    with cluster_of(1) as cluster:
        yield cluster


def test_its_calls_work(alone: LocalCluster) -> None:
    calls = ROOT / "tests" / "support" / "python_etcd3_calls.py"
    command = [str(environment("etcd3") / "python"), str(calls), str(alone.members[0].client_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("work") == 5


def test_the_page_maps_every_name_of_it() -> None:
    [package] = environment("etcd3").parent.glob("lib/python*/site-packages/etcd3")
    page = re.sub(r"^```.*?^```", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", page))))
    named |= {part for name in named for part in name.split(".")}
    missing = []
    for module in MODULES:
        for node in ast.parse((package / f"{module}.py").read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_") or node.name in INNER:
                continue
            inside = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            missing += [
                f"{module}.{node.name}.{name}"
                for name in [node.name, *inside]
                if not name.startswith("_") and name not in named | INNER
            ]
    assert missing == []


def test_the_page_s_programs_run(alone: LocalCluster, tmp_path: Path) -> None:
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    program = program.replace("127.0.0.1:2379", alone.endpoints[0])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_names_of_ours_on_the_page_exist() -> None:
    """In the right column: methods of the client with a parenthesis or `client.` before them, and classes."""
    import oarlock.client as ours
    from oarlock.client.sync import Client

    right = "\n".join(row.split("|")[2] for row in PAGE.read_text().splitlines() if row.startswith("| "))
    for name in re.findall(r"(?:`|client\.)(\w+)\(", right):
        assert hasattr(Client, name) or hasattr(ours, name) or name in ("next", "anext"), name
    for name in re.findall(r"`([A-Z][a-z]\w+)`", right):
        assert hasattr(ours, name) or name == "None", name
