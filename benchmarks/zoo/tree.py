"""Copies of the source tree, with an entry's edits."""

from __future__ import annotations

import re
import shutil
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


def copy(target: Path, edits: Sequence[Edit]) -> Path:
    """A copy of the source in `target`, changed; returns the directory to import `oarlock` from."""
    source = target / "src"
    # Compiled modules would hide what is changed.
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path, text in apply(edits, source).items():
        path.write_text(text)
    return source
