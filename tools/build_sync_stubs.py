"""Write src/oarlock/sync.pyi: the batteries as they are typed on a node for threads, made from their asyncio types.

At run time they are the same classes: an awaitable there is a result here, because the node that holds them says so.

    python tools/build_sync_stubs.py            write the file
    python tools/build_sync_stubs.py --check    exit 1 if the file is not up to date
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "oarlock"
OUTPUT = SOURCE / "sync.pyi"
MODULES = ("machines/objects/claims.py", "embed/locks.py", "embed/collections.py", "embed/tools.py")
LEFT_OUT = frozenset({"_Job", "HolderUnknown", "TooManyClaims", "QueueFull", "Claim"})

HEAD = '''"""The names of `oarlock.sync` as type checkers see them. Made by tools/build_sync_stubs.py."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from oarlock.embed.collections import QueueFull as QueueFull
from oarlock.embed.holders import LeaseLost as LeaseLost
from oarlock.embed.lease import BlockingLease as Lease
from oarlock.embed.status import MemberStatus as MemberStatus
from oarlock.embed.status import NodeStatus as NodeStatus
from oarlock.embed.sync import Leading as Leading
from oarlock.embed.sync import Node as Node
from oarlock.errors import ConfigurationError as ConfigurationError
from oarlock.errors import DeadlineExceeded as DeadlineExceeded
from oarlock.errors import LeadershipLost as LeadershipLost
from oarlock.errors import NoLeader as NoLeader
from oarlock.errors import NotLeader as NotLeader
from oarlock.errors import Outcome as Outcome
from oarlock.errors import Overloaded as Overloaded
from oarlock.errors import ProposalDropped as ProposalDropped
from oarlock.errors import RaftError as RaftError
from oarlock.errors import Rejected as Rejected
from oarlock.errors import Stopped as Stopped
from oarlock.errors import StorageError as StorageError
from oarlock.machines.objects.claims import Claim as Claim
from oarlock.machines.objects.declare import Consistency as Consistency
from oarlock.machines.objects.declare import NotAttached as NotAttached
from oarlock.machines.objects.declare import bounded as bounded
from oarlock.machines.objects.machine import ApplyContext as ApplyContext
from oarlock.machines.objects.machine import CommandError as CommandError
from oarlock.machines.objects.machine import HalfMadeChange as HalfMadeChange
from oarlock.machines.objects.machine import NotDeterministic as NotDeterministic
from oarlock.machines.objects.machine import StateMachine as StateMachine
from oarlock.machines.objects.values import Unencodable as Unencodable

M_contra = TypeVar("M_contra", contravariant=True)
M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
H = TypeVar("H", bound=Hashable)

class CommandCall(Generic[P, R]):
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def options(self, *, timeout: float | None = None, retry_safe: bool = False) -> CommandCall[P, R]: ...
    def inline(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

class QueryCall(Generic[P, R]):
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def options(
        self, *, timeout: float | None = None, consistency: Consistency | bounded | None = None
    ) -> QueryCall[P, R]: ...
    def inline(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

class Command(Generic[M_contra, P, R]):
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: M_contra, owner: type) -> CommandCall[P, R]: ...

class Query(Generic[M_contra, P, R]):
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: M_contra, owner: type) -> QueryCall[P, R]: ...

@overload
def command(function: Callable[Concatenate[M, P], R], /) -> Command[M, P, R]: ...
@overload
def command(
    *, since: int = 1, instead_of: str = "", atomic: bool | None = None
) -> Callable[[Callable[Concatenate[M, P], R]], Command[M, P, R]]: ...
@overload
def query(function: Callable[Concatenate[M, P], R], /) -> Query[M, P, R]: ...
@overload
def query(
    *, consistency: Consistency | bounded = "linearizable"
) -> Callable[[Callable[Concatenate[M, P], R]], Query[M, P, R]]: ...

class Held:
    token: int
    @property
    def valid(self) -> bool: ...
    def release(self) -> None: ...

class Holding:
    def __enter__(self) -> Held: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

'''


def result_of(annotation: ast.expr | None) -> str:
    """The type of a result on a node for threads."""
    text = ast.unparse(annotation) if annotation is not None else "Any"
    if text.startswith("Awaitable[") and text.endswith("]"):
        return text.removeprefix("Awaitable[").removesuffix("]")
    return text


def signature(function: ast.FunctionDef) -> str:
    arguments = ast.unparse(function.args).replace("ID_BLOCK", "...").replace("QUEUE_ITEMS_MAX", "...")
    arguments = arguments.replace("Callable[[], Awaitable[object]]", "Callable[[], object]")
    return f"    def {function.name}({arguments}) -> {result_of(function.returns)}: ..."


def stub_of(cls: ast.ClassDef) -> list[str]:
    """The lines of one class: its public methods, without those that only make sense with an event loop."""
    bases = ", ".join(ast.unparse(base) for base in cls.bases)
    lines = [f"class {cls.name}({bases}):" if bases else f"class {cls.name}:"]
    for node in cls.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        decorators = [ast.unparse(each) for each in node.decorator_list]
        if node.name.startswith("_") and node.name not in ("__init__", "__enter__", "__exit__"):
            continue
        if any(each in ("asynccontextmanager", "abstractmethod") for each in decorators):
            continue
        lines += [f"    @{each}" for each in decorators]
        lines.append(signature(node))
    return lines if len(lines) > 1 else [*lines, "    pass"]


def build() -> str:
    lines: list[str] = []
    for module in MODULES:
        for node in ast.parse((SOURCE / module).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name not in LEFT_OUT and node.name != "Holding":
                lines += [*stub_of(node), ""]
    text = HEAD + "\n".join(lines)
    for arguments in (["check", "--fix-only", "--quiet"], ["format"]):
        text = subprocess.run(  # noqa: S603 - our own formatter
            [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(OUTPUT), "-"],
            input=text, capture_output=True, text=True, check=True, cwd=SOURCE.parent.parent,
        ).stdout  # fmt: skip
    return text


def main() -> int:
    text = build()
    if "--check" in sys.argv:
        return int(not OUTPUT.exists() or OUTPUT.read_text() != text)
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
