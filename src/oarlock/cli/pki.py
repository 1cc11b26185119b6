"""`oarlock pki`: a small authority for development and tests, in one directory."""

from __future__ import annotations

import click

from oarlock.cli.exits import Exit
from oarlock.errors import ConfigurationError

DIRECTORY = click.option("--dir", "directory", default="pki", show_default=True, help="The authority's directory.")
DAYS = click.option(
    "--days", type=click.IntRange(1, 36_500), default=365, show_default=True, help="How long it is good."
)


@click.group(name="pki")
def pki() -> None:
    """Make an authority, and certificates for members and clients, for development and tests.

    The authority's key lies unencrypted in the directory: use your organisation's own for anything that matters.
    """
    try:
        import oarlock.cli.certificates  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'`oarlock pki` needs the package {error.name}: pip install "oarlock[pki]"') from error


@pki.command()
@DIRECTORY
@click.option("--name", default="oarlock development authority", show_default=True)
@click.option("--days", type=click.IntRange(1, 36_500), default=3650, show_default=True, help="How long it is good.")
def init(directory: str, name: str, days: int) -> int:
    """Make an authority: ca.pem, ca-key.pem, and an empty revocation list crl.pem."""
    from oarlock.cli import certificates

    certificates.make_authority(directory, name, days)
    click.echo(f"{directory}/ca.pem is the authority; keep {directory}/ca-key.pem away from the members")
    return Exit.CLEAN


@pki.command()
@click.argument("name")
@DIRECTORY
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="A host name or address of the member; repeatable.",
    default=("localhost", "127.0.0.1"),
    show_default=True,
)
@DAYS
def member(name: str, directory: str, hosts: tuple[str, ...], days: int) -> int:
    """Make the certificate of the member NAME, for its client port and its peers."""
    from oarlock.cli import certificates

    cert, key = certificates.issue_member(directory, name, hosts, days)
    click.echo(
        f"--cert-file {cert} --key-file {key} --peer-cert-file {cert} --peer-key-file {key} "
        f"--peer-trusted-ca-file {directory}/ca.pem --peer-client-cert-auth"
    )
    return Exit.CLEAN


@pki.command()
@click.argument("user")
@DIRECTORY
@DAYS
def client(user: str, directory: str, days: int) -> int:
    """Make a client's certificate; with authentication on, it is the user USER."""
    from oarlock.cli import certificates

    cert, key = certificates.issue_client(directory, user, days)
    click.echo(f"--cacert {directory}/ca.pem --cert {cert} --key {key}")
    return Exit.CLEAN


@pki.command()
@click.argument("cert_file")
@DIRECTORY
def revoke(cert_file: str, directory: str) -> int:
    """Put a certificate on the authority's revocation list, crl.pem."""
    from oarlock.cli import certificates

    count = certificates.revoke(directory, cert_file)
    click.echo(f"{directory}/crl.pem lists {count} certificates: give it as --client-crl-file and --peer-crl-file")
    return Exit.CLEAN
