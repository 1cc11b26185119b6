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


def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target)
    write_file(link, b"new", 1)
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    os.umask(before := os.umask(0o022))
    write_file(tmp_path / "fresh", b"x", 1)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o666 & ~before


def test_there_is_no_moment_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a crash leaves between any two steps, an older writer is refused."""
    target = tmp_path / "file"
    write_file(target, b"new", 123456)
    marker = tmp_path / "file.token"
    sizes = {marker.stat().st_size}
    seen: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(marker.read_bytes())
        sizes.add(marker.stat().st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(target, b"newer", 2**63 - 1)
    write_file(target, b"newest", 2**63 - 1)
    assert len(sizes) == 1 and all(int(each) >= 123456 for each in seen)
    with pytest.raises(Fenced):
        write_file(target, b"old", 123456)

    def broken(descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        write_file(target, b"lost", 2**63 - 1)
    assert target.read_bytes() == b"newest"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "file.token"]


def test_a_marker_of_an_older_version_or_of_somebody_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    marker = tmp_path / "file.token"
    marker.write_bytes(b"77")
    with pytest.raises(Fenced):
        write_file(target, b"x", 76)
    write_file(target, b"x", 78)
    assert int(marker.read_bytes()) == 78
    marker.write_bytes(b"secret notes")
    with pytest.raises(RuntimeError, match="no token"):
        write_file(target, b"x", 79)


@pytest.mark.parametrize("token", [-1, 2**63, 1.5, float("nan"), "7", None, True])
def test_what_is_no_token_is_refused(tmp_path: Path, token: Any) -> None:
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    for check in (
        lambda: check_sqlite(connection, "job", token),
        lambda: check_postgresql(None, "job", token),  # type: ignore[arg-type]
        lambda: write_file(tmp_path / "file", b"x", token),
    ):
        with pytest.raises((TypeError, ValueError), match="fencing token"):
            check()
    connection.close()
