"""Documentation is tested like code: generated pages are fresh, names are complete, and every block of shell runs.

Blocks fenced as `bash` run, in order, page by page; `console` blocks are transcripts with other people's hosts in them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import click
import pytest

from oarlock.cli import local_cluster
from oarlock.cli.app import COMMANDS, cli
from oarlock.cli.exits import MEANINGS, Exit
from oarlock.cli.options import ConfiguredCommand
from oarlock.config import OPTIONS, load, reference, validate

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
SCRIPT_SECONDS = 100

needs_etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed (etcd-client)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def consecutive_free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free now. Below the range from which the kernel serves outgoing
    connections, or one of those could take a port before the script does."""
    for first in random.Random().sample(range(10_240, 32_000), 1000):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError(f"no {count} free ports in a row")


def end_session(leader: int) -> None:
    """Kill whatever the session of `leader` still runs and wait until it is gone. With `set -m` every job has a process
    group of its own, so killing the leader's group would not do."""
    deadline = time.monotonic() + 10
    while living := session_members(leader):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"processes {living} survive SIGKILL"
        time.sleep(0.01)


def session_members(leader: int) -> list[int]:
    """Processes of the session that are not dead yet."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # after the name in parentheses, which may hold anything: state, parent, group, session
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found


def run_script(script: str, directory: Path, environ: dict[str, str] | None = None) -> str:
    """Run a bash script with `oarlock` on its PATH, in a session that does not outlive this call."""
    programs = directory / ".programs"
    programs.mkdir()
    (programs / "oarlock").write_text(f'#!/bin/sh\nexec {sys.executable} -m oarlock "$@"\n')
    (programs / "oarlock").chmod(0o755)
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("OARLOCK_", "ETCD"))}
    with (directory / ".out").open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory,
            env={**kept, "PATH": f"{programs}:{kept['PATH']}", "PYTHONPATH": str(ROOT / "src"), **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | str = process.wait(SCRIPT_SECONDS)
    except subprocess.TimeoutExpired:
        code = f"still running after {SCRIPT_SECONDS} s"
    finally:
        end_session(process.pid)
        process.wait()
    output = (directory / ".out").read_text()
    logs = "".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(directory.glob("**/*.log")))
    assert code == 0, f"exit {code}\n{output}\n{logs}"
    return output


def test_the_configuration_reference_is_fresh() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text()
    assert page == reference.render(), "docs/reference/configuration.md is stale: run `make bless` and read the diff"


def test_every_option_is_in_the_configuration_reference() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text()
    for option in OPTIONS:
        assert f"| `{option.flag}`" in page and option.help in page and option.environment in page


def commands(group: click.Group, prefix: str) -> list[tuple[str, click.Command]]:
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found.append((f"{prefix} {name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{prefix} {name}")
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    page = (DOCS / "reference" / "cli.md").read_text()
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    below = commands(command, f"oarlock {name}") if isinstance(command, click.Group) else []
    for path, found in [(f"oarlock {name}", command), *below]:
        assert path in page, f"docs/reference/cli.md does not mention `{path}`"
        assert found.help, f"`{path}` has no help"
        table = (
            {option.flag for option in OPTIONS} | {"--config-file"} if isinstance(found, ConfiguredCommand) else set()
        )
        for param in found.params:
            if not isinstance(param, click.Option) or param.hidden or param.opts[0] in table:
                continue
            assert f"`{param.opts[0]}" in page, f"docs/reference/cli.md does not mention `{path} {param.opts[0]}`"


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "reference" / "cli.md").read_text()
    assert set(MEANINGS) == set(Exit)
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in page


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "explanation" / "dependencies.md").read_text()
    extras = project["optional-dependencies"]
    wanted = [("(core)", text) for text in project["dependencies"]]
    wanted += [(extra, text) for extra in ("server", "cli", "speed", "dask") for text in extras[extra]]
    for extra, text in wanted:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)(;.*)?", text)
        assert match, f"{text}: a lower bound is wanted"
        rows = [line for line in page.splitlines() if line.startswith(f"| {match[1]} |")]
        assert len(rows) == 1, f"docs/explanation/dependencies.md must have one row for {match[1]}"
        cells = [cell.strip() for cell in rows[0].split("|")]
        assert extra in cells[2] and cells[3] == match[2], f"{text} in {extra} against {rows[0]}"


def test_the_readme_begins_with_two_commands() -> None:
    first = re.search(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make run", "make test"]


def test_make_has_the_targets_that_pages_name() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z]+)`", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(
        r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    ):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_changelog_fragments_have_a_kind() -> None:
    for fragment in (ROOT / "changelog.d").iterdir():
        if fragment.name != "README.md":
            assert re.fullmatch(r"[\w-]+\.(safety|format|added|changed|fixed|faster)\.md", fragment.name), fragment.name


def test_the_unit_files_configuration_is_valid(tmp_path: Path) -> None:
    [text] = blocks(DOCS / "how-to" / "run-with-systemd.md", "toml")
    file = tmp_path / "oarlock.toml"
    file.write_text(text)
    config = validate(load({"config-file": str(file)}, {}))
    assert [name for name, _ in config.initial_cluster] == ["alpha", "beta", "gamma"]


def test_how_to_replace_etcd_runs(tmp_path: Path) -> None:
    output = run_script("\n".join(blocks(DOCS / "how-to" / "replace-etcd.md", "bash")), tmp_path)
    assert "# flag --initial-cluster" in output


@pytest.mark.system
@needs_etcdctl
def test_the_readmes_ten_lines_run(tmp_path: Path) -> None:
    client, peer = (f"http://127.0.0.1:{port}" for port in local_cluster.free_ports(2))
    # the page uses the default ports; here the environment moves them, and the page's own lines stay as they are
    environ = {
        "OARLOCK_LISTEN_CLIENT_URLS": client,
        "OARLOCK_ADVERTISE_CLIENT_URLS": client,
        "OARLOCK_LISTEN_PEER_URLS": peer,
        "OARLOCK_INITIAL_ADVERTISE_PEER_URLS": peer,
        "ETCDCTL_ENDPOINTS": client.removeprefix("http://"),
    }
    [script] = blocks(ROOT / "README.md", "bash")
    assert len(script.splitlines()) == 10
    output = run_script("set -m\n" + script, tmp_path, environ)
    for line in ("OK", "hello", "greeting"):
        assert line in output.splitlines(), output
    assert output.splitlines().count("hello") == 3, output  # the first get, the previous value, the old revision


@pytest.mark.system
@needs_etcdctl
def test_the_tutorial_runs(tmp_path: Path) -> None:
    script = "\n".join(blocks(DOCS / "tutorial" / "three-members.md", "bash"))
    written = sorted(set(re.findall(r"\b[123]23(?:79|80)\b", script)))
    assert len(written) == 6
    for old, new in zip(written, local_cluster.free_ports(6), strict=True):
        script = re.sub(rf"\b{old}\b", str(new), script)
    run_script(script, tmp_path)


@pytest.mark.slow
def test_the_tutorial_on_machines_finds_its_bug(tmp_path: Path) -> None:
    """The page's own code: the machine, its tests, the failure that is shown, and the repair that ends it."""
    page = DOCS / "tutorial" / "test-your-machine.md"
    machine, test, dump, members = blocks(page, "python")
    (tmp_path / "shop.py").write_text(machine)
    assert len([line for line in machine.splitlines() if line.strip()]) <= 32
    (tmp_path / "test_shop.py").write_text(test)

    def pytest_says(*files: str) -> tuple[int, str]:
        program = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "oarlock.pytest_plugin",
            *files,
        ]
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, output = pytest_says("test_shop.py")
    assert code == 1, output
    [shown] = blocks(page, "console")
    for line in shown.splitlines()[1:]:
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        assert re.search(pattern, output), f"the page shows {line!r}, which is not in\n{output}"
    broken = machine[machine.index("    def dump") :]
    (tmp_path / "shop.py").write_text(machine.replace(broken, textwrap.indent(dump, "    ")))
    (tmp_path / "test_members.py").write_text(members)
    code, output = pytest_says("test_shop.py", "test_members.py")
    assert code == 0, output


