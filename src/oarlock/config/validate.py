"""What concerns several options at once: etcd's rules, and the values that follow from others."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urlsplit

from oarlock.config.auth_token import parse_auth_token
from oarlock.config.cipher_suites import CIPHER_SUITES
from oarlock.config.load import Loaded, nearest
from oarlock.config.options import (
    DEFAULT_PEER_URL,
    ELECTION_PER_HEARTBEAT_MIN,
    ServerConfig,
)
from oarlock.config.values import check_member_name, parse_duration, show_cluster
from oarlock.errors import ConfigurationError

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
MEMBERS_MAX = 64  # as in raft.types; a test holds the two together


def validate(loaded: Loaded) -> ServerConfig:
    """The configuration with its derived values filled in.

    Raises `ConfigurationError` for the first rule that is broken; the text says how to mend it.
    """
    config = _derive(loaded)
    _check_name(config)
    _check_timing(loaded, config)
    _check_urls(loaded, config)
    _check_discovery(loaded, config)
    _check_cluster(config)
    _check_tls(config)
    _check_compaction(config)
    try:
        parse_auth_token(config.auth_token)
    except ValueError as error:
        raise ConfigurationError(f"auth-token: {error}") from error
    return config


def _derive(loaded: Loaded) -> ServerConfig:
    config = loaded.config
    if not config.data_dir:
        config = replace(config, data_dir=f"{config.name}.oarlock")
    if not config.initial_cluster:
        config = replace(config, initial_cluster=((config.name, config.initial_advertise_peer_urls),))
    return config


def _check_name(config: ServerConfig) -> None:
    try:
        check_member_name(config.name)
    except ValueError as error:
        raise ConfigurationError(f"name: {error}") from error
    if not config.initial_cluster_token:
        raise ConfigurationError("initial-cluster-token must not be empty")


def _check_timing(loaded: Loaded, config: ServerConfig) -> None:
    least = ELECTION_PER_HEARTBEAT_MIN * config.heartbeat_interval
    if config.election_timeout < least:
        raise ConfigurationError(
            f"election-timeout is {config.election_timeout} ms (from {loaded.sources['election_timeout']}), but must "
            f"be at least {ELECTION_PER_HEARTBEAT_MIN} times heartbeat-interval, which is {config.heartbeat_interval} "
            f"ms (from {loaded.sources['heartbeat_interval']}): give --election-timeout={least} or more"
        )


def _check_urls(loaded: Loaded, config: ServerConfig) -> None:
    for name in ("listen_client_urls", "listen_peer_urls", "advertise_client_urls", "initial_advertise_peer_urls"):
        urls: tuple[str, ...] = getattr(config, name)
        if not urls:
            raise ConfigurationError(f"{name.replace('_', '-')} must have at least one URL")
    if loaded.given("listen_client_urls") and not loaded.given("advertise_client_urls"):
        raise ConfigurationError(
            "advertise-client-urls is required when listen-client-urls is given: say at which URL clients reach this "
            f"member, such as --advertise-client-urls={config.listen_client_urls[0]}"
        )
    if (
        loaded.given("listen_peer_urls")
        and not loaded.given("initial_advertise_peer_urls")
        and config.listen_peer_urls != (DEFAULT_PEER_URL,)
    ):
        raise ConfigurationError(
            "initial-advertise-peer-urls is required when listen-peer-urls is given: say at which URL the other "
            f"members reach this one, such as --initial-advertise-peer-urls={config.listen_peer_urls[0]}"
        )
    for name in ("advertise_client_urls", "initial_advertise_peer_urls"):
        for url in getattr(config, name):
            parts = urlsplit(url)
            if parts.port == 0 and name == "initial_advertise_peer_urls":
                raise ConfigurationError(f"{name.replace('_', '-')}: {url} has port 0; nobody could reach it")
            if parts.hostname in ("0.0.0.0", "::"):  # noqa: S104 - refused here, not bound
                raise ConfigurationError(
                    f"{name.replace('_', '-')}: {url} is an address to listen on, not one that others can reach; "
                    "give this host's name or address"
                )
    taken: dict[tuple[str | None, int], str] = {}
    for name in ("listen_client_urls", "listen_peer_urls"):
        for url in getattr(config, name):
            parts = urlsplit(url)
            if parts.port and (place := (parts.hostname, parts.port)) in taken:
                raise ConfigurationError(
                    f"{taken[place]} and {name.replace('_', '-')} both want {parts.netloc}; each needs its own port"
                )
            assert parts.port is not None
            taken[parts.hostname, parts.port] = name.replace("_", "-")
    for name in ("listen_client_urls", "listen_peer_urls"):
        schemes = {urlsplit(url).scheme for url in getattr(config, name)}
        if len(schemes) > 1:
            raise ConfigurationError(f"{name.replace('_', '-')} mixes http and https; use one of them")


def _check_discovery(loaded: Loaded, config: ServerConfig) -> None:
    if not config.discovery_srv:
        for name in ("discovery_srv_name", "discovery_nameserver"):
            if getattr(config, name):
                raise ConfigurationError(f"{name.replace('_', '-')} is given without discovery-srv")
        return
    if loaded.given("initial_cluster"):
        raise ConfigurationError("discovery-srv and initial-cluster are both given: the members come from one of them")
    if config.initial_cluster_state != "new":
        raise ConfigurationError(
            "discovery-srv names the members of a new cluster; to join an existing one give initial-cluster as "
            "`etcdctl member add` printed it"
        )
    if not loaded.given("initial_advertise_peer_urls"):
        raise ConfigurationError(
            "initial-advertise-peer-urls is required with discovery-srv: say which of the records is this member, such "
            f"as --initial-advertise-peer-urls=http://{config.name}.{config.discovery_srv}:2380"
        )
    for name in ("discovery_srv", "discovery_srv_name"):
        text = getattr(config, name)
        if not all(_LABEL.fullmatch(label) for label in text.removesuffix(".").split(".")) and text:
            raise ConfigurationError(f"{name.replace('_', '-')}: {text!r} is no name of DNS")


def _check_cluster(config: ServerConfig) -> None:
    if config.cluster_id and config.initial_cluster_state != "existing":
        raise ConfigurationError(
            "cluster-id is given, but initial-cluster-state is new: a new cluster's id follows from its members"
        )
    members = dict(config.initial_cluster)
    if len(members) > MEMBERS_MAX:
        raise ConfigurationError(f"initial-cluster has {len(members)} members; at most {MEMBERS_MAX} are possible")
    if config.name not in members:
        raise ConfigurationError(
            f"initial-cluster does not contain this member's name {config.name!r}: it has "
            f"{', '.join(sorted(members))}; set --name to one of them or add "
            f"{config.name}={config.initial_advertise_peer_urls[0]}"
        )
    if sorted(members[config.name]) != sorted(config.initial_advertise_peer_urls):
        expected = show_cluster(((config.name, config.initial_advertise_peer_urls),))
        raise ConfigurationError(
            f"initial-cluster has {show_cluster(((config.name, members[config.name]),))} for this member, but "
            f"initial-advertise-peer-urls says {expected}: they must be the same"
        )
    owners: dict[str, str] = {}
    for name, urls in config.initial_cluster:
        for url in urls:
            if url in owners:
                raise ConfigurationError(
                    f"initial-cluster gives {url} to both {owners[url]} and {name}: every member needs its own peer URL"
                )
            owners[url] = name


def _check_tls(config: ServerConfig) -> None:
    for prefix, listens, authenticate, authority, revoked, automatic in (
        ("", config.listen_client_urls, config.client_cert_auth, config.trusted_ca_file, config.client_crl_file,
         config.auto_tls),
        ("peer-", config.listen_peer_urls, config.peer_client_cert_auth, config.peer_trusted_ca_file,
         config.peer_crl_file, config.peer_auto_tls),
    ):  # fmt: skip
        cert, key = (config.peer_cert_file, config.peer_key_file) if prefix else (config.cert_file, config.key_file)
        if bool(cert) != bool(key):
            have, lack = ("cert", "key") if cert else ("key", "cert")
            raise ConfigurationError(f"{prefix}{have}-file is given without {prefix}{lack}-file: TLS needs both")
        secure = urlsplit(listens[0]).scheme == "https"
        which = "listen-peer-urls" if prefix else "listen-client-urls"
        if secure and not cert and not automatic:
            raise ConfigurationError(f"{which} is https, which needs {prefix}cert-file and {prefix}key-file")
        if (cert or automatic) and not secure:
            given = f"{prefix}cert-file" if cert else f"{prefix}auto-tls"
            raise ConfigurationError(
                f"{given} is given, but {which} is http: write https there, or leave the certificate out"
            )
        option = f"{prefix}client-cert-auth"
        if authenticate and not secure:
            raise ConfigurationError(f"{option} is on, but {which} is http: nobody could be asked for a certificate")
        if authenticate and not authority:
            raise ConfigurationError(f"{option} is on, which needs {prefix}trusted-ca-file")
        if authority and not (cert or (automatic and not prefix)):
            raise ConfigurationError(f"{prefix}trusted-ca-file is given without {prefix}cert-file: TLS needs both")
        if revoked and not authority:
            crl = "peer-crl-file" if prefix else "client-crl-file"
            raise ConfigurationError(
                f"{crl} is given without {prefix}trusted-ca-file: nobody is asked for a certificate"
            )
    if config.peer_cert_file and not config.peer_trusted_ca_file:
        raise ConfigurationError(
            "peer-cert-file is given without peer-trusted-ca-file: members always check each other's certificates"
        )
    if config.peer_cert_allowed_cn and not config.peer_cert_file:
        raise ConfigurationError("peer-cert-allowed-cn is given without peer-cert-file: members show no certificates")
    for name in config.cipher_suites:
        if name not in CIPHER_SUITES:
            raise ConfigurationError(
                f"cipher-suites: {name!r} is not known{nearest(name, CIPHER_SUITES)}; those of TLS 1.3 cannot be chosen"
            )
    if config.tls_max_version and config.tls_max_version < config.tls_min_version:
        raise ConfigurationError(
            f"tls-max-version is {config.tls_max_version}, below tls-min-version {config.tls_min_version}"
        )
    if config.cipher_suites and config.tls_min_version == "TLS1.3":
        raise ConfigurationError("cipher-suites are of TLS 1.2, and tls-min-version is TLS1.3: leave one out")
    if urlsplit(config.listen_peer_urls[0]).scheme != urlsplit(config.initial_advertise_peer_urls[0]).scheme:
        raise ConfigurationError("listen-peer-urls and initial-advertise-peer-urls must both be http or both be https")


def retained_ms(text: str) -> int:
    """How long history is kept, by `--auto-compaction-retention` in the mode `periodic`: a duration, or whole hours.
    Raises `ValueError`.

    >>> retained_ms("30m"), retained_ms("2"), retained_ms("0")
    (1800000, 7200000, 0)
    """
    text = text.strip()
    return int(text) * 3_600_000 if text.isdigit() else parse_duration(text or "0")


def retained_revisions(text: str) -> int:
    """How many revisions are kept, in the mode `revision`. Raises `ValueError`."""
    if not text.strip().isdigit():
        raise ValueError(f"{text!r} is not a number of revisions")
    return int(text)


def _check_compaction(config: ServerConfig) -> None:
    retained = retained_revisions if config.auto_compaction_mode == "revision" else retained_ms
    try:
        retained(config.auto_compaction_retention)
    except ValueError as error:
        raise ConfigurationError(
            f"auto-compaction-retention with auto-compaction-mode {config.auto_compaction_mode}: {error}"
        ) from error
