"""TLS from files: contexts that follow their files, and errors that name the file and what to do.

Files are looked at again whenever a connection is made; when one has changed, connections made
afterwards use the new ones. Files that cannot be used leave the former ones in use, with a line in the log. The same
verification holds on every listener, because all of one kind share one `TlsSource`. (docs/how-to/turn-on-tls.md)
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from oarlock.errors import ConfigurationError

_Stamp = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)

VERSIONS: Final = {"": None, "TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files and rules. `prefix` is "" or "peer-", as the options begin. `verify`: the other side must show a
    certificate that `ca_file` signed, and, with a `crl_file`, that is not revoked there."""

    prefix: str
    cert_file: str
    key_file: str
    ca_file: str = ""
    crl_file: str = ""
    verify: bool = False
    minimum: str = "TLS1.2"
    maximum: str = ""
    ciphers: Sequence[str] = ()  # of TLS 1.2, by OpenSSL's names; none: OpenSSL's own choice

    def stamp(self) -> _Stamp:
        """What changes when a file does. Raises `ConfigurationError` for one that is not there."""
        stamps = []
        for option, path in (
            ("cert-file", self.cert_file), ("key-file", self.key_file), ("trusted-ca-file", self.ca_file),
            ("crl-file", self.crl_file),
        ):  # fmt: skip
            if path:
                try:
                    found = os.stat(path)
                except OSError as error:
                    raise self._unreadable(option, path, error) from error
                stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)

    def _option(self, option: str) -> str:
        if option == "crl-file":
            return "peer-crl-file" if self.prefix else "client-crl-file"
        return self.prefix + option

    def _unreadable(self, option: str, path: str, error: OSError) -> ConfigurationError:
        advice = f" (this process runs as user {os.geteuid()})" if isinstance(error, PermissionError) else ""
        return ConfigurationError(f"{self._option(option)} {path} cannot be read: {error.strerror or error}{advice}")

    def context(self, *, server: bool) -> ssl.SSLContext:
        """For one side of connections. Raises `ConfigurationError` that names the file and what to do."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # addresses move; between members the name counts, and is checked by us
        context.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.minimum_version = VERSIONS[self.minimum] or ssl.TLSVersion.TLSv1_2
        if maximum := VERSIONS[self.maximum]:
            context.maximum_version = maximum
        if self.ciphers:
            context.set_ciphers(":".join(self.ciphers))
        if self.ca_file:
            self._load_authority(context)
        if self.crl_file:
            self._load_revoked(context)
        self._load_certificate(context)
        return context

    def _load_authority(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{self._option('trusted-ca-file')} {self.ca_file} has no usable certificate: {error}"
            ) from error
        except OSError as error:
            raise self._unreadable("trusted-ca-file", self.ca_file, error) from error

    def _load_revoked(self, context: ssl.SSLContext) -> None:
        before = context.cert_store_stats()["crl"]
        try:
            context.load_verify_locations(cafile=self.crl_file)
        except ssl.SSLError:
            pass  # nothing in it, or nothing that is PEM
        except OSError as error:
            raise self._unreadable("crl-file", self.crl_file, error) from error
        if context.cert_store_stats()["crl"] == before:
            raise ConfigurationError(
                f"{self._option('crl-file')} {self.crl_file} holds no revocation list in PEM form "
                "(openssl crl -inform DER -in LIST -out LIST.pem makes one of a DER list)"
            )
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        for option, path in (("cert-file", self.cert_file), ("key-file", self.key_file)):
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise self._unreadable(option, path, error) from error
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            what = (
                f"{self._option('key-file')} {self.key_file} is not the key of {self._option('cert-file')} "
                f"{self.cert_file}"
                if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH"
                else f"{self._option('cert-file')} {self.cert_file} with {self._option('key-file')} {self.key_file} "
                f"cannot be used: {error}"
            )
            raise ConfigurationError(what) from error

    def warn_about_modes(self) -> None:
        """A key that others can read is worth a line, not a refusal: groups are a way to share one."""
        mode = stat.S_IMODE(os.stat(self.key_file).st_mode)
        if mode & 0o007:
            _log.warning('%s can be read by every user of this machine file="%s" mode=%04o: chmod 600',
                         self._option("key-file"), self.key_file, mode)  # fmt: skip

    def check_dates(self) -> None:
        """Raises `ConfigurationError` if our own certificate is not valid now: nobody who looks would accept it."""
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        trusting.load_verify_locations(cafile=self.cert_file)
        showing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        showing.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
        try:
            handshake(showing, trusting)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _DATE_CODES:
                raise ConfigurationError(
                    f"{self._option('cert-file')} {self.cert_file} cannot be used: {error.verify_message}; issue a new "
                    "one, or correct this machine's clock"
                ) from error
        except ssl.SSLError:
            pass  # other faults are for whoever looks at the certificate to judge


_DATE_CODES: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let the two shake hands in memory; returns (server's side, client's side). Raises `ssl.SSLError`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialling = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [dialling, answering]
    for _ in range(8):  # flights of a handshake; TLS 1.2 needs the most, four
        waiting = [side for side in waiting if not _advance(side)]
    assert not waiting, "a handshake in memory did not end"
    return answering, dialling


def _advance(side: ssl.SSLObject) -> bool:
    """One step of a handshake in memory; whether it is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _no_password() -> str:
    """Keys are read without a person present: an encrypted one is an error, never a prompt that hangs the start."""
    raise ValueError("the key is encrypted; give a key without a passphrase, readable by the member only")


class TlsSource:
    """`TlsFiles` and the contexts made of them, kept up to date. Constructing it reads everything, and raises
    `ConfigurationError` for what cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.loads = 1
        """How often files were read."""
        self._alpn: tuple[str, ...] = ()
        self._stamp = files.stamp()
        self._server, self._client = files.context(server=True), files.context(server=False)
        files.check_dates()
        files.warn_about_modes()

    def server_context(self) -> ssl.SSLContext:
        """For a connection that came in."""
        self._maybe_reload()
        return self._server

    def client_context(self) -> ssl.SSLContext:
        """For a connection that we make."""
        self._maybe_reload()
        return self._client

    def set_alpn_protocols(self, protocols: Sequence[str]) -> None:
        """What servers offer, now and after every reload."""
        self._alpn = tuple(protocols)
        self._server.set_alpn_protocols(list(protocols))

    def _maybe_reload(self) -> None:
        files = self.files
        try:
            stamp = files.stamp()
            if stamp == self._stamp:
                return
            server, client = files.context(server=True), files.context(server=False)
            files.check_dates()
        except ConfigurationError as error:
            _log.warning('certificates changed and cannot be used; the former ones stay error="%s"', error)
            return
        if self._alpn:
            server.set_alpn_protocols(list(self._alpn))
        self._server, self._client, self._stamp = server, client, stamp
        self.loads += 1
        _log.info('certificates read again cert="%s"', files.cert_file)


class FollowingContext(ssl.SSLContext):
    """A server's context for an event loop: every connection is made with its source's present files.

    Only what an event loop uses is changed: it wraps each new connection by `wrap_bio`.
    """

    source: TlsSource

    @classmethod
    def of(cls, source: TlsSource) -> FollowingContext:
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.source = source
        context.verify_mode = source.server_context().verify_mode
        return context

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.source.server_context().wrap_bio(*args, **kwargs)

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        self.source.set_alpn_protocols(alpn_protocols)
