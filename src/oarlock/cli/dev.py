"""`oarlock dev`: a cluster for development on this machine, up until Ctrl-C.

Members of the server, or copies of a program that embeds a node (`oarlock dev -- python app.py {name}`). Ports are free
ones on the loopback address; with `--data-dir` they and the data stay, else both are gone with the command. No process
outlives it, also when it is killed.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import click

from oarlock.cli.local_cluster import (
    ClusterError,
    LocalCluster,
    MemberProcess,
    Program,
    free_ports,
    oarlock_program,
)
from oarlock.errors import ConfigurationError

MEMBERS_MAX: Final = 9
FILE: Final = "dev.json"
"""In `--data-dir`: the ports of the members, which are part of who they are."""

POLL_SECONDS: Final = 0.5
STATUS_SECONDS: Final = 1.0
STOP_SECONDS: Final = 10.0
READY_SECONDS: Final = 120.0  # of a busy machine; Ctrl-C ends the wait
LINE_CHARS_MAX: Final = 4_000
_FIELDS: Final = re.compile(r"\{(name|peers|address|data_dir)\}")


@dataclass(frozen=True, slots=True)
class Row:
    """One member as it is shown. `role` is `leader`, `follower`, `no answer`, `running` (a program) or `down`."""

    name: str
    address: str
    pid: int
    role: str
    exit_code: int | None = None
    term: int = 0
    index: int = 0
    db_bytes: int = 0

    def changed(self, other: Row) -> bool:
        """Whether there is something new to say, beyond figures that go up."""
        return (self.role, self.pid, self.term, self.exit_code) != (other.role, other.pid, other.term, other.exit_code)


class Group(Protocol):
    """What is started: members of the server, or copies of a program."""

    def start(self) -> None: ...

    def rows(self) -> list[Row]: ...

    def ready(self) -> dict[str, Any]:
        """What programs want to know, as JSON has it."""

    def close(self) -> None: ...


def layout(directory: Path, members: int, kind: str) -> list[int]:
    """Two ports for each member: those of the last time if the directory has been used. Raises `ConfigurationError`."""
    path = directory / FILE
    if path.exists():
        try:
            known = json.loads(path.read_text())
            ports, made_for = [int(port) for port in known["ports"]], str(known["kind"])
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}): remove {directory}, or give another") from error
        if len(ports) != 2 * members or made_for != kind:
            raise ConfigurationError(
                f"{directory} was made for {len(ports) // 2} members of {made_for}: give --members={len(ports) // 2}, "
                "or another directory"
            )
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ConfigurationError(
                        f"port {port} of the members in {directory} is taken: does another `oarlock dev` run there?"
                    ) from error
        return ports
    ports = free_ports(2 * members)
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, "ports": ports}))
    return ports


class Servers:
    """Members of the server."""

    def __init__(self, program: Program, members: int, directory: Path, ports: Sequence[int], *, kept: bool) -> None:
        self._kept = kept
        self.cluster = LocalCluster(
            program, members, directory=directory, token=f"dev-{ports[0]}", prefix="n", ports=ports
        )

    def start(self) -> None:
        self.cluster.start(ready_seconds=READY_SECONDS)

    def rows(self) -> list[Row]:
        return [_row(member) for member in self.cluster.members]

    def ready(self) -> dict[str, Any]:
        urls = [member.client_url for member in self.cluster.members]
        return {
            "endpoints": urls,
            "environment": {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": ",".join(urls)},
            "logs": [str(member.log_path) for member in self.cluster.members],
        }

    def close(self) -> None:
        if self._kept:  # nobody looks at a directory that goes away
            running = [member for member in self.cluster.members if member.running]
            for member in running:
                member.signal(signal.SIGTERM)
            with contextlib.suppress(ClusterError):
                for member in running:
                    member.wait_exit(seconds=STOP_SECONDS)
        self.cluster.close()


def _row(member: MemberProcess) -> Row:
    if not member.running:
        return Row(member.name, member.client_url, 0, "down", member.exit_code)
    connection = http.client.HTTPConnection("127.0.0.1", member.client_port, timeout=STATUS_SECONDS)
    try:
        connection.request("POST", "/v3/maintenance/status", "{}", {"Content-Type": "application/json"})
        said = json.loads(connection.getresponse().read())
        return Row(
            member.name,
            member.client_url,
            member.pid,
            "leader" if said.get("leader") == said["header"]["member_id"] else "follower",
            term=int(said.get("raftTerm", 0)),
            index=int(said.get("raftIndex", 0)),
            db_bytes=int(said.get("dbSize", 0)),
        )
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return Row(member.name, member.client_url, member.pid, "no answer")
    finally:
        connection.close()


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _FIELDS.sub(lambda found: values[found[1]], text)


class Copies:
    """Copies of a program that embeds a node. What they print is told line by line, with their names before it."""

    def __init__(
        self, command: Sequence[str], members: int, directory: Path, ports: Sequence[int],
        told: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._command = command
        self._directory = directory
        self._told = told
        self.names = [f"n{number + 1}" for number in range(members)]
        self.addresses = [f"127.0.0.1:{ports[2 * number]}" for number in range(members)]
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        # Only for how it starts processes: they are tied to the life of this one.
        self._launcher = LocalCluster(Program("dev", ("true",)), 1, directory=directory, ports=ports[:2])

    @property
    def peers(self) -> str:
        return ",".join(f"{name}={address}" for name, address in zip(self.names, self.addresses, strict=True))

    def start(self) -> None:
        for name, address in zip(self.names, self.addresses, strict=True):
            data_dir = str(self._directory / f"{name}.data")
            values = {"name": name, "peers": self.peers, "address": address, "data_dir": data_dir}
            command = [_filled(each, values) for each in self._command]
            environment = {f"OARLOCK_NODE_{key.upper()}": value for key, value in values.items()}
            process = self._launcher.launch_text(command, {**environment, "PYTHONUNBUFFERED": "1"})
            self._processes.append(process)
            assert process.stdout is not None
            reader = threading.Thread(target=self._read, args=(name, process.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, name: str, output: IO[str]) -> None:
        for line in iter(lambda: output.readline(LINE_CHARS_MAX), ""):
            self._told(name, line.rstrip("\n"))

    def rows(self) -> list[Row]:
        rows = []
        for name, address, process in zip(self.names, self.addresses, self._processes, strict=False):
            code = process.poll()
            rows.append(
                Row(name, address, process.pid if code is None else 0, "down" if code is not None else "running", code)
            )
        return rows

    def ready(self) -> dict[str, Any]:
        return {"endpoints": self.addresses, "environment": {"OARLOCK_NODE_PEERS": self.peers}, "logs": []}

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process, reader in zip(self._processes, self._readers, strict=True):
            reader.join(STOP_SECONDS)
            if process.stdout is not None and not reader.is_alive():
                process.stdout.close()
        self._launcher.close()


class Show:
    """Where news goes: JSON lines, or text; at a terminal, with rich, a table that stays up to date."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._lock = threading.Lock()
        self._last: dict[str, Row] = {}
        self._live: Any = None

    @contextlib.contextmanager
    def table(self) -> Iterator[None]:
        if self._json or not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
            yield
            return
        from rich.live import Live

        with Live(refresh_per_second=4, transient=False) as self._live:
            yield
        self._live = None

    def line(self, name: str, text: str) -> None:
        """A line that a program printed."""
        with self._lock:
            if self._json:
                click.echo(json.dumps({"event": "output", "member": name, "line": text}))
            elif self._live is not None:
                self._live.console.print(f"{name} | {text}", markup=False, highlight=False)
            else:
                click.echo(f"{name} | {text}")

    def ready(self, directory: str, found: Mapping[str, Any]) -> None:
        with self._lock:
            if self._json:
                click.echo(json.dumps({"event": "ready", "directory": directory, **found}))
                return
            lines = [f"directory {directory}", *(f"log       {each}" for each in found["logs"]), ""]
            lines += [f"export {name}={value}" for name, value in found["environment"].items()]
            click.echo("\n".join([*lines, "", "up until Ctrl-C"]))

    def rows(self, rows: Sequence[Row]) -> None:
        news = [row for row in rows if row.name not in self._last or row.changed(self._last[row.name])]
        self._last = {row.name: row for row in rows}
        with self._lock:
            if self._live is not None:
                self._live.update(_rich_table(rows))
            elif news and self._json:
                click.echo(json.dumps({"event": "status", "members": [asdict(row) for row in rows]}))
            else:
                for row in news:
                    click.echo(_text(row))


