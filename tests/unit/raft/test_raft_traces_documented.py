"""Every trace event that the core can leave stands in the reference, and nothing else does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def emitted() -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "src/oarlock/raft/core.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_trace":
            first = node.args[0]
            parts = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
            for part in parts:
                assert isinstance(part, ast.Constant), "a trace event's name is a literal"
                found.add(part.value)
    return found


def test_the_reference_lists_what_the_core_emits() -> None:
    page = (ROOT / "docs/reference/trace-events.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert emitted() == documented
