"""Virtual environments for programs that are tested as their users run them: with their libraries, not with ours."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "environments"
"""They are kept between runs; `make clean` removes them."""

INSTALL_SECONDS = 600


def environment(group: str) -> Path:
    """The `bin` directory of an environment with the packages of that dependency group of `pyproject.toml`, made at the
    first call. Any number of processes may ask at once: one makes it, the others wait."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    name = hashlib.sha256(repr((sys.version, wanted)).encode()).hexdigest()[:12]
    home = KEPT / f"{group}-{name}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{group}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "made").exists():
            shutil.rmtree(home, ignore_errors=True)
            _run(sys.executable, "-m", "venv", "--without-pip", str(home))
            _run(
                sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check",
                "install", "--quiet", *wanted,
            )  # fmt: skip
            (home / "made").touch()
    return home / "bin"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