@pytest.mark.system
@needs_etcdctl
def test_the_shell_example_runs(tmp_path: Path) -> None:
    base = consecutive_free_ports(6)
    output = run_script(f"{ROOT}/examples/three_members.sh {tmp_path}", tmp_path, {"BASE_PORT": str(base)})
    assert "good day" in output and "stopped" in output


@pytest.mark.system
def test_the_python_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    client, peer = local_cluster.free_ports(2)
    urls = {"listen-client": client, "advertise-client": client, "listen-peer": peer, "initial-advertise-peer": peer}
    flags = " ".join(f"--{name}-urls=http://127.0.0.1:{port}" for name, port in urls.items())
    script = f"""
    oarlock serve --data-dir data {flags} 2>n.log >n.out &
    {sys.executable} {ROOT}/examples/python_client.py 127.0.0.1:{client}
    kill -TERM $!
    wait $!
    """
    output = run_script(script, tmp_path)
    assert "greeting = hello" in output
    assert "counter [1, 2, 3]" in output


@pytest.mark.system
def test_a_failing_script_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit 1"):
        run_script("set -m\nsleep 1000 &\necho $! > pid\nfalse", tmp_path)
    pid = int((tmp_path / "pid").read_text())
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or " Z " in stat.read_text()


def test_every_example_is_run_by_a_test() -> None:
    tests = [Path(__file__), *(ROOT / "tests" / "system").glob("*.py")]
    text = "".join(test.read_text() for test in tests)
    for example in sorted((ROOT / "examples").rglob("*")):
        name = example.relative_to(ROOT).as_posix()
        if example.is_file() and example.suffix not in (".md", ".pyc"):
            assert name in text, f"no test runs {name}"


def test_every_name_of_the_library_is_in_its_reference() -> None:
    import oarlock
    import oarlock.sync

    text = (DOCS / "reference" / "library.md").read_text()
    for name in sorted({*oarlock.__all__, *oarlock.sync.__all__}):
        assert re.search(rf"`[^`]*\b{name}\b", text) or f"## {name}" in text or f"@{name}" in text, name
