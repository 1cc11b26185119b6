"""Compile the hot modules with mypyc: the same .py files, as an extension that Python prefers to them.

    python tools/compiled.py                 build/compiled: a complete tree to import from (`make compiled`)
    python tools/compiled.py --list          what is compiled, what is not, and why

Nothing is ever put beside the sources: an old extension there would hide an edited file. The tree is made anew when
any source file, this file, mypy or the interpreter has changed, and swapped in whole. A wheel is compiled when
OARLOCK_COMPILE=1 (`tools/hatch_build.py`). Needs the package mypy[mypyc], setuptools and a C compiler.
(docs/how-to/compile.md)
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / "src"
TREE: Final = ROOT / "build" / "compiled"
STAMP: Final = "SOURCES.sha256"
EXTENSION: Final = "oarlock"  # the shared part is oarlock__mypyc.*.so
ATTEMPTS_MAX: Final = 5

# What is worth compiling: what runs for each request, or for each step of a simulation. Not the programs around it.
CANDIDATES: Final = (
    "raft/*.py",
    "node/replica/*.py",
    "node/log_writer.py",
    "node/metrics.py",
    "node/runtime.py",
    "storage/*.py",
    "machines/*.py",
    "machines/kv/*.py",
    "wire/frames.py",
    "api/limits.py",
    "api/etcd/*.py",
    "api/grpc/*.py",
    "api/http2/*.py",
    "sim/*.py",
    "sim/world/*.py",
    "check/*.py",
)

# Protocols that users of the library derive from: an interpreted class cannot derive from a compiled one.
INTERPRETED: Final = {
    "oarlock/machines/base.py": "machines of users derive from what it has",
    "oarlock/machines/volatile.py": "machines of users derive from what it has",
    "oarlock/machines/store.py": "stores of users derive from what it has",
    "oarlock/storage/disk.py": "disks of users derive from what it has",
}

_BUILTIN_ERRORS: Final = {name for name in dir(builtins) if name.endswith("Error")}
_ERROR: Final = re.compile(r"^(oarlock/\S+\.py):\d+: error: (.*)$", re.MULTILINE)


def obstacle(source: str) -> str:
    """Why mypyc must not compile a module, or "". Found by reading it, because some of it would compile, and then do
    something else: the options of a class (`class Put(msgspec.Struct, tag=1)`) are dropped without a word, and a name
    that two `except` clauses of a function give to different errors has the type of the first in both. An `except`
    clause that takes the name of a parameter ends the compiler."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            if node.keywords:
                return f"class {node.name} has options ({', '.join(k.arg or '**' for k in node.keywords)})"
            for base in node.bases:
                name = ast.unparse(base)
                if name in _BUILTIN_ERRORS or name == "msgspec.Struct":
                    return f"class {node.name} derives from {name}"
            if any(ast.unparse(decorator) == "runtime_checkable" for decorator in node.decorator_list):
                return f"class {node.name} is runtime_checkable"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if isinstance(node, ast.AsyncFunctionDef) and any(isinstance(n, ast.Yield) for n in _own_nodes(node)):
                return f"{node.name} is an asynchronous generator"
            given = node.args
            parameters = {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
            caught: dict[str, str] = {}
            for handler in _own_nodes(node):
                if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                    kind = ast.unparse(handler.type)
                    if handler.name in parameters:
                        return f"{node.name} gives the name of its parameter {handler.name!r} to {kind}"
                    if caught.setdefault(handler.name, kind) != kind:
                        return f"{node.name} gives {handler.name!r} to {caught[handler.name]} and to {kind}"
    return ""


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _own_nodes(child)


def plan(source: Path = SOURCE) -> tuple[list[str], dict[str, str]]:
    """The files to compile, relative to `source`, and those candidates that stay interpreted, with the reason."""
    chosen: list[str] = []
    left: dict[str, str] = {}
    for pattern in CANDIDATES:
        for path in sorted((source / "oarlock").glob(pattern)):
            name = str(path.relative_to(source))
            text = path.read_text()
            why = INTERPRETED.get(name) or obstacle(text)
            if path.name == "__init__.py":
                continue  # names only
            if why:
                left[name] = why
            else:
                chosen.append(name)
    return chosen, left


def fingerprint(source: Path = SOURCE) -> str:
    """Changes with every source file, this program, the compiler's version and the interpreter."""
    from mypy.version import __version__ as mypy_version

    digest = hashlib.sha256(f"{mypy_version} {sys.version} {sysconfig.get_platform()}".encode())
    for path in [Path(__file__), *sorted((source / "oarlock").rglob("*.py"))]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def compile_into(destination: Path, modules: Iterable[str], work: Path, *, optimise: str = "2") -> list[Path]:
    """Compile `modules` (files relative to the present copy of the package in `work`) and put the extensions below
    `destination`; returns them. A module that mypyc refuses is left out, and named on stderr."""
    modules = list(modules)
    script = (
        "import sys\n"
        "from mypyc.build import mypycify\n"
        "from setuptools import Distribution\n"
        "optimise, out, *modules = sys.argv[1:]\n"
        f"ext = mypycify(['--ignore-missing-imports', *modules], opt_level=optimise, multi_file=True, "
        f"group_name={EXTENSION!r}, strip_asserts=False)\n"
        "command = Distribution({'name': 'oarlock', 'ext_modules': ext}).get_command_obj('build_ext')\n"
        "command.build_lib, command.build_temp = out, 'objects'\n"
        "command.parallel = True\n"
        "command.ensure_finalized()\n"
        "command.run()\n"
    )
    environment = {**os.environ, "CFLAGS": f"-g0 {os.environ.get('CFLAGS', '')}"}
    for _ in range(ATTEMPTS_MAX):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", script, optimise, str(destination), *modules],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return sorted(destination.rglob("*" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")))
        refused = {name: why for name, why in _ERROR.findall(done.stdout + done.stderr) if name in modules}
        if not refused:
            sys.exit(f"error: mypyc failed\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        for name, why in refused.items():
            print(f"warning: {name} stays interpreted: {why}", file=sys.stderr)
        modules = [name for name in modules if name not in refused]
    sys.exit(f"error: mypyc refused modules in {ATTEMPTS_MAX} attempts; put what it says in order first")


def copy_package(destination: Path, source: Path = SOURCE) -> None:
    """The package as it is, without caches and without anything compiled."""
    shutil.copytree(
        source / "oarlock", destination / "oarlock", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    )


def build_tree(tree: Path = TREE, source: Path = SOURCE) -> bool:
    """Make `tree` current; whether there was anything to do."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with (tree.parent / f".{tree.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint(source)
        with contextlib.suppress(FileNotFoundError):
            if (tree / STAMP).read_text().strip() == wanted:
                return False
        with tempfile.TemporaryDirectory(prefix="compiling-", dir=tree.parent) as directory:
            work, made = Path(directory) / "work", Path(directory) / "made"
            copy_package(work, source)
            copy_package(made, source)
            modules, _ = plan(work)
            print(f"compiling {len(modules)} modules with mypyc: a minute or three", file=sys.stderr)
            compile_into(made, modules, work)
            (made / STAMP).write_text(wanted + "\n")
            old = Path(directory) / "old"
            if tree.exists():
                tree.rename(old)
            made.rename(tree)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what would be compiled, and what not and why")
    options = parser.parse_args()
    if options.list:
        compiled, left = plan()
        for name in compiled:
            print(name)
        for name, why in left.items():
            print(f"{name}: interpreted, because {why}")
        return
    made = build_tree()
    print(f"{TREE.relative_to(ROOT)} is {'made' if made else 'up to date'}: PYTHONPATH={TREE.relative_to(ROOT)} python")


if __name__ == "__main__":
    main()
