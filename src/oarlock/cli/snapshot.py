"""`oarlock snapshot save|status|restore`: back a cluster up, look at a backup, begin a new cluster from it.

Exit codes: 0 done; 1 the command line is wrong or the server could not be asked; 2 the file or the disk is not what it
must be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from oarlock.cli.app import fail
from oarlock.cli.exits import Exit
from oarlock.errors import ConfigurationError


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
    from oarlock.ctl.client import Client
    from oarlock.ctl.connection import Endpoint, Tls
    from oarlock.ctl.failures import CallError, Failure
    from oarlock.ctl.snapshot import Incomplete, part_of, receive
    from oarlock.node.backups import examine

    if file.exists():
        return fail(f"{file} exists: choose another name", Exit.CONFIGURATION)
    tls = Tls(cacert, cert, key, insecure_skip_tls_verify, wanted=bool(cacert or cert))
    name, _, inline = user.partition(":")
    client = Client(
        [Endpoint(endpoints.split(",")[0], tls)], user=(name, inline or password) if user else None,
        dial_s=dial_timeout, timeout_s=3 * dial_timeout,  # a password takes its time to be checked
    )  # fmt: skip
    try:
        client.connect()  # a member that is not there is told at once
        with part_of(file) as (out, part):
            receive(client, out)
            report = examine(part)
    except CallError as error:
        return fail(error.text if error.sent else f"cannot reach {error.text}", Exit.CONFIGURATION)
    except (Failure, Incomplete) as error:
        return fail(str(error), Exit.CONFIGURATION)
    except OSError as error:
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    click.echo(f"Snapshot saved at {file} (revision {report['revision']}, {report['totalKey']} keys, "
               f"{report['totalSize']} bytes)")  # fmt: skip
    return Exit.CLEAN


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-w", "--write-out", type=click.Choice(["simple", "json", "table"]), default="simple", show_default=True)
def status(file: Path, write_out: str) -> int:
    """Check the whole of FILE and say what it holds: hash, revision, keys, size."""
    from oarlock.ctl.snapshot import HEADS, cells
    from oarlock.ctl.text import table
    from oarlock.node.backups import examine

    try:
        report = examine(file)
    except OSError as error:
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    if write_out == "json":
        click.echo(json.dumps(report, separators=(",", ":")))
    elif write_out == "simple":
        click.echo(", ".join(cells(report)))
    else:
        for line in table(HEADS, [cells(report)]):
            click.echo(line)
    return Exit.CLEAN


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
    from oarlock.node.backups import restore_backup
    from oarlock.node.restore import Place

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
    try:
        identity = restore_backup(
            file, place, memory=storage == "memory", bump_revision=bump_revision, mark_compacted=mark_compacted
        )
    except OSError as error:
        return fail(f"{file}: {error.strerror or error}", Exit.STORAGE)
    click.echo(
        f"restored {place.data_dir}: member {identity.member_id:x} ({name}) of the new cluster {identity.cluster_id:x}"
    )
    return Exit.CLEAN
