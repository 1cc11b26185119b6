"""The table of options. `ServerConfig`'s fields are the options of `oarlock serve`; all else is derived from them.

A field `heartbeat_interval` has the flag `--heartbeat-interval`, the environment names `OARLOCK_HEARTBEAT_INTERVAL`
and, if the option is etcd's, `ETCD_HEARTBEAT_INTERVAL`, and the TOML key `heartbeat-interval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from oarlock.config.values import (
    BOOL,
    CLUSTER,
    DURATION,
    ID,
    INT,
    MILLISECONDS,
    NAMES,
    PATH,
    SIZE,
    TEXT,
    URLS,
    WORDS,
    Cluster,
    Kind,
)

SECTIONS: Mapping[str, str] = {
    "member": "this member: its name, its data and where it listens",
    "clustering": "who the members are when the cluster begins",
    "consensus": "timing and rules of the Raft group",
    "limits": "bounds; what is beyond them is refused with a clear error",
    "security": "TLS towards clients and between members",
    "observing": "logs",
    "process": "how the process runs",
}

DEFAULT_CLIENT_URL = "http://localhost:2379"
DEFAULT_PEER_URL = "http://localhost:2380"
ELECTION_TIMEOUT_MS_MAX = 50_000  # etcd's
ELECTION_PER_HEARTBEAT_MIN = 5  # etcd's


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the user meets it."""

    field: str
    kind: Kind
    default: object
    help: str
    section: str
    etcd: bool
    """Whether etcd has this flag with this meaning (then `ETCD_...` is accepted in the environment too)."""
    default_text: str = ""
    """What the reference says instead of the default, for defaults that follow from other options."""
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None
    """Other spellings of choices."""
    minimum: int | None = None
    maximum: int | None = None

    @property
    def name(self) -> str:
        return self.field.replace("_", "-")

    @property
    def flag(self) -> str:
        return "--" + self.name

    @property
    def environment(self) -> str:
        return "OARLOCK_" + self.field.upper()

    @property
    def etcd_environment(self) -> str | None:
        return "ETCD_" + self.field.upper() if self.etcd else None

    def parse(self, value: object) -> object:
        """Read a flag's or variable's text or a TOML value. Raises `ValueError` saying what is expected."""
        parsed = self.kind.parse(value)
        if self.choices:
            assert isinstance(parsed, str)
            parsed = (self.aliases or {}).get(parsed, parsed)
            if parsed not in self.choices:
                raise ValueError(f"{parsed!r} is none of {', '.join(self.choices)}")
        if self.minimum is not None or self.maximum is not None:
            assert isinstance(parsed, int)
            if (self.minimum is not None and parsed < self.minimum) or (
                self.maximum is not None and parsed > self.maximum
            ):
                raise ValueError(f"{self.kind.show(parsed)} is out of range: {self.range_text()}")
        return parsed

    def range_text(self) -> str:
        """The permitted range in words; empty when there is none."""
        show = self.kind.show
        if self.minimum is not None and self.maximum is not None:
            return f"{show(self.minimum)} to {show(self.maximum)}"
        if self.minimum is not None:
            return f"at least {show(self.minimum)}"
        return f"at most {show(self.maximum)}" if self.maximum is not None else ""


