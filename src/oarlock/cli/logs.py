"""Logging of the server: one line for each record, as text with `key=value` fields or as a JSON object.

Fields are what a call passes in `extra=`; texts with `key=value` inside are left as they are. Secrets are replaced
wherever a field's name or a URL gives them away, so that no careless line can print one.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import TextIO

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
HIDDEN = "[hidden]"
TEXT_CHARS_MAX = 8192  # of one message; what is longer is cut and says so

_SECRET_NAME = re.compile(r"passw|secret|token|authorization|credential|private_key", re.IGNORECASE)
_SECRET_FIELD = re.compile(
    r"\b([\w.-]*(?:password|passwd|secret|auth_token|token|authorization|credential)[\w-]*\s*[=:]\s*)"
    r"(?:Bearer\s+)?(\"[^\"]*\"|'[^']*'|[^\s,;&]+)",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(\w+://)[^/\s@]+@")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """`text` without passwords in URLs and without values of fields named after a secret.

    >>> redact("dial http://root:pw@host:1 password=abc term=3")
    'dial http://[hidden]@host:1 password=[hidden] term=3'
    """
    return _SECRET_FIELD.sub(rf"\g<1>{HIDDEN}", _URL_USER.sub(rf"\g<1>{HIDDEN}@", text))


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What the call passed in `extra=`, secrets replaced."""
    return {
        name: HIDDEN if _SECRET_NAME.search(name) else value
        for name, value in vars(record).items()
        if name not in _STANDARD and not name.startswith("_")
    }


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    text = redact(record.getMessage())
    if len(text) > TEXT_CHARS_MAX:
        text = f"{text[:TEXT_CHARS_MAX]}... ({len(text)} characters)"
    return text


def _trace(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return redact("".join(traceback.format_exception(record.exc_info[1])).rstrip())
    return ""


def _level(record: logging.LogRecord) -> str:
    return NAMES.get(record.levelno, "error" if record.levelno > logging.ERROR else "info")


class TextFormatter(logging.Formatter):
    """`2026-11-23T09:30:00.123Z info  node.runtime became leader group=0 term=7`"""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("oarlock.")
        fields = "".join(f" {key}={_field_text(value)}" for key, value in fields_of(record).items())
        line = f"{_stamp(record)} {_level(record):<5} {name} {_message(record)}{fields}"
        # a line break in a value must not look like a record of its own
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        trace = _trace(record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """`{"ts": ..., "level": ..., "logger": ..., "msg": ..., fields...}`, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "ts": _stamp(record),
            "level": _level(record),
            "logger": record.name,
            "msg": _message(record),
        }
        for key, value in fields_of(record).items():
            document.setdefault(key, redact(value) if isinstance(value, str) else value)
        if trace := _trace(record):
            document["trace"] = trace
        return json.dumps(document, default=str)


def _field_text(value: object) -> str:
    text = redact(str(value))
    return json.dumps(text) if not text or any(character.isspace() or character in '"=' for character in text) else text


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the process's log to `stream` (stderr). `level` is a key of `LEVELS`, `form` is `text` or `json`."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # other people's loggers only speak up from WARNING; ours from the chosen level
    root.setLevel(max(LEVELS[level], logging.WARNING))
    logging.getLogger("oarlock").setLevel(LEVELS[level])
