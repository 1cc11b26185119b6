"""The build step of a compiled wheel: with OARLOCK_COMPILE=1 the hot modules go in as extensions beside their .py
files. (docs/how-to/compile.md)"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "OARLOCK_COMPILE"


class CompileHook(BuildHookInterface[Any]):
    """Does nothing unless the switch is set, so that an ordinary wheel is pure."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the isolated environment of a compiled build needs besides hatchling."""
        return ["mypy[mypyc]>=2.1", "setuptools>=65", "msgspec>=0.22"] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or not _wanted():
            return
        root = Path(self.root)
        sys.path.insert(0, str(root / "tools"))
        from compiled import compile_into, copy_package, plan

        self._directory = tempfile.TemporaryDirectory(prefix="oarlock-compile-")
        work, made = Path(self._directory.name, "work"), Path(self._directory.name, "made")
        made.mkdir()
        copy_package(work, root / "src")
        modules, _ = plan(work)
        for extension in compile_into(made, modules, work):
            build_data["force_include"][str(extension)] = str(extension.relative_to(made))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def _wanted() -> bool:
    return os.environ.get(SWITCH, "") not in ("", "0")
