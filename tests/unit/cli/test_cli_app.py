"""The command tree: help, errors, exit codes, completion, and what a cold start imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oarlock import __version__
from oarlock.cli.app import COMMANDS, main
from oarlock.cli.exits import Exit

SOURCE = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture(autouse=True)
def _no_options_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("OARLOCK_", "ETCD_")):
            monkeypatch.delenv(name)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == Exit.CLEAN
    for name, lazy in COMMANDS.items():
        assert name in out and lazy.help.split()[0] in out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "version")[1].split()[:2] == ["oarlock", __version__]
    assert json.loads(run(capsys, "version", "--json")[1])["oarlock"] == __version__


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serv",), "no such command: serv (did you mean serve?)"),
        (("config", "show", "--nme", "x"), "unknown flag --nme (did you mean --name?)"),
        (("config", "show", "-nme=x"), "unknown flag --nme (did you mean --name?)"),
        (("config", "show", "stray"), "stray"),
        (
            ("config", "show", "--max-txn-ops", "-1"),
            "max-txn-ops (from flag --max-txn-ops): -1 is out of range: 1 to 100000",
        ),
        (("config", "show", "--config-file", "/nonexistent"), "cannot read /nonexistent"),
        (("version", "--jsn"), "--jsn"),
        (("completion", "csh"), "csh"),
    ],
)
def test_a_wrong_command_line_is_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == Exit.CONFIGURATION
    assert out == ""
    assert err.startswith("error: ") and says in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "n1", "--pre-vote=false"),
        ("-name", "n1", "-pre-vote=false"),
        ("-name=n1", "--pre-vote=f"),
    ],
)
def test_flags_are_taken_as_go_programs_take_them(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, out, _ = run(capsys, "config", "show", "--json", *arguments)
    document = json.loads(out)
    assert (code, document["name"], document["pre-vote"]) == (Exit.CLEAN, "n1", False)


def test_a_boolean_alone_is_true_and_takes_nothing_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run(capsys, "config", "show", "--json", "--uvloop", "--name", "n1")[1])
    assert document["uvloop"] is True
    assert document["name"] == "n1"
    assert run(capsys, "config", "show", "--uvloop", "false")[0] == Exit.CONFIGURATION  # as in Go: a stray argument


def test_config_show_says_where_values_come_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_LOGGER", "zap")
    monkeypatch.setenv("OARLOCK_LOG_LEVEL", "debug")
    code, out, err = run(capsys, "config", "show", "--origin", "--name=n1")
    assert code == Exit.CLEAN
    assert "# environment OARLOCK_LOG_LEVEL" in out and "# flag --name" in out
    assert "ETCD_LOGGER" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == Exit.CLEAN
    assert "_OARLOCK_COMPLETE" in out and f"{shell}_complete" in out


@pytest.mark.parametrize(
    ("words", "position", "completed"),
    [
        ("oarlock config show --unknown --initial-cluster-", "4", "--initial-cluster-token"),
        ("oarlock ver", "1", "version"),
        ("oarlock wal", "1", "wal"),
    ],
)
def test_completion_completes(words: str, position: str, completed: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "_OARLOCK_COMPLETE": "bash_complete"}
    environ |= {"COMP_WORDS": words, "COMP_CWORD": position}
    ran = subprocess.run(
        [sys.executable, "-c", "from oarlock.cli import main; main()"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert f"plain,{completed}" in ran.stdout.splitlines(), ran.stderr


def test_a_cold_start_imports_little() -> None:
    """`oarlock version` in a shell loop must not pay for asyncio, TLS, rich or the server."""
    code = (
        "import sys; from oarlock.cli.app import main; main(['version']); main(['--help']);"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=200, check=True
    )
    loaded = set(ran.stderr.split())
    assert "click" in loaded and "oarlock.cli.version" in loaded
    for unwanted in (
        "asyncio",
        "ssl",
        "rich",
        "msgspec",
        "starlette",
        "uvicorn",
        "lmdb",
        "google.protobuf",
        "oarlock.config",
    ):
        assert unwanted not in loaded, unwanted


def test_a_closed_pipe_is_no_error() -> None:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = f"{sys.executable} -m oarlock config show --origin | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=200)
    assert ran.stderr == ""
