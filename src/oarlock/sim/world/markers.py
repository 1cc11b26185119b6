"""Rare branches that some seed must reach, and which of them none did.

A marker is a comment in the source, on a line of its own above the first statement of the branch:

    # sometimes: a candidate loses to the leader of its own term

It costs nothing and can influence nothing. Whoever wants to know runs seeds with `watching`, which traces the marked
lines. A marker that no seed reaches is a blind spot: a fault, a kind of request or an order of things is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import oarlock

PACKAGES: Final = ("raft", "node/replica", "storage")
WORD: Final = "# sometimes: "


@dataclass(frozen=True, slots=True, order=True)
class Marker:
    """`line` is that of the statement under the comment."""

    name: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


@cache
def markers() -> tuple[Marker, ...]:
    """All markers of the source that runs, by name. Raises `ValueError` if a name is used twice."""
    root = Path(oarlock.__file__).parent
    found: dict[str, Marker] = {}
    for package in PACKAGES:
        for path in sorted((root / package).glob("*.py")):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text.startswith(WORD):
                    continue
                name = text.removeprefix(WORD)
                below = number
                while lines[below].strip().startswith("#"):
                    below += 1
                if name in found:
                    raise ValueError(f"two markers are called {name!r}")
                found[name] = Marker(name, str(path.relative_to(root)), below + 1)
    return tuple(sorted(found.values()))


@contextmanager
def watching() -> Iterator[set[str]]:
    """While this is entered, the set that it gives collects the names of markers reached by this thread.

    Raises `RuntimeError` if marked modules are compiled: a compiled line cannot be watched.
    """
    for name in ("core", "log"):
        module = import_module(f"oarlock.raft.{name}")
        if not str(module.__file__).endswith(".py"):
            raise RuntimeError(f"{module.__name__} is compiled, and its markers cannot be watched: use a plain install")
    root = Path(oarlock.__file__).parent
    by_file: dict[str, dict[int, str]] = {}
    for marker in markers():
        by_file.setdefault(str(root / marker.file), {})[marker.line] = marker.name
    reached: set[str] = set()
    wanted: dict[CodeType, dict[int, str]] = {}

    def lines_of(code: CodeType) -> dict[int, str]:
        marked = by_file.get(code.co_filename)
        lines: dict[int, str] = {}
        if marked:
            own = {line for _, _, line in code.co_lines()}
            lines = {line: name for line, name in marked.items() if line in own}
        wanted[code] = lines
        return lines

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        lines = wanted.get(code)
        if lines is None:
            lines = lines_of(code)
        return line_reached if lines else None

    def line_reached(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            lines = wanted[frame.f_code]
            name = lines.get(frame.f_lineno)
            if name is not None:
                reached.add(name)
                del lines[frame.f_lineno]  # once is enough: what has no marker left is not traced any more
        return line_reached

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield reached
    finally:
        sys.settrace(before)