def _option(
    kind: Kind,
    default: Any,
    help: str,
    *,
    etcd: bool = True,
    **more: Any,
) -> Any:
    """Declare a field of the table; `more` are `Option`'s remaining fields."""
    return field(default=default, metadata={"kind": kind, "help": help, "etcd": etcd, "more": more})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The values of all options. Durations are whole milliseconds, sizes bytes, URLs normalised."""

    # -- member
    name: str = _option(TEXT, "default", "This member's name; unique in the cluster.", section="member")
    data_dir: str = _option(
        PATH,
        "",
        "The directory of this member's log, snapshots and store. One process at a time may use it.",
        section="member",
        default_text="`NAME.oarlock` in the working directory",
    )
    listen_client_urls: tuple[str, ...] = _option(
        URLS,
        (DEFAULT_CLIENT_URL,),
        "Where to accept clients (gRPC and HTTP on the same port). Port 0 takes a free one.",
        section="member",
    )
    listen_peer_urls: tuple[str, ...] = _option(
        URLS, (DEFAULT_PEER_URL,), "Where to accept the other members.", section="member"
    )
    storage: str = _option(
        TEXT,
        "lmdb",
        "Where the key-value store lives: `lmdb` keeps it on disk and restarts at once; `memory` is for small data "
        "and rebuilds it from the last snapshot and the log.",
        etcd=False,
        section="member",
        choices=("lmdb", "memory"),
    )

    # -- clustering
    advertise_client_urls: tuple[str, ...] = _option(
        URLS,
        (DEFAULT_CLIENT_URL,),
        "The client URLs of this member as others can reach it; clients get them from the member list. To be given "
        "whenever `--listen-client-urls` is.",
        section="clustering",
    )
    initial_advertise_peer_urls: tuple[str, ...] = _option(
        URLS,
        (DEFAULT_PEER_URL,),
        "The peer URLs of this member as the other members can reach it; the same as in `--initial-cluster`.",
        section="clustering",
    )
    initial_cluster: Cluster = _option(
        CLUSTER,
        (),
        "Every member of the new cluster with its peer URLs; the same on all members. In a TOML file a text as here, "
        "or a table from name to URL.",
        section="clustering",
        default_text="this member alone: `NAME=` and `--initial-advertise-peer-urls`",
    )
    initial_cluster_state: str = _option(
        TEXT,
        "new",
        "`new` begins a cluster; `existing` joins one that already counts this member (`etcdctl member add`), which "
        "the other members in `--initial-cluster` are asked about. Ignored once the data directory is in use.",
        section="clustering",
        choices=("new", "existing"),
    )
    initial_cluster_token: str = _option(
        TEXT,
        "etcd-cluster",
        "A word that goes into the cluster's id, so that two clusters with the same members cannot be mixed up.",
        section="clustering",
    )

    discovery_srv: str = _option(
        TEXT,
        "",
        "A DNS domain whose SRV records name the members of the new cluster, in place of `--initial-cluster`: "
        "`_etcd-server-ssl._tcp.DOMAIN` those with https, `_etcd-server._tcp.DOMAIN` those with http. "
        "`--initial-advertise-peer-urls` must be as the record has it. Ignored once the data directory is in use.",
        section="clustering",
    )
    discovery_srv_name: str = _option(
        TEXT,
        "",
        "A word that goes into the SRV names, so that a domain can hold several clusters: "
        "`_etcd-server-NAME._tcp.DOMAIN`.",
        section="clustering",
    )
    discovery_nameserver: str = _option(
        TEXT,
        "",
        "The nameservers to ask for `--discovery-srv`, as `address` or `address:port`, with commas between them.",
        etcd=False,
        section="clustering",
        default_text="those of the system",
    )

    cluster_id: int = _option(
        ID,
        0,
        "The id of the cluster (hexadecimal, as the ready line prints it) that a new member joins with "
        "`--initial-cluster-state=existing`. 0: not given; the other members in `--initial-cluster` say it.",
        etcd=False,
        section="clustering",
        minimum=0,
        maximum=2**64 - 1,
    )

    force_new_cluster: bool = _option(
        BOOL,
        False,
        "Make a cluster of one of this member's data before it starts, when the majority is lost for good; what the "
        "others had and this disk has not is lost. The old directory is kept. Does nothing on data that was recovered.",
        section="clustering",
    )
    strict_reconfig_check: bool = _option(
        BOOL,
        True,
        "Refuse changes of members that could cost the cluster its majority: too few members started, or connected.",
        section="clustering",
    )

    # -- consensus
    heartbeat_interval: int = _option(
        MILLISECONDS,
        100,
        "Time between a leader's heartbeats, in milliseconds. About one round trip between the members.",
        section="consensus",
        minimum=1,
        maximum=ELECTION_TIMEOUT_MS_MAX // ELECTION_PER_HEARTBEAT_MIN,
    )
    election_timeout: int = _option(
        MILLISECONDS,
        1000,
        "Time without a leader after which a member campaigns, in milliseconds; each waits a random time between one "
        "and two of these. At least five heartbeats.",
        section="consensus",
        minimum=ELECTION_PER_HEARTBEAT_MIN,
        maximum=ELECTION_TIMEOUT_MS_MAX,
    )
    snapshot_count: int = _option(
        INT,
        100_000,
        "Entries applied between two snapshots (`memory`) or checkpoints of the log's start (`lmdb`).",
        section="consensus",
        minimum=1,
    )
    pre_vote: bool = _option(
        BOOL,
        True,
        "Ask before campaigning whether an election could be won, so that a member that was cut off does not disturb "
        "the others when it returns (diss. 9.6).",
        section="consensus",
    )
    read_mode: str = _option(
        TEXT,
        "read-index",
        "How linearizable reads are made: `read-index` asks a majority once for each batch of reads (diss. 6.4); "
        "`lease` asks nobody, and trusts that no member's clock runs more than 1 % fast or slow (all need the same "
        "`--election-timeout`).",
        etcd=False,
        section="consensus",
        choices=("read-index", "lease"),
    )

    # -- limits
    max_request_bytes: int = _option(
        SIZE,
        1_572_864,
        "The largest request that a client may send.",
        section="limits",
        minimum=1024,
        maximum=64 << 20,
    )
    quota_backend_bytes: int = _option(
        INT,
        0,
        "Bytes of state in use at which writes are refused until some are freed (the alarm NOSPACE). 0: 2 GiB; less "
        "than 0: no quota.",
        section="limits",
    )
    auto_compaction_mode: str = _option(
        TEXT,
        "periodic",
        "How history is dropped by itself: `periodic` keeps the time, `revision` the number of revisions that "
        "`--auto-compaction-retention` says.",
        section="limits",
        choices=("periodic", "revision"),
    )
    auto_compaction_retention: str = _option(
        TEXT,
        "0",
        "How much history is kept: a duration (`30m`; a number alone is hours), or a number of revisions. 0: all, "
        "until a client compacts.",
        section="limits",
    )
    max_txn_ops: int = _option(
        INT, 128, "Operations in one transaction, nested ones included.", section="limits", minimum=1, maximum=100_000
    )
    max_concurrent_streams: int = _option(
        INT,
        1000,
        "Requests that may be under way on one client connection.",
        section="limits",
        minimum=1,
        maximum=100_000,
    )
    max_connections: int = _option(
        INT, 10_000, "Open client connections.", etcd=False, section="limits", minimum=1, maximum=1_000_000
    )
    grpc_keepalive_interval: int = _option(
        DURATION,
        7_200_000,
        "Silence after which a client's connection is asked for a sign of life.",
        section="limits",
        minimum=1000,
        maximum=86_400_000,
    )
    experimental_watch_progress_notify_interval: int = _option(
        DURATION,
        600_000,
        "How often a quiet watch that asked for it is told how far it is; up to a tenth longer. 0: the default.",
        section="limits",
        maximum=86_400_000,
    )
    grpc_keepalive_min_time: int = _option(
        DURATION,
        5_000,
        "How often a client may ask for a sign of life; who asks more often is disconnected.",
        section="limits",
        minimum=0,
        maximum=3_600_000,
    )
    grpc_keepalive_timeout: int = _option(
        DURATION,
        20_000,
        "Time for that sign of life, before the connection is closed.",
        section="limits",
        minimum=1000,
        maximum=3_600_000,
    )

    # -- security
    cert_file: str = _option(PATH, "", "The certificate (PEM) shown to clients.", section="security")
    key_file: str = _option(PATH, "", "The private key (PEM) of `--cert-file`.", section="security")
    client_cert_auth: bool = _option(
        BOOL, False, "Ask clients for a certificate signed by `--trusted-ca-file`.", section="security"
    )
    trusted_ca_file: str = _option(
        PATH,
        "",
        "The authority (PEM) that signs clients' certificates. As in etcd, clients must show one once it is given.",
        section="security",
    )
    client_crl_file: str = _option(
        PATH,
        "",
        "Clients' certificates that are revoked: a list (PEM) of the authority in `--trusted-ca-file`.",
        section="security",
    )
    auto_tls: bool = _option(
        BOOL,
        False,
        "Make a self-signed certificate for clients in the data directory if none is given (needs `oarlock[pki]`). It "
        "hides what is said from whoever listens, and proves nothing.",
        section="security",
    )
    auth_token: str = _option(
        TEXT,
        "simple",
        "What clients get for their password: `simple`, or "
        "`jwt,sign-method=RS256,priv-key=FILE,pub-key=FILE,ttl=10m` (any of RS, PS, ES 256/384/512, EdDSA, HS). A "
        "member with `pub-key` only checks tokens and gives none.",
        section="security",
    )
    auth_token_ttl: int = _option(
        INT,
        300,
        "Seconds that a simple token lives without being used.",
        section="security",
        minimum=1,
        maximum=86_400 * 30,
    )
    bcrypt_cost: int = _option(
        INT,
        10,
        "Work of hashing a password: each step doubles it.",
        section="security",
        minimum=4,
        maximum=16,
    )
    password_length_min: int = _option(
        INT,
        1,
        "The shortest password that a user may be given, in characters.",
        etcd=False,
        section="security",
        minimum=0,
        maximum=72,
    )
    host_whitelist: tuple[str, ...] = _option(
        NAMES,
        ("*",),
        "Host names that HTTP requests may carry (`*`: any), against pages that rebind their name to this address.",
        section="security",
    )
    cors: tuple[str, ...] = _option(
        NAMES,
        ("*",),
        "Origins whose pages may use the HTTP side from a browser (`*`: any). Unless any may, requests from pages of "
        "others are refused.",
        section="security",
    )
    peer_cert_file: str = _option(
        PATH,
        "",
        "The certificate (PEM) shown to other members. It must carry this member's name: a subjectAltName "
        "`URI:oarlock://member/NAME` or `DNS:NAME`.",
        section="security",
    )
    peer_key_file: str = _option(PATH, "", "The private key (PEM) of `--peer-cert-file`.", section="security")
    peer_client_cert_auth: bool = _option(
        BOOL,
        False,
        "Ask members for a certificate signed by `--peer-trusted-ca-file`. With `https` between members this is always "
        "done; the flag is accepted so that etcd's command lines work.",
        section="security",
    )
    peer_trusted_ca_file: str = _option(
        PATH, "", "The authority (PEM) that signs members' certificates.", section="security"
    )
    peer_crl_file: str = _option(
        PATH,
        "",
        "Members' certificates that are revoked: a list (PEM) of the authority in `--peer-trusted-ca-file`.",
        section="security",
    )
    peer_auto_tls: bool = _option(
        BOOL,
        False,
        "Make a self-signed certificate for the other members if none is given (needs `oarlock[pki]`). Connections are "
        "encrypted, and nobody proves which member he is.",
        section="security",
    )
    peer_cert_allowed_cn: str = _option(
        TEXT,
        "",
        "The common name that every member's certificate must have, besides carrying its member's name.",
        section="security",
    )
    tls_min_version: str = _option(
        TEXT, "TLS1.2", "The oldest version of TLS spoken.", section="security", choices=("TLS1.2", "TLS1.3"),
        aliases={"": "TLS1.2"},
    )  # fmt: skip
    tls_max_version: str = _option(
        TEXT,
        "",
        "The newest version of TLS spoken.",
        section="security",
        choices=("", "TLS1.2", "TLS1.3"),
        default_text="the newest there is",
    )
    cipher_suites: tuple[str, ...] = _option(
        WORDS,
        (),
        "Cipher suites of TLS 1.2 that are permitted, by etcd's names; those of TLS 1.3 cannot be chosen.",
        section="security",
        default_text="OpenSSL's own choice",
    )

    # -- observing
    log_level: str = _option(
        TEXT,
        "info",
        "The least severe messages to log. `info` is one line for each change of role, term, configuration or health.",
        section="observing",
        choices=("debug", "info", "warn", "error"),
        aliases={"warning": "warn", "panic": "error", "fatal": "error"},
    )
    log_format: str = _option(
        TEXT,
        "text",
        "`text` for people, `json` with one object a line.",
        section="observing",
        choices=("text", "json"),
        aliases={"console": "text"},
    )
    # -- process
    http2: str = _option(
        TEXT,
        "auto",
        "What speaks HTTP/2: `own` is Oarlock's engine, `ngh2` and `h2` are libraries; `auto` is `own`.",
        etcd=False,
        section="process",
        choices=("auto", "own", "ngh2", "h2"),
    )
    log_sync: str = _option(
        TEXT,
        "auto",
        "Who syncs the log: `auto` is the kernel by itself where it can (Linux), `thread` always a thread.",
        etcd=False,
        section="process",
        choices=("auto", "thread"),
    )
    uvloop: bool = _option(
        BOOL,
        True,
        'Run on uvloop where it is installed (`pip install "oarlock[speed]"`), else on asyncio\'s own event loop.',
        etcd=False,
        section="process",
    )
    shutdown_timeout: int = _option(
        DURATION,
        10_000,
        "Time that SIGTERM gives to hand leadership over, finish what is under way and close the disk.",
        etcd=False,
        section="process",
        minimum=100,
        maximum=600_000,
    )


def _read_table() -> tuple[Option, ...]:
    table = []
    for item in fields(ServerConfig):
        metadata = item.metadata
        table.append(
            Option(
                field=item.name,
                kind=metadata["kind"],
                default=item.default,
                help=metadata["help"],
                etcd=metadata["etcd"],
                **metadata["more"],
            )
        )
        assert table[-1].section in SECTIONS, table[-1]
    return tuple(table)


OPTIONS: tuple[Option, ...] = _read_table()
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}

CONFIG_FILE = Option(
    field="config_file",
    kind=PATH,
    default="",
    help="A TOML file whose keys are these options' names. Flags and environment go before it.",
    section="process",
    etcd=True,
)
"""The one option that cannot stand in the file itself."""

# Flags of etcd that have no counterpart here. The value given is the one that asks for nothing (as a rule etcd's
# default): with it the flag is accepted, so that existing units and manifests work; with any other the server refuses
# to start rather than run without what was asked for.
ETCD_ONLY: Mapping[str, tuple[str, ...]] = {
    "backend-batch-interval": ("", "0", "0s"),
    "backend-batch-limit": ("0",),
    "backend-bbolt-freelist-type": ("map", "array"),
    "client-cert-allowed-hostname": ("",),
    "discovery": ("",),
    "discovery-proxy": ("",),
    "enable-pprof": ("false",),
    "enable-v2": ("false",),
    "experimental-initial-corrupt-check": ("false", "true"),
    "initial-election-tick-advance": ("true", "false"),
    "listen-metrics-urls": ("",),
    "log-outputs": ("default", "stderr", ""),
    "logger": ("zap",),
    "max-snapshots": ("5", "0"),
    "max-wals": ("5", "0"),
    "metrics": ("basic",),
    "peer-cert-allowed-hostname": ("",),
    "unsafe-no-fsync": ("false",),
    "wal-dir": ("",),
}
