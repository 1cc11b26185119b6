"""Members of a Patroni cluster as real processes: the example's own configuration, PostgreSQL below it.

PostgreSQL refuses to run as root. There, members run as another user, to whom `setpriv` leaves the capability to read
everything: the interpreter may be under /root.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
import pytest
from tests.support.environments import ROOT, environment

from oarlock.cli.local_cluster import free_ports, wait_until

EXAMPLE = ROOT / "examples" / "patroni" / "patroni.yml"
PASSWORD = "change-me-1"
LOG_TAIL = 3000
DEBIAN = Path("/usr/lib/postgresql")
GONE_SECONDS = 30


def postgresql_programs() -> Path:
    """The directory of `postgres`, `initdb` and `pg_rewind`: the newest that Debian's packages brought, else PATH's."""
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return Path(found).resolve().parent


class PatroniMember:
    """One member: Patroni with PostgreSQL below it."""

    def __init__(self, cluster: PatroniCluster, name: str, api_port: int, sql_port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.api_port = api_port
        self.sql_port = sql_port
        self.data = cluster.directory / name
        self.log = cluster.directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment | {
            "PATRONI_NAME": self.name,
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{self.api_port}",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"127.0.0.1:{self.api_port}",
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{self.sql_port}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"127.0.0.1:{self.sql_port}",
            "PATRONI_POSTGRESQL_DATA_DIR": str(self.data),
            "PATRONI_POSTGRESQL_PGPASS": str(self.cluster.directory / f"{self.name}.pgpass"),
        }

    def start(self) -> None:
        command = [*self.cluster.as_user, str(self.cluster.programs / "patroni"), str(self.cluster.configuration)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.environment,
                start_new_session=True, cwd=self.cluster.directory,
            )  # fmt: skip

    def postgres(self) -> list[psutil.Process]:
        """PostgreSQL's processes: all of them work in the data directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.data):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL for Patroni and PostgreSQL, as if the machine lost power; returns when all are gone."""
        if self._process is not None:
            for process in psutil.Process(self._process.pid).children(recursive=True) if self.running else ():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._process.kill()
            self._process.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while left := self.postgres():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            assert time.monotonic() < deadline, f"{left} survive SIGKILL"
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """What `GET /patroni` says; empty while nobody answers."""
        return self._ask("/patroni") or {}

    def leads(self) -> bool:
        """Whether the member says that it is the primary and has the leader's lock."""
        return self._ask("/primary") is not None

    def synchronous(self) -> bool:
        """Whether the member says that it is a replica without which no row is acknowledged."""
        return self._ask("/synchronous") is not None

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """As the superuser, each statement a transaction of its own. Raises `psycopg.OperationalError`."""
        return psycopg.connect(
            host="127.0.0.1", port=self.sql_port, dbname="postgres", user="postgres", password=PASSWORD,
            autocommit=True, connect_timeout=10,
        )  # fmt: skip

    def _ask(self, path: str) -> dict[str, Any] | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body) if answer.status == 200 or path == "/patroni" else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()


class PatroniCluster:
    """A context manager: leaving it ends every process and removes what they wrote."""

    def __init__(self, endpoints: Sequence[str], size: int, changes: Mapping[str, str]) -> None:
        self.programs = environment("patroni")
        self.directory = Path(tempfile.mkdtemp(prefix="patroni-"))
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("PATRONI_", "PG", "ETCD"))
        } | {
            "PATRONI_ETCD3_HOSTS": ",".join(endpoints),
            "PATRONI_POSTGRESQL_BIN_DIR": str(postgresql_programs()),
            "PATRONICTL_CONFIG_FILE": str(self.directory / "patroni.yml"),
            "HOME": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }
        self.environment.pop("PYTHONPATH", None)
        self.as_user: tuple[str, ...] = ("setpriv", "--pdeathsig", "KILL", "--")
        self.configuration = self.directory / "patroni.yml"
        text = EXAMPLE.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{EXAMPLE} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        self.configuration.write_text(text)
        if os.geteuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = names.get("postgres", names["nobody"])
            self.as_user = (
                "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
                "--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search",
                "--pdeathsig", "KILL", "--",
            )  # fmt: skip
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self.numbers = itertools.count()  # of rows: never one twice
        ports = free_ports(2 * size)
        self.members = [
            PatroniMember(self, f"pg{n + 1}", ports[2 * n], ports[2 * n + 1]) for n in range(size)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def logs(self) -> str:
        return "\n".join(
            f"--- {member.name}\n{member.log.read_text()[-LOG_TAIL:]}" for member in self.members if member.log.exists()
        )

    def primary(self, *, seconds: float, other_than: PatroniMember | None = None) -> PatroniMember:
        """The member that leads; waits for one."""
        found: list[PatroniMember] = []

        def look() -> bool:
            found[:] = [member for member in self.members if member is not other_than and member.leads()]
            return len(found) == 1

        wait_until(look, seconds, "one PostgreSQL primary")
        return found[0]

    def patronictl(self, *arguments: str) -> str:
        command = [str(self.programs / "patronictl"), "-c", str(self.configuration), *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout


class Writer:
    """Inserts rows one after the other, each in a transaction of its own, wherever the primary is; it knows which were
    acknowledged."""

    def __init__(self, cluster: PatroniCluster) -> None:
        self.acknowledged: list[int] = []
        self._cluster = cluster
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a row waits for more than a minute"

    def wait_more(self, count: int, *, seconds: float) -> None:
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted, seconds, f"{count} more acknowledged rows")

    def _run(self) -> None:
        while not self._end.wait(0.1):
            for member in self._cluster.members:
                if not member.running or not member.leads():
                    continue
                with contextlib.suppress(psycopg.Error), member.connect() as connection:
                    while not self._end.wait(0.01):
                        number = next(self._cluster.numbers)
                        connection.execute("INSERT INTO rows VALUES (%s)", (number,))
                        self.acknowledged.append(number)
