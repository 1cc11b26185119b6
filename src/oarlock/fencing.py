"""Fencing: how what is written to refuses a writer whose lock has passed to somebody else.

A lock's token grows with every holder. A writer sends its token along; whoever keeps the data keeps the greatest token
that it has seen, and refuses smaller ones. That, and not the lock, is what makes a paused writer harmless.
(Kleppmann, "How to do distributed locking", 2016.)
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, Final, Protocol

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TABLE: Final = "oarlock_fencing"


class Fenced(Exception):
    """A greater token has been seen: the caller's lock was given to somebody else. Nothing was written."""

    def __init__(self, name: str, token: int, seen: int) -> None:
        super().__init__(f"{name!r} was written with token {seen}: token {token} is of a lock that has passed on")
        self.token = token
        self.seen = seen


def check_sqlite(connection: sqlite3.Connection, name: str, token: int) -> None:
    """Within the transaction that writes: raise `Fenced` if a greater token was seen for `name`, or remember this one.

    The connection must be in a transaction that can write (`BEGIN IMMEDIATE`), so that nobody comes between.
    """
    if not connection.in_transaction:
        raise RuntimeError("check_sqlite belongs into the transaction that writes: begin it first (BEGIN IMMEDIATE)")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (name TEXT PRIMARY KEY, token INTEGER NOT NULL)")
    row = connection.execute(f"SELECT token FROM {TABLE} WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is not None and row[0] > token:
        raise Fenced(name, token, row[0])
    connection.execute(
        f"INSERT INTO {TABLE} (name, token) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET token = excluded.token",  # noqa: S608
        (name, token),
    )


class Cursor(Protocol):
    """What of a DB-API cursor is used (`psycopg`, `psycopg2`)."""

    def execute(self, query: Any, params: Any = ..., /) -> Any: ...
    def fetchone(self) -> Any: ...


POSTGRESQL_TABLE: Final = f"CREATE TABLE IF NOT EXISTS {TABLE} (name text PRIMARY KEY, token bigint NOT NULL)"
"""To be run once, by whoever sets the database up."""


def check_postgresql(cursor: Cursor, name: str, token: int) -> None:
    """Within the transaction that writes: raise `Fenced` if a greater token was seen for `name`, or remember this one.

    One statement that also locks the row until the transaction ends, so two writers cannot pass each other.
    """
    cursor.execute(
        f"INSERT INTO {TABLE} (name, token) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET token = "  # noqa: S608
        f"GREATEST({TABLE}.token, EXCLUDED.token) RETURNING token",
        (name, token),
    )
    seen = cursor.fetchone()[0]
    if seen > token:
        raise Fenced(name, token, seen)


def write_file(path: str | os.PathLike[str], data: bytes, token: int) -> None:
    """Replace a file, atomically and durably, unless it was written with a greater token (`Fenced`).

    The token stands in `PATH.token`; a lock on that file keeps writers of this machine apart.
    """
    if fcntl is None:
        raise RuntimeError("write_file needs file locks (fcntl), which this system does not have")
    target = Path(path)
    marker = target.with_name(target.name + ".token")
    with open(marker, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        seen = int(file.read() or b"0")
        if seen > token:
            raise Fenced(str(target), token, seen)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as new:
            try:
                new.write(data)
                new.flush()
                os.fsync(new.fileno())
                file.seek(0)
                file.truncate()
                file.write(b"%d" % token)
                file.flush()
                os.fsync(file.fileno())  # the token first: a crash between the two refuses the old writer for nothing
                os.replace(new.name, target)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
