"""The command line of `oarlockctl`: flags, verbs, what they print, and etcdctl's exit codes."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

BAD_USAGE = 128
FAILED = 1
BAD_FEATURE = 4  # a word that a flag does not know, such as --order=UP
TARGETS = {"KEY": 0, "VERSION": 1, "CREATE": 2, "MODIFY": 3, "VALUE": 4}
ORDERS = {"ASCEND": 1, "DESCEND": 2}
Verb = Callable[..., None]
GLOBAL = {"endpoints": "127.0.0.1:2379", "command_timeout": "5s", "dial_timeout": "2s", "write_out": "simple"}


def common(verb: Verb) -> Verb:
    """The flags that every verb takes."""
    for name in ("--endpoints", "--command-timeout", "--dial-timeout"):
        verb = click.option(name)(verb)
    verb = click.option("-w", "--write-out", type=click.Choice(["simple", "json"]))(verb)
    return click.option("--hex", "as_hex", is_flag=True)(verb)


@click.group()
@common
def ctl(**given: Any) -> None:
    """A client with etcdctl's key-value verbs."""


def setting(given: dict[str, Any], name: str) -> str:
    """A flag, or its environment variable (OARLOCKCTL_ before ETCDCTL_), or its default."""
    variable = name.upper()
    before_verb = click.get_current_context().find_root().params[name]
    found = (
        given[name] or before_verb or os.environ.get(f"OARLOCKCTL_{variable}") or os.environ.get(f"ETCDCTL_{variable}")
    )
    return str(found or GLOBAL[name])


def seconds(text: str) -> float:
    """A duration such as "5s", "300ms" or "1m"."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            try:
                return float(text.removesuffix(unit)) * factor
            except ValueError:
                break
    raise click.BadParameter(f"invalid duration {text!r}")


def call(given: dict[str, Any], rpc: str, message: str, **fields: Any) -> Any:
    """Ask the first endpoint. The libraries of the wire are loaded only now: help needs none."""
    from oarlock.api import proto
    from oarlock.ctl.channel import unary

    request = proto.message(f"etcdserverpb.{message}")(**fields)
    endpoint = setting(given, "endpoints").split(",")[0].removeprefix("http://")
    if endpoint.startswith("https://"):
        raise click.UsageError("https endpoints are not supported yet")
    return unary(
        endpoint, rpc, request, seconds(setting(given, "command_timeout")), seconds(setting(given, "dial_timeout"))
    )


def plain(message: Any) -> dict[str, Any]:
    """A message as etcdctl's JSON has it: fields by number, empty ones left out, bytes in base64."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if isinstance(value, bytes):
            found[field.name] = base64.b64encode(value).decode("ascii")
        elif isinstance(value, int):
            found[field.name] = value
        elif hasattr(value, "ListFields"):
            found[field.name] = plain(value)
        else:
            found[field.name] = [plain(item) for item in value]
    return found


def show(given: dict[str, Any], answer: Any, lines: list[bytes]) -> None:
    """Print the answer: JSON, or `lines`."""
    if setting(given, "write_out") == "json":
        lines = [json.dumps(plain(answer), separators=(",", ":")).encode()]
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    sys.stdout.buffer.flush()


def text(given: dict[str, Any], raw: bytes) -> bytes:
    """Bytes as they are printed: with --hex as \\x61."""
    wanted = given["as_hex"] or click.get_current_context().find_root().params["as_hex"]
    return "".join(f"\\x{byte:02x}" for byte in raw).encode() if wanted else raw


def pairs(given: dict[str, Any], kvs: Any) -> list[bytes]:
    return [text(given, part) for kv in kvs for part in (kv.key, kv.value)]


