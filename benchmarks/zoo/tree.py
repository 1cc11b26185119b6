"""Copies of the source tree, with an entry's edits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.zoo.entry import Edit

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "src"
MARKER: Final = re.compile(r"^ *# sometimes: .*\n", re.MULTILINE)


class DoesNotApply(Exception):
    """The source has changed: the entry must be written anew."""


def apply(edits: Sequence[Edit], source: Path) -> dict[Path, str]:
    """The changed files' new contents, by path. Raises `DoesNotApply` unless every edit applies exactly once."""
    changed: dict[Path, str] = {}
    for edit in edits:
        path = source / "oarlock" / edit.file
        text = changed.get(path)
        if text is None:
            if not path.exists():
                raise DoesNotApply(f"{edit.file} does not exist")
            # Markers come and go (oarlock.sim.world.markers): what is matched is the source without them.
            text = MARKER.sub("", path.read_text())
        count = text.count(edit.old)
        if count != 1:
            raise DoesNotApply(f"{edit.file} holds this {count} times instead of once:\n{edit.old}")
        changed[path] = text.replace(edit.old, edit.new)
    for path, text in changed.items():
        compile(text, str(path), "exec")
    return changed


def base(target: Path) -> Path:
    """A copy of the source as it is, compiled both ways, so that a changed copy of it starts quickly."""
    source = target / "src"
    # Compiled extension modules would hide what is changed.
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for switches in ([], ["-O"]):
        subprocess.run(
            [sys.executable, *switches, "-m", "compileall", "-q", str(source)], check=True, stdout=subprocess.DEVNULL
        )
    return source


def copy(target: Path, edits: Sequence[Edit], source: Path = SOURCE) -> Path:
    """A copy of `source` in `target`, changed; returns the directory to import `oarlock` from."""
    changed = target / "src"
    shutil.copytree(source, changed, ignore=shutil.ignore_patterns("*.so"))  # times are kept: what is compiled counts
    for path, text in apply(edits, changed).items():
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
    return changed
