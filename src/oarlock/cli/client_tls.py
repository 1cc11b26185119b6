"""TLS of the client port, from the files that the configuration names."""

from __future__ import annotations

import ssl

from oarlock.config import ServerConfig
from oarlock.errors import ConfigurationError


def client_tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The context for `https` client URLs; None without a certificate. `ConfigurationError` names the unusable file."""
    if not config.cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"cert-file {config.cert_file} with key-file {config.key_file} cannot be used: {error}"
        ) from error
    if config.trusted_ca_file:
        try:
            context.load_verify_locations(cafile=config.trusted_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"trusted-ca-file {config.trusted_ca_file} has no usable certificate: {error}"
            ) from error
    # as etcd: an authority alone is for looking at certificates that clients offer; the flag makes them compulsory
    context.verify_mode = ssl.CERT_REQUIRED if config.client_cert_auth else ssl.CERT_NONE
    return context


def _no_password() -> str:
    """Keys are read without a person present: an encrypted one is an error, never a prompt that hangs the start."""
    raise ValueError("the key is encrypted; give one without a passphrase")
