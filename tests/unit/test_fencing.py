"""Whoever keeps the data refuses a writer whose lock has passed on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from oarlock.fencing import Fenced, check_postgresql, check_sqlite, write_file


def test_sqlite_refuses_an_older_token(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    with pytest.raises(RuntimeError, match="BEGIN IMMEDIATE"):
        check_sqlite(connection, "job", 5)

    def write(token: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            check_sqlite(connection, "job", token)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    write(5)
    write(5)
    write(9)
    with pytest.raises(Fenced, match="token 5 is of a lock that has passed on") as error:
        write(5)
    assert (error.value.token, error.value.seen) == (5, 9)
    write(10)
    connection.close()


class FakeCursor:
    """What the one statement does in PostgreSQL."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.row: tuple[int] = (0,)
        self.statements: list[str] = []

    def execute(self, query: Any, params: Any = ()) -> None:
        self.statements.append(query)
        name, token = params
        self.tokens[name] = max(token, self.tokens.get(name, token))
        self.row = (self.tokens[name],)

    def fetchone(self) -> tuple[int]:
        return self.row


def test_postgresql_is_asked_in_one_statement() -> None:
    cursor = FakeCursor()
    check_postgresql(cursor, "job", 7)
    with pytest.raises(Fenced):
        check_postgresql(cursor, "job", 6)
    assert len(cursor.statements) == 2 and "GREATEST" in cursor.statements[0]


def test_a_file_refuses_an_older_token(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_file(path, b"one", 3)
    write_file(path, b"two", 4)
    with pytest.raises(Fenced):
        write_file(path, b"late", 3)
    assert path.read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path)) == ["out", "out.token"], "no temporary file is left"
