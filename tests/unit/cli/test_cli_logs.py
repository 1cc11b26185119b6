"""Log lines: fields, JSON, secrets, and values that try to look like lines of their own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from oarlock.cli import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, ours = logging.getLogger(), logging.getLogger("oarlock")
    before = (list(root.handlers), root.level, ours.level)
    yield io.StringIO()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_text_lines_carry_fields(stream: io.StringIO) -> None:
    logs.set_up("info", "text", stream)
    logging.getLogger("oarlock.node.runtime").info("became %s", "leader", extra={"term": 7, "peer": "a b"})
    line = stream.getvalue()
    assert line.endswith('Z info  node.runtime became leader term=7 peer="a b"\n'), line


def test_json_lines_are_objects(stream: io.StringIO) -> None:
    logs.set_up("debug", "json", stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("oarlock.x").exception("failed", extra={"term": 7, "msg_size": 3})
    document = json.loads(stream.getvalue())
    assert document["level"] == "error"
    assert (document["msg"], document["term"], document["msg_size"]) == ("failed", 7, 3)
    assert "ValueError: boom" in document["trace"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_hidden(stream: io.StringIO, form: str) -> None:
    logs.set_up("info", form, stream)
    log = logging.getLogger("oarlock.x")
    log.info("dial http://root:hunter2@host:1 password=hunter2 token: hunter2", extra={"auth_token": "hunter2"})
    log.info("x", extra={"url": "https://u:hunter2@h", "password": "hunter2"})
    log.info("Authorization: Bearer hunter2")
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        log.exception("y")
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(logs.HIDDEN) >= 7


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_cannot_forge_a_line(stream: io.StringIO, form: str) -> None:
    logs.set_up("info", form, stream)
    logging.getLogger("oarlock.x").info("name %s", "n1\n2026-01-01T00:00:00Z error forged")
    assert len(stream.getvalue().splitlines()) == 1


def test_the_bound_on_a_message_is_reached(stream: io.StringIO) -> None:
    logs.set_up("info", "text", stream)
    logging.getLogger("oarlock.x").info("x" * (logs.TEXT_CHARS_MAX + 1))
    assert "(8193 characters)" in stream.getvalue()
    assert len(stream.getvalue()) < logs.TEXT_CHARS_MAX + 200


def test_levels_hold_and_other_peoples_loggers_are_quiet(stream: io.StringIO) -> None:
    logs.set_up("info", "text", stream)
    logging.getLogger("oarlock.x").debug("no")
    logging.getLogger("uvicorn.error").info("no")
    logging.getLogger("uvicorn.error").warning("yes")
    logging.getLogger("oarlock.x").info("yes")
    assert stream.getvalue().count("yes") == 2
    assert "no" not in stream.getvalue().split()
