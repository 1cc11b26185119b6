"""Imports point down, never up or sideways; below the line there is no clock, no randomness, no I/O of its own.

Every import statement under src/oarlock is read with `ast`, wherever it stands (also inside a function). Imports under
`if TYPE_CHECKING:` have no effect at run time, but couple the designs all the same: they obey the rule between our own
parts, and are free towards the standard library.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "oarlock"


IMPORTING_CALLS = ("importlib.import_module", "import_module", "__import__")


@dataclass(frozen=True)
class Import:
    """One imported module, as seen from the module that imports it."""

    importer: str
    imported: str
    line: int
    typing_only: bool


def imports_of(module: str, source: str, *, package: bool) -> Iterator[Import]:
    """Every module that `source` imports. `from a import b` counts as `a.b` when that is a module of ours."""
    tree = ast.parse(source)
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, node in typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if package else module.split(".")[:-1]
                parts = parts[: len(parts) - (node.level - 1)]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(module, full if is_ours(full) else base, node.lineno, node in typing_only)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTING_CALLS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(module, name.value, node.lineno, node in typing_only)


def is_ours(name: str) -> bool:
    """Whether `name` is a module or package under src/oarlock."""
    path = SOURCE.parent.joinpath(*name.split("."))
    return name.startswith("oarlock.") and (path.with_suffix(".py").exists() or path.is_dir())


def inside(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


# What each part may import of ours, besides itself and oarlock.errors. The longest prefix of a module's name decides.
BELOW = ("oarlock.raft", "oarlock.storage", "oarlock.machines", "oarlock.node.replica", "oarlock.multiraft")
ALLOWED: dict[str, tuple[str, ...]] = {
    "oarlock.errors": (),
    "oarlock.raft": (),
    "oarlock.machines": (),
    "oarlock.config": (),
    "oarlock.storage": ("oarlock.raft.types", "oarlock.raft.messages"),
    "oarlock.wire": ("oarlock.raft.types", "oarlock.raft.messages"),
    "oarlock.transport": ("oarlock.raft.types", "oarlock.raft.messages", "oarlock.wire"),
    "oarlock.node.replica": ("oarlock.raft", "oarlock.storage", "oarlock.machines", "oarlock.multiraft"),
    "oarlock.multiraft": BELOW,
    "oarlock.node": (*BELOW, "oarlock.transport"),
    "oarlock.sim": (*BELOW, "oarlock.wire", "oarlock.check", "oarlock"),  # the version, for the report of a failure
    "oarlock.check": (),
    "oarlock.discovery": (),
    "oarlock.embed": (*BELOW, "oarlock.node", "oarlock.transport", "oarlock.blocking", "oarlock.discovery"),
    "oarlock.fencing": (),
    "oarlock.blocking": (),
    "oarlock.sync": ("oarlock.embed", "oarlock.machines.objects"),
    "oarlock.api": (*BELOW, "oarlock.node", "oarlock"),
    "oarlock.client": (
        "oarlock.api.etcd",
        "oarlock.api.grpc",
        "oarlock.api.http2",
        "oarlock.api.proto",
        "oarlock.blocking",
    ),
    "oarlock.contrib": ("oarlock.client", "oarlock.machines.objects.values"),
    "oarlock.lab": (
        *BELOW,
        "oarlock.node",
        "oarlock.transport",
        "oarlock.sim",
        "oarlock.check",
        "oarlock.api",
        "oarlock.client",
    ),
    # what people's own test suites import: it drives both drivers, and keeps real members in one process
    "oarlock.testing": (
        *BELOW,
        "oarlock.node",
        "oarlock.transport",
        "oarlock.sim",
        "oarlock.check",
        "oarlock.lab",
        "oarlock.cli.local_cluster",  # free ports
        "oarlock",
    ),
    "oarlock.pytest_plugin": ("oarlock.testing",),
    # a program of its own: the restoring of backups is all that it shares with the server
    "oarlock.ctl": (
        "oarlock.api.proto",
        "oarlock.node.backups",
        "oarlock.node.restore",
        "oarlock.config.values",
        "oarlock",
    ),
    "oarlock.cli": ("oarlock",),
    "oarlock.__main__": ("oarlock.cli",),
    "oarlock": (),
}
# `oarlock` itself holds the version; in the row of a program it stands for everything.
PROGRAMS = ("oarlock.cli", "oarlock.__main__")

# Of the standard library, what the parts below the line leave out.
CLOCKS_THREADS_IO = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "random", "secrets", "select", "selectors", "signal"}
    | {"socket", "ssl", "subprocess", "threading", "time"}
)
FORBIDDEN: dict[str, frozenset[str]] = {
    "oarlock.raft": CLOCKS_THREADS_IO | {"logging", "os", "io", "pathlib", "datetime", "uuid", "tempfile", "shutil"},
    "oarlock.machines": CLOCKS_THREADS_IO | {"datetime", "uuid"},
    "oarlock.storage": CLOCKS_THREADS_IO,
    "oarlock.wire": CLOCKS_THREADS_IO,
    "oarlock.node.replica": CLOCKS_THREADS_IO | {"os", "datetime", "uuid"},
    "oarlock.multiraft": CLOCKS_THREADS_IO | {"os", "datetime", "uuid"},
    # the simulator's randomness is its seeded generator, and its time is virtual
    "oarlock.sim": CLOCKS_THREADS_IO - {"random"},
    "oarlock.config": CLOCKS_THREADS_IO,
}
# Module-level exceptions to FORBIDDEN, each with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "oarlock.storage.sim_disk",
        "random",
    ): "what survives a power cut is drawn from a generator with the caller's seed",
    ("oarlock.machines.objects.values", "datetime"): "its types are values that programs replicate; no clock is read",
    ("oarlock.machines.objects.values", "uuid"): "its type is a value that programs replicate; none is made",
}
STANDARD_LIBRARY_ONLY = ("oarlock.raft", "oarlock.errors")
DANGEROUS_MODULES = frozenset({"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"})
DANGEROUS_CALLS = frozenset({"eval", "exec", "yaml.load", "yaml.unsafe_load"})


def part_of(module: str) -> str:
    """The key of `ALLOWED` that rules `module`: the longest one that contains it."""
    return max((part for part in ALLOWED if inside(module, part)), key=len)


def complaints(found: Import) -> Iterator[str]:
    """What is wrong with one import; nothing, as a rule."""
    where = f"{found.importer}:{found.line} imports {found.imported}"
    part = part_of(found.importer)
    top = found.imported.partition(".")[0]
    if top == "oarlock":
        if found.imported == "oarlock.errors" or (inside(found.imported, part) and part != "oarlock"):
            return
        if part == "oarlock" and found.importer == "oarlock":
            if found.imported not in ("oarlock",) and not inside(found.imported, "oarlock"):
                yield f"{where}: not ours"
            return
        allowed = ALLOWED[part]
        version_only = found.imported == "oarlock" and "oarlock" in allowed
        everything = part in PROGRAMS and "oarlock" in allowed
        if not (version_only or everything or inside(found.imported, *(a for a in allowed if a != "oarlock"))):
            yield f"{where}: {part} may import only {', '.join(allowed) or 'nothing of ours'} (and oarlock.errors)"
        return
    if top in DANGEROUS_MODULES:
        yield f"{where}: bytes from disk or network never become code"
    if found.typing_only:
        return
    for ruled, forbidden in FORBIDDEN.items():
        if inside(found.importer, ruled) and top in forbidden and (found.importer, top) not in EXCEPTIONS:
            yield f"{where}: {ruled} is deterministic and does no I/O of its own"
    if inside(found.importer, *STANDARD_LIBRARY_ONLY) and top not in sys.stdlib_module_names:
        yield f"{where}: {part} imports nothing but the standard library"


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def dangerous_calls(module: str, source: str) -> list[str]:
    return [
        f"{module}:{node.lineno} calls {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in DANGEROUS_CALLS
    ]


def test_every_import_points_down() -> None:
    wrong = [
        complaint
        for module, path in modules()
        for found in imports_of(module, path.read_text(), package=path.name == "__init__.py")
        for complaint in complaints(found)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_evaluates_text_as_code() -> None:
    wrong = [call for module, path in modules() for call in dangerous_calls(module, path.read_text())]
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_rule() -> None:
    """A new folder must say in `ALLOWED` what it may import: falling back on the root's row would be an accident."""
    without = sorted(
        {module for module, _ in modules() if part_of(module) == "oarlock" and module not in ("oarlock",)},
    )
    assert not without, f"no rule for {without}"


