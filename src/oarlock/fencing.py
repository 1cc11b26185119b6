"""Fencing: how what is written to refuses a writer whose lock has passed to somebody else.

A lock's token grows with every holder. A writer sends its token along; whoever keeps the data keeps the greatest token
that it has seen, and refuses smaller ones. That, and not the lock, is what makes a paused writer harmless.
(Kleppmann, "How to do distributed locking", 2016.)
"""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from typing import Any, Final, Protocol

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TABLE: Final = "oarlock_fencing"


TOKEN_DIGITS: Final = 20
TOKEN_MAX: Final = 2**63 - 1  # what a database holds


def check_token(token: object) -> None:
    """Raises `TypeError` or `ValueError` for what is no fencing token, and would be compared as nonsense."""
    if not isinstance(token, int) or isinstance(token, bool):
        raise TypeError(f"token={token!r}: a fencing token is an int, as `held.token`")
    if not 0 <= token <= TOKEN_MAX:
        raise ValueError(f"token={token}: a fencing token is between 0 and 2**63 - 1")


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
    check_token(token)
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
    check_token(token)
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
    check_token(token)
    target = Path(os.path.realpath(path))  # a link stays one
    marker = target.with_name(target.name + ".token")
    with open(marker, "r+b", opener=_create) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read(TOKEN_DIGITS + 1).strip()
        if text and not text.isdigit():
            raise RuntimeError(f"{marker} holds no token but {text!r}: put the greatest token there, or delete it")
        seen = int(text or b"0")
        if seen > token:
            raise Fenced(str(target), token, seen)
        new = target.with_name(target.name + ".new")  # ours alone: we hold the lock. One that a crash left is replaced
        try:
            with open(new, "wb") as content:
                if target.exists():
                    os.fchmod(content.fileno(), stat.S_IMODE(target.stat().st_mode))
                content.write(data)
                content.flush()
                os.fsync(content.fileno())
            file.seek(0)
            file.write(b"%0*d" % (TOKEN_DIGITS, token))  # never shorter than before: no moment without a token
            file.flush()
            os.fsync(file.fileno())  # the token first: a crash between the two refuses the old writer for nothing
            os.replace(new, target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)
