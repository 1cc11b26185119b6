"""Every bound of the client port, by name. The defaults are etcd's where etcd has one."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one `ApiServer`. Sizes are bytes, times are seconds."""

    connections_max: int = 10_000
    """Open connections of all kinds. One more is closed as soon as it is accepted."""

    connections_light_max: int = 64
    """Connections that a host may always have. While half of `connections_max` are taken it has no more than an equal
    share besides; the last tenth is for those with fewer."""

    streams_per_connection_max: int = 1000
    """Concurrent requests on one HTTP/2 connection (SETTINGS_MAX_CONCURRENT_STREAMS)."""

    streams_total_max: int = 10_000
    """Concurrent requests on all connections together. One more is refused (REFUSED_STREAM: safe to send again)."""

    header_list_bytes_max: int = 64 * 1024
    """Decoded header list of one request, with the 32 bytes a field that RFC 9113 counts."""

    request_bytes_max: int = 1536 * 1024
    """A replicated request (etcd's --max-request-bytes). Over it: "etcdserver: request is too large"."""

    grpc_overhead_bytes: int = 512 * 1024
    """How far the gRPC message may exceed `request_bytes_max` before it is refused from its length prefix alone."""

    unfinished_request_bytes_max: int = 32 * MIB
    """Request bytes held back on one connection because their messages are not complete."""

    stream_inbox_bytes_max: int = MIB
    """Messages that a streaming handler has not taken yet. Over it the connection is not read."""

    stream_window_bytes: int = MIB
    """HTTP/2 receive window of one stream."""

    connection_window_bytes: int = 16 * MIB
    """HTTP/2 receive window of one connection."""

    unsent_bytes_max: int = 64 * MIB
    """Answers that wait on one connection for a slow reader. Over it further requests are refused."""

    unsent_bytes_total_max: int = 512 * MIB
    """The same for all connections together."""

    stream_unsent_bytes: int = 256 * 1024
    """Unsent bytes of one streaming answer at which `send` waits for the reader."""

    quota_bytes: int = 2 << 30
    """Space in use at which nothing is taken any more that needs some (etcd's --quota-backend-bytes)."""

    txn_ops_max: int = 128
    """Operations of one transaction (etcd's --max-txn-ops)."""

    txn_depth_max: int = 8
    """How deep transactions are nested: 1 is a transaction that holds none."""

    password_threads: int = 2
    """Threads that hash and check passwords."""

    passwords_waiting_max: int = 64
    """Passwords that wait to be hashed or checked. Over it: "too many requests"."""

    password_cache_max: int = 1024
    """Right passwords, and callers who were wrong, that are remembered."""

    password_cache_s: float = 60.0
    """How long a right password is remembered."""

    wrong_passwords_max: int = 30
    """Wrong passwords for one user in a row from one address. Over it: "too many requests"."""

    wrong_passwords_per_s: float = 0.5
    """How fast they are forgiven."""

    tokens_remembered_max: int = 20_000
    """Tokens whose last use, or checked signature, is remembered."""

    requests_light_max: int = 16
    """Requests of one connection in one turn of the event loop that are always served at once."""

    requests_per_turn_max: int = 256
    """The same, while the server has little to do. What is more waits for its turn; the connection is not read on."""

    requests_per_turn_total_max: int = 2048
    """Requests of all connections in one turn, beyond those that are always served. The rest takes turns."""

    read_units_per_turn: int = 2048
    """Work on reads of all connections in one turn of the loop: a unit is a key that is looked at, a step into the
    past, or 4 KiB of key-values. Exceeded by one step, of `machines.kv.reading.STEP_UNITS`, at most."""

    read_held_bytes_max: int = 256 * MIB
    """Answers that reads have gathered and not given yet. Over it one read goes on at a time."""

    keepalive_min_s: float = 5.0
    """How often a client may ask for a sign of life (etcd's --grpc-keepalive-min-time). Without a request under way:
    every `PING_WITHOUT_REQUEST_S`. Three pings too many: GOAWAY with "too_many_pings"."""

    control_frames_per_s: int = 2000
    """PING, SETTINGS and RST_STREAM frames a second from one connection. Over it: GOAWAY with ENHANCE_YOUR_CALM."""

    handshake_s: float = 10.0
    """From accept to the first complete request line or the HTTP/2 SETTINGS frame; also the TLS handshake."""

    unfinished_request_s: float = 60.0
    """How long a unary request may stay incomplete."""

    stall_s: float = 60.0
    """How long a connection with answers waiting may take none of them before it is cut."""

    keepalive_interval_s: float = 7200.0
    """Silence after which an HTTP/2 connection is sent a PING (etcd's --grpc-keepalive-interval)."""

    keepalive_timeout_s: float = 20.0
    """How long the answer to that PING may take (etcd's --grpc-keepalive-timeout)."""

    watches_per_stream_max: int = 10_000
    """Watches of one Watch stream. One more is refused in the stream."""

    watches_total_max: int = 200_000
    """Watches of all streams together."""

    watch_outbox_bytes_max: int = MIB
    """Events that wait for one Watch stream's reader. Over it its watches catch up from the log later."""

    watch_outbox_total_bytes_max: int = 256 * MIB
    """The same for all Watch streams together."""

    watch_progress_interval_s: float = 600.0
    """How often a quiet watch that asked for it is told how far it is (etcd's
    --experimental-watch-progress-notify-interval); up to a tenth longer."""

    leaderless_s: float = 3.0
    """How long a stream with the metadata `hasleader` goes on without a leader (etcd: three election timeouts)."""

    waiters_max: int = 10_000
    """Calls of Lock and Campaign that wait for their turn."""

    http_body_bytes_max: int = 2 * MIB
    """Body of one HTTP/1.1 request."""

    json_depth_max: int = 64
    """How deep a JSON body is nested. The deepest transaction takes 29 levels."""

    http_header_bytes_max: int = 64 * 1024
    """Request line and headers of one HTTP/1.1 request."""

    @property
    def grpc_message_bytes_max(self) -> int:
        """The largest gRPC message that is read at all."""
        return self.request_bytes_max + self.grpc_overhead_bytes

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise ValueError(f"limit {limit.name} is {value!r}: it must be greater than zero")