def test_every_folder_says_what_happens_in_it() -> None:
    silent = []
    for module, path in modules():
        if path.name == "__init__.py" and ast.get_docstring(ast.parse(path.read_text())) is None:
            silent.append(module)
    assert not silent, f"no docstring in the __init__.py of {silent}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("oarlock.raft.core", "import time"),
        ("oarlock.raft.core", "def f():\n    import random"),
        ("oarlock.raft.core", "from asyncio import sleep"),
        ("oarlock.raft.core", "import os.path"),
        ("oarlock.raft.core", "import msgspec"),
        ("oarlock.raft.core", "from oarlock.storage import wal"),
        ("oarlock.raft.core", "from ..storage import wal"),
        (
            "oarlock.raft.core",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from oarlock.node import runtime",
        ),
        ("oarlock.raft.core", "import importlib\nimportlib.import_module('oarlock.node')"),
        ("oarlock.machines.kv.machine", "from oarlock.raft import types"),
        ("oarlock.machines.kv.machine", "import threading"),
        ("oarlock.storage.wal", "from oarlock.raft import core"),
        ("oarlock.storage.wal", "from oarlock.raft.events import Persist"),
        ("oarlock.storage.wal", "import asyncio"),
        ("oarlock.transport.peer", "from oarlock.node import runtime"),
        ("oarlock.transport.peer", "from oarlock.raft import events"),
        ("oarlock.node.replica", "from oarlock.transport import codec"),
        ("oarlock.node.replica", "import asyncio"),
        ("oarlock.node.runtime", "from oarlock.api import server"),
        ("oarlock.sim.world", "from oarlock.transport import codec"),
        ("oarlock.wire.frames", "from oarlock.transport import connection"),
        ("oarlock.wire.frames", "import socket"),
        ("oarlock.sim.world", "import asyncio"),
        ("oarlock.client.client", "from oarlock.api import server"),
        ("oarlock.api.server", "from oarlock.cli import serve"),
        ("oarlock.api.server", "from oarlock.config import options"),
        ("oarlock.config.load", "from oarlock.node import options"),
        ("oarlock.errors", "from oarlock.raft import types"),
        ("oarlock.cli.serve", "import pickle"),
    ],
)
def test_the_rule_catches_a_violation(module: str, source: str) -> None:
    found = [complaint for item in imports_of(module, source, package=False) for complaint in complaints(item)]
    assert found, f"nothing complained about {source!r} in {module}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("oarlock.raft.core", "from oarlock.raft.types import Entry\nfrom oarlock import errors\nimport dataclasses"),
        ("oarlock.raft.core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from random import Random"),
        ("oarlock.storage.wal", "import os, zlib\nfrom oarlock.raft.messages import Message"),
        (
            "oarlock.node.runtime",
            "import asyncio\nfrom oarlock.transport import codec\nfrom oarlock.node import replica",
        ),
        ("oarlock.sim.world", "import random\nfrom oarlock.node.replica import Replica"),
        ("oarlock.cli.serve", "import asyncio\nfrom oarlock.api import server"),
        ("oarlock.api.server", "from oarlock import __version__"),
    ],
)
def test_the_rule_lets_right_imports_through(module: str, source: str) -> None:
    found = [complaint for item in imports_of(module, source, package=False) for complaint in complaints(item)]
    assert not found, found


@pytest.mark.parametrize("source", ["eval('1')", "exec(code)", "yaml.load(text)"])
def test_dangerous_calls_are_found(source: str) -> None:
    assert dangerous_calls("oarlock.cli.x", source)
