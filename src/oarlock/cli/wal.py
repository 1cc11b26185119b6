"""`oarlock wal verify|dump`: look at a write-ahead log without changing it.

Exit codes of both: 0 the log is clean; 1 it has a torn tail, which the next start cuts; 2 it is rotten; 3 it could
not be looked at (no log there, a server is using it, a newer format, a wrong argument to the command itself is
click's 2).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from oarlock.errors import Corrupt, StorageError
from oarlock.raft.types import EntryKind
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.records import CUT, ENTRY, GROUP, HARD_STATE, RESET, SNAPSHOT, Record, unpack_group, unpack_mark
from oarlock.storage.recovery import LOCK_NAME, LogImage, Segment, read_log

EXIT_CLEAN = 0
EXIT_TORN = 1
EXIT_ROTTEN = 2
EXIT_UNREADABLE = 3


@click.group(name="wal")
def wal() -> None:
    """Check or print a write-ahead log. Nothing is changed."""


@wal.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def verify(path: str, as_json: bool) -> None:
    """Read the whole log in PATH and say whether it is clean (exit 0), has a torn tail that the next start cuts (1),
    or is rotten (2: with file, offset and what to do). 3: it could not be looked at."""
    image, code, report = _read(path, None)
    if image is not None:
        report |= {
            "cluster_id": f"{image.identity.cluster_id:x}",
            "member_id": f"{image.identity.member_id:x}",
            "incarnation": f"{image.identity.incarnation:x}",
            "segments": len(image.segments),
            "batches": image.batch,
            "synced_batch": image.watermark.batch if image.watermark is not None else 0,
            "groups": {
                str(group): {
                    "term": state.hard_state.term,
                    "vote": f"{state.hard_state.vote:x}",
                    "commit": state.hard_state.commit,
                    "snapshot": f"{state.snapshot.term}.{state.snapshot.index}",
                    "first": str(state.entries[0]) if state.entries else "",
                    "last": str(state.entries[-1]) if state.entries else "",
                }
                for group, state in image.groups.items()
            },
        }
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"{path}: {report['verdict']}")
        if report["message"]:
            click.echo(report["message"])
        if image is not None:
            click.echo(
                f"cluster {report['cluster_id']} member {report['member_id']} incarnation {report['incarnation']}: "
                f"{report['segments']} segments, {report['batches']} batches, known to be synced up to batch "
                f"{report['synced_batch']}"
            )
            for group, state in report["groups"].items():
                log = f"log {state['first']} to {state['last']}" if state["last"] else "log empty"
                click.echo(
                    f"group {group}: t{state['term']} vote {state['vote']} commit {state['commit']} snapshot "
                    f"{state['snapshot']} {log}"
                )
    raise SystemExit(code)


@wal.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line instead of text.")
def dump(path: str, as_json: bool) -> None:
    """Print one record a line, in the order in which they were written, up to the first one that is not good. Payloads
    are shown by their size. Exit codes as for verify."""

    def show(segment: Segment, record: Record) -> None:
        fields = _fields(segment, record)
        click.echo(json.dumps(fields) if as_json else _line(fields))

    _, code, report = _read(path, show)
    if report["message"]:
        click.echo(report["message"], err=True)
    raise SystemExit(code)


def _read(path: str, observer: Callable[[Segment, Record], None] | None) -> tuple[LogImage | None, int, dict[str, Any]]:
    """The log if it could be read, the exit code, and what to tell."""
    disk = RealDisk()
    report: dict[str, Any] = {"path": path, "verdict": "", "message": "", "file": "", "offset": None}
    try:
        if disk.is_locked(f"{path}/{LOCK_NAME}"):
            raise StorageError(
                f"a server is using {path}: stop it first, or look at a copy of the directory", path=path
            )
        image = read_log(disk, path, observer=observer)
    except Corrupt as error:
        report |= {"verdict": "rotten", "message": str(error), "file": error.path, "offset": error.offset}
        return None, EXIT_ROTTEN, report
    except StorageError as error:
        report |= {"verdict": "not readable", "message": str(error), "file": error.path}
        return None, EXIT_UNREADABLE, report
    if not image.torn:
        report["verdict"] = "clean"
        return image, EXIT_CLEAN, report
    file = f"{path}/{image.segments[-1].name}"
    message = (
        f"{file}, offset {image.end}: {len(image.torn)} bytes of a batch that was never synced ({image.torn_reason}). "
        "The next start cuts them and keeps them in a .torn file; nothing is to be done"
    )
    report |= {"verdict": "torn tail", "message": message, "file": file, "offset": image.end}
    return image, EXIT_TORN, report


def _fields(segment: Segment, record: Record) -> dict[str, Any]:
    fields: dict[str, Any] = {"file": segment.name, "offset": record.offset, "batch": record.batch}
    if record.type == ENTRY:
        kind = (
            EntryKind(record.kind).name.lower() if record.kind in EntryKind.__members__.values() else str(record.kind)
        )
        fields |= {"type": "entry", "group": record.group, "entry": f"{record.term}.{record.index}", "kind": kind}
        fields |= {"bytes": len(record.payload), "cut": bool(record.flags & CUT)}
    elif record.type == HARD_STATE:
        vote = int.from_bytes(record.payload, "little")
        fields |= {
            "type": "hard-state",
            "group": record.group,
            "term": record.term,
            "vote": f"{vote:x}",
            "commit": record.index,
        }
    elif record.type == SNAPSHOT:
        mark = unpack_mark(bytes(record.payload))
        fields |= {
            "type": "snapshot",
            "group": record.group,
            "snapshot": f"{mark.term}.{mark.index}",
            "bytes": mark.size,
        }
        fields |= {"members": len(mark.configuration.members), "reset": bool(record.flags & RESET)}
    elif record.type == GROUP:
        hard, mark = unpack_group(bytes(record.payload))
        fields |= {
            "type": "head",
            "group": record.group,
            "term": hard.term,
            "vote": f"{hard.vote:x}",
            "commit": hard.commit,
        }
        fields |= {"snapshot": f"{mark.term}.{mark.index}", "last": f"{record.term}.{record.index}"}
    else:
        fields |= {"type": "sync", "records": record.index}
    return fields


def _line(fields: dict[str, Any]) -> str:
    where = f"{fields['file']}@{fields['offset']:<8} batch {fields['batch']}"
    match fields["type"]:
        case "entry":
            cut = " cut" if fields["cut"] else ""
            return (
                f"{where}  group {fields['group']}  entry {fields['entry']} {fields['kind']} {fields['bytes']} B{cut}"
            )
        case "hard-state":
            return (
                f"{where}  group {fields['group']}  hard-state t{fields['term']} vote {fields['vote']} "
                f"commit {fields['commit']}"
            )
        case "snapshot":
            reset = " reset" if fields["reset"] else ""
            return (
                f"{where}  group {fields['group']}  snapshot {fields['snapshot']} {fields['bytes']} B, "
                f"{fields['members']} members{reset}"
            )
        case "head":
            return (
                f"{where}  group {fields['group']}  head t{fields['term']} vote {fields['vote']} commit "
                f"{fields['commit']} "
                f"snapshot {fields['snapshot']} last {fields['last']}"
            )
        case _:
            return f"{where}  sync {fields['records']} records"
