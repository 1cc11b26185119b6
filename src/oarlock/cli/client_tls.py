"""TLS of the client port and between members, from the files that the configuration names."""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit

from oarlock.config import ServerConfig
from oarlock.config.cipher_suites import CIPHER_SUITES
from oarlock.errors import ConfigurationError
from oarlock.transport.tls import PeerTls
from oarlock.transport.tls_files import FollowingContext, TlsFiles, TlsSource


def client_tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The context for every `https` client URL, which follows its files; None without a certificate.
    `ConfigurationError` names the unusable file."""
    cert, key = config.cert_file, config.key_file
    if not cert and config.auto_tls:
        cert, key = self_signed(config, "client", config.listen_client_urls)
    if not cert:
        return None
    files = TlsFiles(
        prefix="",
        cert_file=cert,
        key_file=key,
        ca_file=config.trusted_ca_file,
        crl_file=config.client_crl_file,
        verify=config.client_cert_auth or bool(config.trusted_ca_file),  # as etcd
        minimum=config.tls_min_version,
        maximum=config.tls_max_version,
        ciphers=ciphers_of(config),
    )
    return FollowingContext.of(TlsSource(files))


def peer_tls(config: ServerConfig) -> PeerTls | None:
    """What members show and check; None between plain URLs. Raises `ConfigurationError` for certificates that other
    members would not accept."""
    cert, key = config.peer_cert_file, config.peer_key_file
    automatic = not cert and config.peer_auto_tls
    if automatic:
        cert, key = self_signed(config, "peer", config.listen_peer_urls)
    if not cert:
        return None
    tls = PeerTls(
        cert_file=cert,
        key_file=key,
        ca_file=config.peer_trusted_ca_file,
        crl_file=config.peer_crl_file,
        allowed_cn=config.peer_cert_allowed_cn,
        unverified=automatic,
        minimum=config.tls_min_version,
        maximum=config.tls_max_version,
        ciphers=ciphers_of(config),
    )
    if not automatic:
        tls.check(config.name)
    return tls


def ciphers_of(config: ServerConfig) -> tuple[str, ...]:
    """OpenSSL's names of the permitted suites."""
    return tuple(dict.fromkeys(CIPHER_SUITES[name] for name in config.cipher_suites))


def self_signed(config: ServerConfig, side: str, urls: tuple[str, ...]) -> tuple[str, str]:
    """Certificate and key in `DATA_DIR/fixtures/SIDE`, as etcd's --auto-tls: made once, and anew when it expires."""
    try:
        from oarlock.cli.certificates import make_self_signed, still_valid
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'{"peer-" if side == "peer" else ""}auto-tls needs the package {error.name}: pip install "oarlock[pki]"'
        ) from error
    os.makedirs(config.data_dir, mode=0o700, exist_ok=True)
    directory = os.path.join(config.data_dir, "fixtures", side)
    cert, key = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    if not still_valid(cert) or not os.path.exists(key):
        hosts = [urlsplit(url).hostname or "localhost" for url in urls]
        make_self_signed(directory, cert, key, hosts)
    return cert, key
