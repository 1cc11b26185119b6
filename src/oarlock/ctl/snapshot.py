"""snapshot save, status and restore: the same backups as those of `oarlock snapshot`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.client import Client, method
from oarlock.ctl.failures import FAILED, IO, CallError, Failure, bad_arguments
from oarlock.ctl.show import rows
from oarlock.errors import ConfigurationError, StorageError

RPC: Final = "Maintenance/Snapshot"
DIGEST_BYTES: Final = 32
HEADS: Final = ("HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE")


class Incomplete(Exception):
    """What was received is not a whole snapshot."""


def receive(client: Client, out: BinaryIO) -> int:
    """Write a snapshot of the asked member to `out`, durably; its size. It ends with the SHA-256 of all before it,
    which is checked. Raises `CallError`, `OSError` or `Incomplete`."""
    call = client.open(RPC, time.monotonic() + client.timeout_s)
    call.send(b"", end=True)
    response = method(RPC)[2]
    digest, held, size = hashlib.sha256(), b"", 0
    for message in call.rest():
        blob = response.FromString(message).blob
        out.write(blob)
        size += len(blob)
        held += blob
        digest.update(held[:-DIGEST_BYTES])
        held = held[-DIGEST_BYTES:]
    if size <= DIGEST_BYTES or digest.digest() != held:
        raise Incomplete(f"the SHA-256 at the end is not that of the {size} bytes received: ask again")
    out.flush()
    os.fsync(out.fileno())
    return size


@contextlib.contextmanager
def part_of(file: Path) -> Any:
    """A new file beside `file`, given with its path, that takes its name at the end, or is gone after an error."""
    part = file.with_name(file.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out, part
        os.rename(part, file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def snapshot_save(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("snapshot save expects one argument", "the file to write")
    client = run.client
    if len(client.endpoints) > 1:
        named = " ".join(endpoint.text for endpoint in client.endpoints)
        raise Failure(f"snapshot must be requested to one selected node, not multiple [{named}]", IO)
    file = Path(run.args[0])
    from oarlock.ctl.session import signals_interrupt

    try:
        with signals_interrupt(), part_of(file) as (out, _):
            receive(client, out)
    except CallError as error:
        raise Failure(error.text, IO, error.hint) from None
    except Incomplete as error:
        raise Failure(str(error), IO) from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise Failure(f"could not open {file}.part (open {file}.part: {reason})", IO) from None
    run.printer.write(b"Snapshot saved at " + os.fsencode(file) + b"\n")


def snapshot_status(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("snapshot status requires exactly one argument")
    run.check_format()
    from oarlock.node.backups import examine

    file = run.args[0]
    try:
        report = examine(Path(file))
    except OSError as error:
        raise Failure(f"stat {file}: {str(error.strerror).lower()}") from None
    except StorageError as error:
        raise Failure(str(error), hint="`etcdutl snapshot status` reads snapshots of a real etcd") from None
    shown = {name: report[name] for name in ("hash", "revision", "totalKey", "totalSize")}
    match run.write_out:
        case "json":
            run.printer.lines([text.dumps(shown)])
        case "fields":
            names = zip(("Hash", "Revision", "Keys", "Size"), shown.values(), strict=True)
            run.printer.lines(f'"{name}" : {value}'.encode() for name, value in names)
        case _:
            rows(run.printer, HEADS, [cells(report)])


def cells(report: dict[str, Any]) -> list[str]:
    """What a backup holds, as a row."""
    numbers = [str(report["revision"]), str(report["totalKey"])]
    return [f"{report['hash']:x}", *numbers, text.size(report["totalSize"])]


def snapshot_restore(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("snapshot restore requires exactly one argument")
    if run.wal_dir or run.skip_hash_check:
        name = "--wal-dir" if run.wal_dir else "--skip-hash-check"
        hint = "the log is in the data directory" if run.wal_dir else "a backup that fails its check is never restored"
        raise bad_arguments(f"{name} is etcd's and has no meaning here", hint)
    from oarlock.config.values import CLUSTER, URLS
    from oarlock.node.backups import restore_backup
    from oarlock.node.restore import Place

    try:
        urls: Any = URLS.parse(run.initial_advertise_peer_urls)
        members: Any = CLUSTER.parse(run.initial_cluster)
        place = Place(
            name=run.name, data_dir=run.flags["data_dir"] or f"{run.name}.oarlock", initial_cluster=dict(members),
            advertise_peer_urls=urls, token=run.initial_cluster_token,
        )  # fmt: skip
        identity = restore_backup(Path(run.args[0]), place)
    except (ValueError, StorageError, ConfigurationError) as error:
        raise Failure(str(error), FAILED) from None
    except OSError as error:
        raise Failure(f"open {run.args[0]}: {str(error.strerror).lower()}") from None
    run.printer.lines([
        f"restored {place.data_dir}: member {identity.member_id:x} ({run.name}) of the new cluster "
        f"{identity.cluster_id:x}".encode()
    ])  # fmt: skip
