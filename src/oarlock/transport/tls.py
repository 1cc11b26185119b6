"""Mutual TLS between members: a certificate must be signed by the cluster's authority *and* carry its member's name.
(docs/how-to/secure-the-peers.md)

A certificate carries the name `a` as the URI `oarlock://member/a` or as the DNS name `a`, in its subject alternative
names. The signature alone is not enough: whoever holds any other certificate of the same authority, a client's or
another member's, could otherwise speak for every member.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from oarlock.errors import ConfigurationError
from oarlock.transport.tls_files import TlsFiles, TlsSource, handshake

MEMBER_URI: Final = "oarlock://member/"


def member_uri(name: str) -> str:
    """The URI by which a certificate names the member `name`.

    >>> member_uri("a b")
    'oarlock://member/a%20b'
    """
    return MEMBER_URI + quote(name, safe="")


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[tuple[str, str]]:
    """The `(kind, value)` pairs of the subject alternative names of a certificate as `ssl` gives it."""
    return frozenset((kind, value) for kind, value in (certificate or {}).get("subjectAltName", ()))


def carries(certificate: Mapping[str, Any] | None, name: str) -> bool:
    """Whether `certificate` (verified before, None if there was none) is one of the member `name`."""
    if not name:
        return False
    names = names_in(certificate)
    return ("URI", member_uri(name)) in names or ("DNS", name) in names


def show_names(certificate: Mapping[str, Any] | None) -> str:
    """The names in a certificate, for an error."""
    return ", ".join(sorted(f"{kind}:{value}" for kind, value in names_in(certificate))[:8]) or "none"


@dataclass(slots=True)
class PeerTls:
    """The files of this member: PEM certificate (chain), its key, and the authority that signs all members.

    Constructing it reads them: `ConfigurationError` names the file that cannot be used. They are read again when they
    change on disk (`tls_files`). `crl_file` lists revoked certificates. `allowed_cn`: the subject's common name that
    every certificate must have, besides its member's name. `unverified`: connections are encrypted and nobody proves
    who he is (etcd's --peer-auto-tls).
    """

    cert_file: str
    key_file: str
    ca_file: str = ""
    crl_file: str = ""
    allowed_cn: str = ""
    unverified: bool = False
    minimum: str = "TLS1.2"
    maximum: str = ""
    ciphers: Sequence[str] = ()
    _source: TlsSource = field(init=False, repr=False)

    def __post_init__(self) -> None:
        files = TlsFiles(
            prefix="peer-",
            cert_file=self.cert_file,
            key_file=self.key_file,
            ca_file=self.ca_file,
            crl_file=self.crl_file,
            verify=not self.unverified,
            minimum=self.minimum,
            maximum=self.maximum,
            ciphers=self.ciphers,
        )
        self._source = TlsSource(files)

    @property
    def verifies(self) -> bool:
        """Whether certificates are checked, and must carry the names of members."""
        return not self.unverified

    def server_context(self) -> ssl.SSLContext:
        """For connections that come in."""
        return self._source.server_context()

    def client_context(self) -> ssl.SSLContext:
        """For connections that we make."""
        return self._source.client_context()

    def why_not(self, certificate: Mapping[str, Any] | None, name: str) -> str | None:
        """Why a certificate, whose signature was checked, is not one of the member `name`; None if it is.

        Asked on both sides of every connection between members, whatever it is for.
        """
        if self.unverified:
            return None
        if not carries(certificate, name):
            return (
                f"the certificate does not carry the name {name!r}: its subjectAltName needs "
                f"URI:{member_uri(name)} or DNS:{name}, and has {show_names(certificate)}"
            )
        if self.allowed_cn and self.allowed_cn not in (found := common_names(certificate)):
            return f"peer-cert-allowed-cn is {self.allowed_cn!r}, and the certificate has {', '.join(found) or 'none'}"
        return None

    def check(self, name: str) -> None:
        """Shake hands with ourselves, so that a wrong certificate is found at start and not by every peer.

        Raises `ConfigurationError` when our certificate is not one that our own authority signed, for both sides of a
        connection, for the member `name`.
        """
        try:
            _, client = handshake(self._source.server_context(), self._source.client_context())
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"the peer certificate {self.cert_file} would not be accepted by other members: {error}; it must be "
                f"signed by {self.ca_file}, be valid now, and allow both serverAuth and clientAuth"
            ) from error
        if (why := self.why_not(client.getpeercert(), name)) is not None:
            raise ConfigurationError(f"peer-cert-file {self.cert_file} is not for this member: {why}")


def common_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """The common names of a certificate's subject."""
    parts = (certificate or {}).get("subject", ())
    return [value for part in parts for kind, value in part if kind == "commonName"]
