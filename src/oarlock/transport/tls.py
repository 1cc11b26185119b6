"""Mutual TLS between members: a certificate must be signed by the cluster's authority *and* carry its member's name.
(docs/how-to/secure-the-peers.md)

A certificate carries the name `a` as the URI `oarlock://member/a` or as the DNS name `a`, in its subject alternative
names. The signature alone is not enough: whoever holds any other certificate of the same authority, a client's or
another member's, could otherwise speak for every member.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from oarlock.errors import ConfigurationError

MEMBER_URI: Final = "oarlock://member/"

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


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
    change on disk, for connections made afterwards; files that cannot be read then leave the present ones in use.
    """

    cert_file: str
    key_file: str
    ca_file: str
    _server: ssl.SSLContext = field(init=False, repr=False)
    _client: ssl.SSLContext = field(init=False, repr=False)
    _stamp: _Stamp = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._stamp = self._stamps()
        self._server, self._client = self._read()

    @property
    def verifies(self) -> bool:
        """Whether certificates are checked, and must carry the names of members."""
        return True

    def server_context(self) -> ssl.SSLContext:
        """For connections that come in."""
        self._maybe_reload()
        return self._server

    def client_context(self) -> ssl.SSLContext:
        """For connections that we make."""
        self._maybe_reload()
        return self._client

    def check(self, name: str) -> None:
        """Shake hands with ourselves, so that a wrong certificate is found at start and not by every peer.

        Raises `ConfigurationError` when our certificate is not one that our own authority signed, for both sides of a
        connection, for the member `name`.
        """
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._client.wrap_bio(to_client, to_server, server_hostname="localhost")
        server = self._server.wrap_bio(to_server, to_client, server_side=True)
        waiting = [client, server]
        try:
            for _ in range(8):  # flights of a handshake; TLS 1.2 needs the most, four
                waiting = [side for side in waiting if not _advance(side)]
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"the peer certificate {self.cert_file} would not be accepted by other members: {error}; it must be "
                f"signed by {self.ca_file}, be valid now, and allow both serverAuth and clientAuth"
            ) from error
        assert not waiting, "a handshake in memory did not end"
        if not carries(client.getpeercert(), name):
            raise ConfigurationError(
                f"the peer certificate {self.cert_file} does not carry the name of this member: its subjectAltName "
                f"needs URI:{member_uri(name)} or DNS:{name}, and has {show_names(client.getpeercert())}"
            )

    def _stamps(self) -> _Stamp:
        stamps = []
        for option, path in (("certificate", self.cert_file), ("key", self.key_file), ("authority", self.ca_file)):
            try:
                status = os.stat(path)
            except OSError as error:
                raise ConfigurationError(f"the peer {option} file {path} cannot be read: {error.strerror}") from error
            stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(stamps)

    def _read(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        contexts = []
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.check_hostname = False  # addresses move; the member's name is what counts, and is checked by us
            context.verify_mode = ssl.CERT_REQUIRED
            context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
            try:
                context.load_verify_locations(cafile=self.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"the peer authority file {self.ca_file} has no usable certificate: {error}"
                ) from error
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise ConfigurationError(
                    f"the peer certificate {self.cert_file} with key {self.key_file} cannot be used: {error}"
                ) from error
            contexts.append(context)
        return contexts[0], contexts[1]

    def _maybe_reload(self) -> None:
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return
            self._server, self._client = self._read()
            self._stamp = stamp
            _log.info('peer certificates read again cert="%s"', self.cert_file)
        except ConfigurationError as error:
            _log.warning('peer certificates changed and cannot be used; the former ones stay error="%s"', error)


def _no_password() -> str:
    raise ValueError("the key is encrypted; give a key without a passphrase, readable by the member only")


def _advance(side: ssl.SSLObject) -> bool:
    """One step of a handshake in memory; whether it is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
