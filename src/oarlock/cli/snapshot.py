"""`oarlock snapshot save|status|restore`: back a cluster up, look at a backup, begin a new cluster from it.

Exit codes: 0 done; 1 the command line is wrong or the server could not be asked; 2 the file or the disk is not what it
must be.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import click

from oarlock.cli.app import fail
from oarlock.cli.exits import Exit
from oarlock.errors import ConfigurationError, StorageError


@click.group(name="snapshot")
def snapshot() -> None:
    """Back up a cluster, look at a backup, begin a new cluster from it."""


def _env(name: str) -> list[str]:
    return [f"OARLOCK_{name}", f"ETCDCTL_{name}"]


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--endpoints",
    default="127.0.0.1:2379",
    show_default=True,
    envvar=_env("ENDPOINTS"),
    help="The member to ask (the first, if there are several).",
)
@click.option("--cacert", default="", envvar=_env("CACERT"), help="The authority that signed the server's certificate.")
@click.option("--cert", default="", envvar=_env("CERT"), help="Our certificate.")
@click.option("--key", default="", envvar=_env("KEY"), help="The key of our certificate.")
@click.option(
    "--insecure-skip-tls-verify",
    is_flag=True,
    envvar=_env("INSECURE_SKIP_TLS_VERIFY"),
    help="Do not check the server's certificate.",
)
@click.option("--user", default="", envvar=_env("USER"), help="NAME:PASSWORD, where authentication is on.")
@click.option("--password", default="", envvar=_env("PASSWORD"), help="The password, if --user is a name only.")
@click.option(
    "--dial-timeout", type=float, default=10.0, show_default=True, help="Seconds to connect and between answers."
)
def save(
    file: Path, endpoints: str, cacert: str, cert: str, key: str, insecure_skip_tls_verify: bool, user: str,
    password: str, dial_timeout: float,
) -> int:  # fmt: skip
    """Write the state of the member at --endpoints to FILE, checked and durable. FILE must not exist."""
    from oarlock.cli.grpc_stream import CallFailed, Endpoint

    if file.exists():
        return fail(f"{file} exists: choose another name", Exit.CONFIGURATION)
    endpoint = Endpoint(
        url=endpoints.split(",")[0], cacert=cacert, cert=cert, key=key, insecure=insecure_skip_tls_verify
    )
    part = file.with_name(file.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            _receive(endpoint, out, user, password, dial_timeout)
            out.flush()
            os.fsync(out.fileno())
        report = _examine(part)
        os.rename(part, file)
        _sync_parent(file)
    except CallFailed as error:
        _forget(part)
        return fail(str(error), Exit.CONFIGURATION)
    except OSError as error:
        _forget(part)
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    except StorageError:
        _forget(part)
        raise
    click.echo(f"Snapshot saved at {file} (revision {report['revision']}, {report['totalKey']} keys, "
               f"{report['totalSize']} bytes)")  # fmt: skip
    return Exit.CLEAN


def _forget(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink()


def _sync_parent(file: Path) -> None:
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receive(endpoint: Any, out: Any, user: str, password: str, timeout_s: float) -> None:
    from oarlock.api import proto
    from oarlock.cli.grpc_stream import GrpcConnection

    with GrpcConnection(endpoint, timeout_s=timeout_s) as connection:
        metadata = []
        if user:
            name, _, inline = user.partition(":")
            request = proto.message("etcdserverpb.AuthenticateRequest")(name=name, password=inline or password)
            answer = connection.unary("etcdserverpb.Auth/Authenticate", request.SerializeToString())
            token = proto.message("etcdserverpb.AuthenticateResponse").FromString(answer).token
            metadata.append(("token", token))
        response = proto.message("etcdserverpb.SnapshotResponse")
        for message in connection.stream("etcdserverpb.Maintenance/Snapshot", b"", metadata):
            out.write(response.FromString(message).blob)


def _examine(file: Path) -> dict[str, Any]:
    """Read the whole of a backup; what it holds. Raises `StorageError`."""
    from oarlock.machines.kv.backup import BackupFile
    from oarlock.machines.kv.capture import summarize

    with file.open("rb") as opened:
        backup = BackupFile(opened, str(file))
        summary = summarize(backup.header.index, backup.whole_chunks())
    return {
        "hash": int.from_bytes(backup.sha256[:4], "big"),
        "revision": summary.revision,
        "totalKey": summary.keys,
        "totalSize": backup.size,
        "compactRevision": max(0, summary.compact_revision),
        "index": backup.header.index,
        "cluster": f"{backup.header.cluster_id:x}",
        "member": f"{backup.header.member_id:x}",
        "version": backup.header.version,
        "sha256": backup.sha256.hex(),
    }


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-w", "--write-out", type=click.Choice(["simple", "json", "table"]), default="simple", show_default=True)
def status(file: Path, write_out: str) -> int:
    """Check the whole of FILE and say what it holds: hash, revision, keys, size."""
    try:
        report = _examine(file)
    except OSError as error:
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    if write_out == "json":
        click.echo(json.dumps(report, separators=(",", ":")))
        return Exit.CLEAN
    cells = [f"{report['hash']:x}", str(report["revision"]), str(report["totalKey"]), _size(report["totalSize"])]
    if write_out == "simple":
        click.echo(", ".join(cells))
        return Exit.CLEAN
    heads = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"]
    widths = [max(len(head), len(cell)) for head, cell in zip(heads, cells, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    click.echo(line)
    click.echo("|" + "|".join(f" {head:^{width}} " for head, width in zip(heads, widths, strict=True)) + "|")
    click.echo(line)
    click.echo("|" + "|".join(f" {cell:>{width}} " for cell, width in zip(cells, widths, strict=True)) + "|")
    click.echo(line)
    return Exit.CLEAN


def _size(size: int) -> str:
    """As etcdctl writes sizes.

    >>> _size(999), _size(20_512), _size(2_400_000)
    ('999 B', '20 kB', '2.4 MB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="default", show_default=True, help="This member's name.")
@click.option("--data-dir", default="", help="The directory to make; it must not exist. Default: NAME.oarlock")
@click.option("--initial-cluster", default="", help="Every member of the new cluster. Default: this one alone.")
@click.option("--initial-cluster-token", default="etcd-cluster", show_default=True)
@click.option("--initial-advertise-peer-urls", default="http://localhost:2380", show_default=True)
@click.option(
    "--storage",
    type=click.Choice(["lmdb", "memory"]),
    default="lmdb",
    show_default=True,
    help="Where `serve` is to keep the store.",
)
@click.option(
    "--bump-revision",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Add this to the revision, so that clients meet no revision twice with different contents.",
)
@click.option(
    "--mark-compacted",
    is_flag=True,
    help="Make the new revision the compacted one: watches from before end and read anew.",
)
def restore(
    file: Path, name: str, data_dir: str, initial_cluster: str, initial_cluster_token: str,
    initial_advertise_peer_urls: str, storage: str, bump_revision: int, mark_compacted: bool,
) -> int:  # fmt: skip
    """Make a data directory for one member of a new cluster from FILE. Run it for every member, with the same file."""
    from oarlock.config.values import CLUSTER, URLS
    from oarlock.machines.kv.backup import BackupFile
    from oarlock.machines.kv.fresh import FreshStart
    from oarlock.machines.kv.machine import KvMachine
    from oarlock.node.replica.sessions import RECORD_KEY, SESSION_KEY
    from oarlock.node.restore import Place
    from oarlock.node.restore import restore as make

    try:
        urls: Any = URLS.parse(initial_advertise_peer_urls)
        members: Any = CLUSTER.parse(initial_cluster or f"{name}={initial_advertise_peer_urls}")
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    place = Place(
        name=name,
        data_dir=data_dir or f"{name}.oarlock",
        initial_cluster=dict(members),
        advertise_peer_urls=urls,
        token=initial_cluster_token,
    )
    fresh = FreshStart(
        annex_prefixes=(SESSION_KEY, RECORD_KEY), bump_revision=bump_revision, mark_compacted=mark_compacted
    )
    try:
        opened = file.open("rb")
    except OSError as error:
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    with opened:
        backup = BackupFile(opened, str(file))

        def fill(directory: str) -> Any:
            machine = KvMachine.in_memory() if storage == "memory" else KvMachine.on_disk(directory)
            try:
                machine.restore(backup.header.index, backup.whole_chunks(), fresh=fresh)
            except ValueError as error:
                machine.close()
                raise StorageError(f"{file}: {error}", path=str(file)) from error
            except BaseException:
                machine.close()
                raise
            if storage == "memory":
                return machine.capture()
            machine.close()
            return None

        changes = f"/{bump_revision}/{mark_compacted}"
        identity = make(place, index=backup.header.index, fill=fill, origin=lambda: backup.sha256.hex() + changes)
    click.echo(
        f"restored {place.data_dir}: member {identity.member_id:x} ({name}) of the new cluster {identity.cluster_id:x}"
    )
    return Exit.CLEAN
