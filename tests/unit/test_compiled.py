"""The compiled build: which modules take part, what keeps one out, and that it does what its source says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOT = (
    "raft/core.py", "raft/log.py", "raft/progress.py", "raft/quorum.py", "raft/messages.py", "raft/events.py",
    "node/runtime.py", "node/replica/member.py", "node/replica/pending.py", "storage/records.py", "storage/wal.py",
    "storage/sim_disk.py", "machines/lmdb_store.py", "machines/kv/machine.py", "machines/kv/encoding.py",
    "wire/frames.py", "api/etcd/codec.py", "api/etcd/service.py", "api/etcd/access.py",
    "api/etcd/reads.py", "api/grpc/connection.py", "api/grpc/call.py",
    "api/http2/connection.py",
    "api/http2/own_engine.py", "api/http2/header_blocks.py",
    "sim/world/world.py", "sim/world/process.py", "sim/world/oracle.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = spec_from_file_location("oarlock_tools_compiled", ROOT / "tools" / "compiled.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_matters_is_compiled(tool: ModuleType) -> None:
    """A change that keeps a hot module out of the compiled build is noticed; `tools/compiled.py --list` says why."""
    compiled, left = tool.plan()
    assert {f"oarlock/{name}": left.get(f"oarlock/{name}") for name in HOT if f"oarlock/{name}" not in compiled} == {}
    assert set(tool.INTERPRETED) <= set(left)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("import msgspec\nclass Put(msgspec.Struct, tag=1):\n    key: bytes\n", "options (tag)"),
        ("import msgspec\nclass Put(msgspec.Struct):\n    key: bytes\n", "msgspec.Struct"),
        ("class Bad(ValueError):\n    pass\n", "ValueError"),
        ("@runtime_checkable\nclass Codec(Protocol):\n    pass\n", "runtime_checkable"),
        ("async def numbers():\n    yield 1\n", "asynchronous generator"),
        (
            "def f():\n    try:\n        g()\n    except A as e:\n        pass\n    except B as e:\n        pass\n",
            "'e'",
        ),
        ("def f(e):\n    try:\n        g()\n    except A as e:\n        pass\n", "parameter 'e'"),
    ],
)
def test_what_mypyc_would_get_wrong_is_kept_out(tool: ModuleType, source: str, word: str) -> None:
    assert word in tool.obstacle(source)


def test_what_it_can_do_is_not(tool: ModuleType) -> None:
    source = (
        "class Error(Exception):\n    pass\n"
        "async def f():\n    def numbers():\n        yield 1\n    return list(numbers())\n"
        "def g():\n    try:\n        h()\n    except A as a:\n        pass\n    except B as b:\n        pass\n"
        "def h():\n    try:\n        g()\n    except B as a:\n        pass\n"
    )
    assert tool.obstacle(source) == ""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    shutil.which("cc") is None or find_spec("mypyc") is None or find_spec("setuptools") is None,
    reason="needs a C compiler, mypyc and setuptools",
)
def test_a_compiled_part_does_what_its_source_does(tool: ModuleType, tmp_path: Path) -> None:
    """The whole build takes minutes; its smallest part shows that the way works: compile, import, compare."""
    work, made = tmp_path / "work", tmp_path / "made"
    tool.copy_package(work)
    tool.copy_package(made)
    modules = [f"oarlock/raft/{name}.py" for name in ("types", "quorum")]
    extensions = tool.compile_into(made, modules, work, optimise="0")
    assert [path.name.partition(".")[0] for path in extensions] == ["quorum", "types", "oarlock__mypyc"]
    code = (
        "from oarlock.raft import quorum, types\n"
        "from oarlock.cli.version import compiled\n"
        "c = types.Configuration.of_voters(1, 2, 3)\n"
        "print(compiled(), quorum.agreed({1: 9, 2: 5, 3: 4}, c), types.decode_configuration("
        "types.encode_configuration(c)) == c)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(made)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["True", "5", "True"]
