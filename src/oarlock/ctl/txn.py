"""txn: compares and requests, line by line from stdin, as one transaction."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

from oarlock.ctl import kv, text
from oarlock.ctl.app import Run
from oarlock.ctl.failures import INVALID_INPUT, Failure, bad_arguments
from oarlock.ctl.flags import HelpWanted, parse
from oarlock.ctl.show import Printer
from oarlock.ctl.verbs import BY_WORDS, GLOBAL

TARGETS: Final = {
    "ver": 0, "version": 0, "c": 1, "create": 1, "m": 2, "mod": 2, "val": 3, "value": 3, "lease": 4,
}  # fmt: skip
FIELDS: Final = ("version", "create_revision", "mod_revision", "value", "lease")
RESULTS: Final = {"=": 0, ">": 1, "<": 2, "!=": 3}
COMPARE = re.compile(r"\s*(\w+)\s*\(\s*(\"(?:[^\"\\]|\\.)*\"|`[^`]*`)\s*\)\s*(\S+)\s+(\"(?:[^\"\\]|\\.)*\"|`[^`]*`)\s*")
FORM: Final = 'a compare is TARGET("KEY") OPERATOR "VALUE", for example mod("key") > "0"'
PARTS: Final = ("compares:", "success requests (get, put, del):", "failure requests (get, put, del):")


def txn(run: Run) -> None:
    if run.args:
        raise bad_arguments("txn command does not accept argument", "compares and requests are read from stdin")
    prompts = PARTS if run.interactive else ("", "", "")
    compares = [compare(line) for line in part(prompts[0])]
    success = [request(line) for line in part(prompts[1])]
    failure = [request(line) for line in part(prompts[2])]
    answer = run.client("KV/Txn", compare=compares, success=success, failure=failure)
    run.printer(answer, lambda: shown(run.printer, answer))


def part(prompt: str) -> Iterator[str]:
    """The lines until an empty one. Raises `Failure` at the end of stdin."""
    if prompt:
        sys.stdout.write(prompt + "\n")
        sys.stdout.flush()
    while True:
        raw = sys.stdin.buffer.readline()
        if not raw.endswith(b"\n"):
            raise Failure("EOF", INVALID_INPUT, "an empty line ends each of the three parts, also the last")
        line = os.fsdecode(raw).strip()
        if not line:
            return
        yield line


def compare(line: str) -> dict[str, Any]:
    """One compare as the request has it. Raises `Failure`."""
    found = COMPARE.fullmatch(line)
    if found is None:
        raise Failure(f"malformed comparison: {line}", INVALID_INPUT, FORM)
    target, key, result, value = found.groups()
    if target not in TARGETS:
        names = ", ".join(FIELDS).replace("_revision", "")
        raise Failure(f"malformed comparison: {line} (unknown target {target})", INVALID_INPUT, f"targets: {names}")
    if result not in RESULTS:
        raise Failure(f"malformed comparison: {line}", INVALID_INPUT, "operators: = != < >")
    field = FIELDS[TARGETS[target]]
    try:
        typed = text.unquoted(value)
        compared: Any = os.fsencode(typed) if field == "value" else text.integer(typed, 16 if field == "lease" else 10)
        raw = os.fsencode(text.unquoted(key))
    except ValueError as error:
        raise Failure(f"invalid txn compare request: {line}", INVALID_INPUT, str(error)) from None
    return {"target": TARGETS[target], "result": RESULTS[result], "key": raw, field: compared}


def request(line: str) -> dict[str, Any]:
    """One request as the transaction has it. Raises `Failure`."""
    try:
        words = text.words(line)
    except ValueError as error:
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT, str(error)) from None
    verb = BY_WORDS.get(tuple(words[:1]))
    if verb is None or verb.words[0] not in ("get", "put", "del"):
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT, "requests are get, put and del")
    try:
        parsed = parse(words[1:], (*verb.flags, *GLOBAL))
    except (Failure, HelpWanted) as error:
        raise Failure(f"invalid txn request: {line}", INVALID_INPUT, str(error)) from None
    match verb.words[0]:
        case "get":
            return {"request_range": kv.range_request(parsed.args, parsed.flags)}
        case "put":
            return {"request_put": kv.put_request(parsed.args, parsed.flags, stdin=False)}
        case _:
            return {"request_delete_range": kv.delete_request(parsed.args, parsed.flags)}


def shown(printer: Printer, answer: Any) -> Iterator[bytes]:
    yield b"SUCCESS" if answer.succeeded else b"FAILURE"
    for response in answer.responses:
        yield b""
        kind: str = response.WhichOneof("response")
        part = getattr(response, kind)
        match kind:
            case "response_range":
                yield from kv.found(printer, part)
            case "response_put":
                yield from kv.stored(printer, part)
            case "response_delete_range":
                yield from kv.deleted(printer, part)
            case _:
                yield from shown(printer, part)