def span(given: dict[str, Any], args: tuple[str, ...]) -> dict[str, bytes]:
    """The range that KEY [END], --prefix and --from-key name."""
    if not 1 <= len(args) <= 2:
        raise click.UsageError("the command needs one argument as key and an optional argument as range_end")
    raw = [os.fsencode(arg) for arg in args]
    wide = given["prefix"] or given["from_key"]
    if given["prefix"] and given["from_key"]:
        raise click.UsageError("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if wide and len(raw) == 2:
        raise click.UsageError("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
    key, end = raw[0], raw[1] if len(raw) == 2 else b""
    if wide and not key:
        return {"key": b"\0", "range_end": b"\0"}
    if given["from_key"]:
        end = b"\0"
    elif given["prefix"]:
        cut = key.rstrip(b"\xff")
        end = cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\0"
    return {"key": key, "range_end": end}


@ctl.command()
@click.argument("args", nargs=-1)
@click.option("--prefix", is_flag=True)
@click.option("--from-key", is_flag=True)
@click.option("--limit", type=int, default=0)
@click.option("--rev", type=int, default=0)
@click.option("--order", type=click.Choice(list(ORDERS), case_sensitive=False))
@click.option("--sort-by", type=click.Choice(list(TARGETS), case_sensitive=False))
@click.option("--consistency", type=click.Choice(["l", "s"]), default="l")
@click.option("--keys-only", is_flag=True)
@click.option("--print-value-only", is_flag=True)
@common
def get(args: tuple[str, ...], **given: Any) -> None:
    """Print a key or a range."""
    value_only = given["print_value_only"]
    if value_only and setting(given, "write_out") != "simple":
        raise click.UsageError("print-value-only is only for `--write-out=simple`")
    bounds = span(given, args[:2])  # etcdctl's get overlooks further arguments
    answer = call(
        given, "KV/Range", "RangeRequest", **bounds, limit=given["limit"], revision=given["rev"],
        serializable=given["consistency"] == "s", keys_only=given["keys_only"],
        sort_order=ORDERS.get(given["order"] or "", 0), sort_target=TARGETS.get(given["sort_by"] or "", 0),
    )  # fmt: skip
    lines = [text(given, kv.value) for kv in answer.kvs] if value_only else pairs(given, answer.kvs)
    show(given, answer, lines)


@ctl.command()
@click.argument("args", nargs=-1)
@click.option("--lease", default="0")
@click.option("--prev-kv", is_flag=True)
@click.option("--ignore-value", is_flag=True)
@click.option("--ignore-lease", is_flag=True)
@common
def put(args: tuple[str, ...], **given: Any) -> None:
    """Set a key; without VALUE, to what stdin holds."""
    skip = given["ignore_value"]
    if not 1 <= len(args) <= (1 if skip else 2):
        raise click.UsageError("put command needs 1 argument and input from stdin or 2 arguments")
    try:
        lease = int(given["lease"], 16)
    except ValueError:
        raise click.UsageError(f"bad lease ID {given['lease']!r}, expecting ID in Hex") from None
    value = b"" if skip else os.fsencode(args[1]) if len(args) == 2 else sys.stdin.buffer.read()
    answer = call(
        given, "KV/Put", "PutRequest", key=os.fsencode(args[0]), value=value, lease=lease, prev_kv=given["prev_kv"],
        ignore_value=skip, ignore_lease=given["ignore_lease"],
    )  # fmt: skip
    show(given, answer, [b"OK", *(pairs(given, [answer.prev_kv]) if answer.HasField("prev_kv") else [])])


@ctl.command("del")
@click.argument("args", nargs=-1)
@click.option("--prefix", is_flag=True)
@click.option("--from-key", is_flag=True)
@click.option("--prev-kv", is_flag=True)
@common
def delete(args: tuple[str, ...], **given: Any) -> None:
    """Remove a key or a range, and print how many were removed."""
    answer = call(given, "KV/DeleteRange", "DeleteRangeRequest", **span(given, args), prev_kv=given["prev_kv"])
    show(given, answer, [str(answer.deleted).encode(), *pairs(given, answer.prev_kvs)])


@ctl.command()
@click.argument("args", nargs=-1)
@click.option("--physical", is_flag=True)
@common
def compaction(args: tuple[str, ...], **given: Any) -> None:
    """Forget what was before a revision."""
    if len(args) != 1:
        raise click.UsageError("compaction command needs 1 argument")
    try:
        revision = int(args[0])
    except ValueError:
        raise click.BadParameter(f"bad revision {args[0]!r}") from None
    call(given, "KV/Compact", "CompactionRequest", revision=revision, physical=given["physical"])
    sys.stdout.write(f"compacted revision {revision}\n")


def exit_code(error: click.ClickException) -> int:
    """etcdctl's code: 4 for an unknown word, 1 for a flag it does not know or cannot read, 128 for bad arguments."""
    if isinstance(error, click.BadParameter):
        return BAD_FEATURE if error.param and isinstance(error.param.type, click.Choice) else FAILED
    return FAILED if isinstance(error, click.NoSuchOption | click.BadOptionUsage) else BAD_USAGE


def main() -> None:
    """Run the command line and exit: 0, 1 (the call failed) or one of `exit_code`."""
    try:
        ctl.main(prog_name="oarlockctl", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(exit_code(error))
    except Exception as error:
        if type(error).__name__ != "CallError":
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(FAILED)
