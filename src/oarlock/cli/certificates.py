"""Making certificates: a development authority, members' and clients' certificates, self-signed ones.

Keys are ECDSA on P-256 and written readable by their owner only; nothing that exists is overwritten.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oarlock.errors import ConfigurationError
from oarlock.transport.tls import member_uri

COMMON_NAME_MAX: Final = 64  # X.520
AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365
CRL_DAYS: Final = 365
SKEW: Final = datetime.timedelta(hours=1)  # how far other machines' clocks may be behind
CA, CA_KEY, CRL = "ca.pem", "ca-key.pem", "crl.pem"

_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _write(path: str | Path, data: bytes, mode: int, *, replace: bool = False) -> None:
    """Raises `ConfigurationError` if the file is there."""
    if replace:
        temporary = f"{path}.new"
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # what a crash has left
        _write(temporary, data, mode)
        os.replace(temporary, path)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists: move it away, or choose another directory or name") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _make_directory(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.strerror or error}") from error


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    """Raises `ConfigurationError` for what fits into no certificate."""
    if not 1 <= len(common_name) <= COMMON_NAME_MAX:
        raise ConfigurationError(
            f"a name has 1 to {COMMON_NAME_MAX} characters, and {common_name[:80]!r} has {len(common_name)}"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        try:
            names.append(x509.DNSName(host if host.isascii() else host.encode("idna").decode("ascii")))
        except ValueError as error:
            raise ConfigurationError(f"{host!r} is no host name: {error}") from error
        if not host or any(character.isspace() or character in "/:@" for character in host):
            raise ConfigurationError(f"{host!r} is no host name: give a name or an address, without a port")
    return names


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def make_authority(directory: str, name: str, days: int = AUTHORITY_DAYS) -> None:
    """`ca.pem`, `ca-key.pem` and an empty `crl.pem` in `directory`."""
    subject = _name(name)
    _make_directory(directory)
    for file in (CA, CA_KEY):
        if (Path(directory) / file).exists():
            raise ConfigurationError(f"{directory}/{file} exists: choose another directory for another authority")
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    _write(Path(directory) / CA_KEY, _key_bytes(key), 0o600)
    _write(Path(directory) / CA, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write_crl(directory, certificate, key, [])


def _authority(directory: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((Path(directory) / CA).read_bytes())
        key = serialization.load_pem_private_key((Path(directory) / CA_KEY).read_bytes(), None)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be read: {error.strerror}; `oarlock pki init` makes an authority"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{directory} holds no usable authority: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{directory}/{CA_KEY} is not the key of {directory}/{CA}")
    return certificate, key


def issue(
    directory: str,
    file: str,
    common_name: str,
    alternatives: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
    days: int,
) -> tuple[str, str]:
    """A certificate of the authority in `directory`: `FILE.pem` and `FILE-key.pem` beside it."""
    if not file or file.startswith(".") or any(not character.isprintable() or character in "/\\" for character in file):
        raise ConfigurationError(f"{file!r} is no name: it is a file's too, so it has no slash and no dot in front")
    subject = _name(common_name)
    authority, signing = _authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(subject, authority.subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(_issued_by(authority), critical=False)  # strict verifiers ask for it
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(alternatives)), critical=False)
    certificate = builder.sign(signing, hashes.SHA256())
    cert_path, key_path = Path(directory) / f"{file}.pem", Path(directory) / f"{file}-key.pem"
    if cert_path.exists():
        raise ConfigurationError(f"{cert_path} exists: move it away, or choose another name")
    _write(key_path, _key_bytes(key), 0o600)
    _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return str(cert_path), str(key_path)


def issue_member(directory: str, name: str, hosts: Sequence[str], days: int) -> tuple[str, str]:
    """For `--cert-file` and `--peer-cert-file` of the member `name`: server and client, with the member's identity and
    the hosts under which it is reached."""
    alternatives = [x509.UniformResourceIdentifier(member_uri(name)), *_alternatives(hosts)]
    return issue(directory, name, name, alternatives, (_SERVER, _CLIENT), days)


def issue_client(directory: str, user: str, days: int) -> tuple[str, str]:
    """For a client; with authentication on, the common name is its user."""
    return issue(directory, f"client-{user}", user, (), (_CLIENT,), days)


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key = cast(
        CertificateIssuerPublicKeyTypes, authority.public_key()
    )  # it signs: no kind that cannot is an authority's
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _write_crl(
    directory: str,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Sequence[x509.RevokedCertificate],
) -> None:
    now = _now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject)
    builder = builder.last_update(now - SKEW).next_update(now + datetime.timedelta(days=CRL_DAYS))
    builder = builder.add_extension(_issued_by(authority), critical=False)
    builder = builder.add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    _write(Path(directory) / CRL, data, 0o644, replace=True)


def revoke(directory: str, cert_file: str) -> int:
    """Put a certificate on the authority's list; returns how many are on it."""
    authority, key = _authority(directory)
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert_file).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{cert_file} is no certificate that can be read: {error}") from error
    if certificate.issuer != authority.subject:
        raise ConfigurationError(f"{cert_file} is not of the authority in {directory}")
    path = Path(directory) / CRL
    revoked = list(x509.load_pem_x509_crl(path.read_bytes())) if path.exists() else []
    if all(entry.serial_number != certificate.serial_number for entry in revoked):
        entry = (
            x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(_now()).build()
        )
        revoked.append(entry)
    _write_crl(directory, authority, key, revoked)
    return len(revoked)


def make_self_signed(directory: str, cert: str, key_file: str, hosts: Sequence[str]) -> None:
    """Certificate and key for these hosts; earlier ones are replaced."""
    _make_directory(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("oarlock")
    certificate = (
        _builder(subject, subject, key.public_key(), CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName(_alternatives([*hosts, "localhost"])), critical=False)
        .add_extension(x509.ExtendedKeyUsage([_SERVER, _CLIENT]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _key_bytes(key), 0o600, replace=True)
    _write(cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644, replace=True)


def still_valid(cert: str) -> bool:
    """Whether there is a certificate that will be good tomorrow."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert).read_bytes())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc > _now() + datetime.timedelta(days=1)
