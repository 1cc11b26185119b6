"""get, put, del and compaction. What they ask for is made here for `txn` too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from oarlock.ctl import failures, text
from oarlock.ctl.app import Run
from oarlock.ctl.failures import Failure, bad_arguments
from oarlock.ctl.show import Printer

TARGETS: Final = {"CREATE": 2, "KEY": 0, "MODIFY": 3, "VALUE": 4, "VERSION": 1}
ORDERS: Final = {"ASCEND": 1, "DESCEND": 2}


def get(run: Run) -> None:
    request = range_request(run.args, run.flags)
    if run.count_only and run.write_out != "fields":
        raise bad_arguments("--count-only is only for `--write-out=fields`", "the last line, Count, is the number")
    if run.print_value_only and run.write_out != "simple":
        raise bad_arguments("print-value-only is only for `--write-out=simple`")
    answer = run.client("KV/Range", repeat=True, **request)
    run.printer(answer, lambda: found(run.printer, answer, value_only=run.print_value_only))


def put(run: Run) -> None:
    request = put_request(run.args, run.flags, stdin=True)
    answer = run.client("KV/Put", **request)
    run.printer(answer, lambda: stored(run.printer, answer))


def del_(run: Run) -> None:
    answer = run.client("KV/DeleteRange", **delete_request(run.args, run.flags))
    run.printer(answer, lambda: deleted(run.printer, answer))


def compaction(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("compaction command needs 1 argument")
    try:
        revision = text.integer(run.args[0])
    except ValueError as error:
        raise Failure(str(error)) from None
    # waiting for the space may take longer than a call usually does
    run.client("KV/Compact", revision=revision, physical=run.physical, timeout_s=86_400 if run.physical else None)
    sys.stdout.write(f"compacted revision {revision}\n")


def span(args: list[str], flags: Mapping[str, Any], verb: str) -> dict[str, bytes]:
    """The range that KEY [END], --prefix and --from-key name."""
    if flags["prefix"] and flags["from_key"]:
        raise bad_arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if not args or (verb == "del" and len(args) > 2):
        raise bad_arguments(f"{verb} command needs one argument as key and an optional argument as range_end")
    wide = flags["prefix"] or flags["from_key"]
    if wide and len(args) > 1:
        raise bad_arguments("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
    key = os.fsencode(args[0])
    if wide and not key:
        return {"key": b"\0", "range_end": b"\0"}
    if flags["from_key"]:
        return {"key": key, "range_end": b"\0"}
    if flags["prefix"]:
        return {"key": key, "range_end": text.prefix_end(key)}
    return {"key": key, "range_end": os.fsencode(args[1]) if len(args) > 1 else b""}


def range_request(args: list[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = span(args, flags, "get")
    if flags["consistency"] not in ("l", "s"):
        raise Failure(f'unknown consistency flag "{flags["consistency"]}"', failures.BAD_FEATURE, "it is l or s")
    order, target = flags["order"].upper(), flags["sort_by"].upper()
    if order and order not in ORDERS:
        raise Failure(f"bad sort order {flags['order']}", failures.BAD_FEATURE, "it is ASCEND or DESCEND")
    if target and target not in TARGETS:
        raise Failure(f"bad sort target {flags['sort_by']}", failures.BAD_FEATURE, f"it is one of {', '.join(TARGETS)}")
    if target and not order:
        order = "ASCEND"
    if order == "ASCEND" and target in ("", "KEY"):
        order = ""  # as keys come anyway
    return request | {
        "limit": flags["limit"], "revision": max(0, flags["rev"]), "serializable": flags["consistency"] == "s",
        "keys_only": flags["keys_only"], "count_only": flags["count_only"],
        "sort_order": ORDERS[order] if order else 0, "sort_target": TARGETS[target] if target else 0,
    }  # fmt: skip


def put_request(args: list[str], flags: Mapping[str, Any], *, stdin: bool) -> dict[str, Any]:
    """What to put; without VALUE, what stdin holds where that is allowed."""
    missing = "put command needs 1 argument and input from stdin or 2 arguments"
    if not args:
        raise bad_arguments(missing)
    if flags["ignore_value"] and len(args) > 1:
        raise bad_arguments("put command needs only 1 argument when 'ignore-value' is set")
    value = b""
    if not flags["ignore_value"]:
        value = os.fsencode(args[1]) if len(args) > 1 else sys.stdin.buffer.read() if stdin else b""
        if len(args) == 1 and not value:
            raise bad_arguments(missing, "for an empty value give it: put KEY ''")
    lease = lease_id(flags["lease"], "bad lease ID ({}), expecting ID in Hex")
    return {
        "key": os.fsencode(args[0]), "value": value, "lease": lease, "prev_kv": flags["prev_kv"],
        "ignore_value": flags["ignore_value"], "ignore_lease": flags["ignore_lease"],
    }  # fmt: skip


def delete_request(args: list[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    return {**span(args, flags, "del"), "prev_kv": flags["prev_kv"]}


def lease_id(typed: str, wrong: str) -> int:
    """A lease's number, in hexadecimal. `wrong` has a place for what is wrong with it."""
    try:
        return text.integer(typed, 16)
    except ValueError as error:
        raise bad_arguments(wrong.format(error)) from None


def found(printer: Printer, answer: Any, *, value_only: bool = False) -> Iterable[bytes]:
    return (printer.raw(kv.value) for kv in answer.kvs) if value_only else printer.pairs(answer.kvs)


def stored(printer: Printer, answer: Any) -> Iterator[bytes]:
    yield b"OK"
    if answer.HasField("prev_kv"):
        yield from printer.pairs([answer.prev_kv])


def deleted(printer: Printer, answer: Any) -> Iterator[bytes]:
    yield str(answer.deleted).encode()
    yield from printer.pairs(answer.prev_kvs)