def _text(row: Row) -> str:
    if row.role == "down":
        return f"{row.name} {row.address} down (exit code {row.exit_code})"
    term = f" term {row.term}" if row.term else ""
    return f"{row.name} {row.address} {row.role}{term} pid {row.pid}"


def _rich_table(rows: Sequence[Row]) -> Any:
    from rich.table import Table

    table = Table("member", "address", "role", "term", "index", "db MB", "pid")
    for row in rows:
        style = {"leader": "bold green", "down": "red", "no answer": "yellow"}.get(row.role, "")
        role = f"down ({row.exit_code})" if row.role == "down" else row.role
        figures = (str(row.term or ""), str(row.index or ""), f"{row.db_bytes / 1e6:.1f}" if row.db_bytes else "")
        table.add_row(row.name, row.address, role, *figures, str(row.pid or ""), style=style)
    return table


class _Told:
    """Whether Ctrl-C or SIGTERM came. While members start it is raised as `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.starting = True

    def signalled(self, number: int, frame: object) -> None:
        self.event.set()
        if self.starting:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _told_to_end() -> Iterator[_Told]:
    told = _Told()
    before = {number: signal.signal(number, told.signalled) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(name="dev", context_settings={"ignore_unknown_options": False})
@click.option("--members", type=click.IntRange(1, MEMBERS_MAX), default=3, show_default=True, help="How many.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep data and ports in this directory, and go on from there the next time. [default: thrown away]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: `ready`, then `status` at each change.")
@click.option(
    "--flag", "flags", multiple=True, metavar="FLAG", help="A flag for every member, such as --flag=--read-mode=lease."
)
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def dev(*, members: int, data_dir: Path | None, as_json: bool, flags: tuple[str, ...], program: tuple[str, ...]) -> int:
    """A cluster for development on this machine, up until Ctrl-C.

    Prints the endpoints and lines to export, and shows how each member is. Without PROGRAM the members are servers:

    \b
        oarlock dev
        oarlock dev --members 5 --data-dir ./dev

    PROGRAM is one that embeds a node, of which each member runs a copy. In its arguments {name}, {peers}, {address} and
    {data_dir} stand for those of the member; they are in OARLOCK_NODE_NAME, OARLOCK_NODE_PEERS, ... too.

    \b
        oarlock dev -- python counter.py {name}
    """
    if program and flags:
        raise click.UsageError("--flag is for servers; give the program its arguments after it")
    show = Show(as_json=as_json)
    with ExitStack() as stack:
        told = stack.enter_context(_told_to_end())
        if data_dir is None:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="oarlock-dev-", ignore_cleanup_errors=True))
            )
        else:
            directory = data_dir.absolute()
        ports = layout(directory, members, Path(program[0]).name if program else "oarlock")
        group: Group
        if program:
            group = Copies(program, members, directory, ports, show.line)
        else:
            group = Servers(oarlock_program().with_flags(*flags), members, directory, ports, kept=data_dir is not None)
        stack.callback(group.close)
        try:
            group.start()
        except ClusterError as error:
            click.echo(f"error: {error}", err=True)
            return 1
        told.starting = False
        show.ready(str(directory), group.ready())
        with show.table():
            while not told.event.wait(POLL_SECONDS):
                rows = group.rows()
                show.rows(rows)
                if all(row.role == "down" for row in rows):
                    click.echo("error: no member runs any more", err=True)
                    return 1
    return 0
