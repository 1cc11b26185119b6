"""Metrics in Prometheus' form, in a registry of their own, with etcd's names where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from oarlock.api.backend import Backend
from oarlock.api.grpc.router import Method
from oarlock.api.grpc.status import Code
from oarlock.machines.kv.alarms import AlarmBook
from oarlock.machines.kv.commands_alarm import AlarmType
from oarlock.machines.kv.watch import WatchHub

_CODE_NAMES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)


class Histogram(Protocol):
    """Counts of values up to each of `bounds` (s), and above the last; not cumulative."""

    @property
    def bounds(self) -> tuple[float, ...]: ...
    @property
    def counts(self) -> Sequence[int]: ...
    @property
    def sum(self) -> float: ...


class NodeCounts(Protocol):
    """What the node below counts since its start. (`node.metrics.NodeMetrics`)"""

    @property
    def proposals(self) -> int: ...
    @property
    def proposals_completed(self) -> int: ...
    @property
    def proposals_failed(self) -> int: ...
    @property
    def proposals_overloaded(self) -> int: ...
    @property
    def reads_failed(self) -> int: ...
    @property
    def leader_changes(self) -> int: ...
    @property
    def fsync(self) -> Histogram: ...
    @property
    def turn(self) -> Histogram: ...
    @property
    def stalls(self) -> int: ...
    @property
    def disk_sick(self) -> int: ...


class PeerCounts(Protocol):
    """What is known of the connections with one peer. (`transport.peers.PeerStats`)"""

    @property
    def connected(self) -> bool: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def rtt_ns(self) -> int: ...


class Metrics:
    """The metrics of one member. Other parts may register their own collectors in `registry`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.connections_cut = Counter(
            "oarlock_api_refused",
            "Connections and requests refused or cut, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.health = Counter(
            "etcd_server_health_success", "The total number of successful health checks", registry=self.registry
        )
        self.health_failed = Counter(
            "etcd_server_health_failures", "The total number of failed health checks", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def watch_backend(self, backend: Backend, version: str, cluster_version: str, quota_bytes: int) -> None:
        """Show `backend`'s state at every scrape."""
        self.registry.register(_BackendCollector(backend, version, cluster_version, quota_bytes))

    def watch_node(self, counts: NodeCounts) -> None:
        """Show what the node counts at every scrape."""
        self.registry.register(_NodeCollector(counts))

    def watch_peers(self, stats: Callable[[], Mapping[int, PeerCounts]]) -> None:
        """Show what `stats()` says of each peer at every scrape."""
        self.registry.register(_PeerCollector(stats))

    def watch_methods(self, methods: Iterable[Method]) -> None:
        """Show the counters of the gRPC methods at every scrape."""
        self.registry.register(_MethodCollector(list(methods)))

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)


class _BackendCollector:
    def __init__(self, backend: Backend, version: str, cluster_version: str, quota_bytes: int) -> None:
        self._backend = backend
        self._version = version
        self._cluster_version = cluster_version
        self._quota_bytes = quota_bytes

    def collect(self) -> Iterator[Metric]:
        backend = self._backend
        view = backend.status()
        watches: WatchHub | None = getattr(backend.kv, "watches", None)
        for name, text, value in (
            ("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", bool(view.leader)),
            ("etcd_server_is_leader", "Whether or not this member is a leader.", view.leader == backend.member_id),
            ("etcd_server_is_learner", "Whether or not this member is a learner.", view.is_learner),
            ("etcd_mvcc_db_total_size_in_bytes", "Size of the stored state.", view.db_size),
            (
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Size of the stored state that is in use.",
                view.db_size_in_use,
            ),
            (
                "etcd_debugging_mvcc_current_revision",
                "The current revision of the store.",
                getattr(backend.kv, "revision", 0),
            ),
            (
                "etcd_debugging_mvcc_compact_revision",
                "The revision of the last compaction.",
                getattr(backend.kv, "compact_revision", 0),
            ),
            (
                "etcd_debugging_auth_revision",
                "The current revision of auth store.",
                backend.kv.auth.revision if hasattr(backend.kv, "auth") else 0,
            ),
            (
                "etcd_debugging_mvcc_watcher_total",
                "Total number of watchers.",
                watches.watcher_count if watches is not None else 0,
            ),
            (
                "etcd_debugging_mvcc_slow_watcher_total",
                "Total number of unsynced slow watchers.",
                watches.unsynced_count if watches is not None else 0,
            ),
            (
                "oarlock_watch_outbox_bytes",
                "Events that wait for the readers of watches.",
                watches.outbox_bytes if watches is not None else 0,
            ),
            ("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", self._quota_bytes),
            ("oarlock_raft_term", "The member's current term.", view.raft_term),
            ("oarlock_leases", "Leases that are in force.", len(getattr(backend.kv, "leases", ()))),
            (
                "oarlock_quarantined",
                "Whether this member's state differs from what a majority has: 1 if so.",
                getattr(backend, "quarantined", False),
            ),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield CounterMetricFamily(
            "etcd_server_proposals_committed", "The consensus log's commit index.", value=float(view.raft_index)
        )
        yield CounterMetricFamily(
            "etcd_server_proposals_applied", "The consensus log's applied index.", value=float(view.raft_applied_index)
        )
        yield CounterMetricFamily(
            "etcd_debugging_mvcc_events",
            "Total number of events sent by this member.",
            value=float(watches.events_delivered if watches is not None else 0),
        )
        alarms = GaugeMetricFamily("oarlock_alarms", "Alarms that are on.", labels=["alarm"])
        book: AlarmBook | None = getattr(backend.kv, "alarms", None)
        for kind in (AlarmType.NOSPACE, AlarmType.CORRUPT):
            alarms.add_metric([kind.name], float(len(book.active(kind)) if book is not None else 0))
        yield alarms
        versions = GaugeMetricFamily("etcd_server_version", "Which version is running.", labels=["server_version"])
        versions.add_metric([self._version], 1.0)
        yield versions
        cluster = GaugeMetricFamily("etcd_cluster_version", "Which version is running.", labels=["cluster_version"])
        cluster.add_metric([self._cluster_version.rpartition(".")[0]], 1.0)
        yield cluster
        identity = GaugeMetricFamily(
            "etcd_server_id", "Server or member ID in hexadecimal format.", labels=["server_id"]
        )
        identity.add_metric([f"{backend.member_id:x}"], 1.0)
        yield identity


class _NodeCollector:
    def __init__(self, counts: NodeCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        failed = counts.proposals_failed + counts.proposals_overloaded
        for name, text, total in (
            ("etcd_server_leader_changes_seen", "The number of leader changes seen.", counts.leader_changes),
            ("etcd_server_proposals_failed", "The total number of failed proposals seen.", failed),
            ("etcd_server_read_indexes_failed", "The total number of failed read indexes seen.", counts.reads_failed),
            ("oarlock_loop_stalls", "Turns that came late because the event loop was held up.", counts.stalls),
        ):
            yield CounterMetricFamily(name, text, value=float(total))
        pending = counts.proposals - counts.proposals_completed - counts.proposals_failed
        for name, text, value in (
            ("etcd_server_proposals_pending", "The current number of pending proposals to commit.", pending),
            ("oarlock_disk_sick", "Whether this member's disk is too slow to lead: 1 if so.", counts.disk_sick),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        for name, text, histogram in (
            ("etcd_disk_wal_fsync_duration_seconds", "The latency distributions of fsync called by WAL.", counts.fsync),
            ("oarlock_turn_duration_seconds", "How long a turn of the member takes.", counts.turn),
        ):
            yield HistogramMetricFamily(name, text, buckets=_cumulated(histogram), sum_value=histogram.sum)


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: each holds those below it too.

    >>> from types import SimpleNamespace
    >>> _cumulated(SimpleNamespace(bounds=(0.5, 1.0), counts=[2, 1, 4], sum=9.0))
    [('0.5', 2.0), ('1.0', 3.0), ('+Inf', 7.0)]
    """
    buckets, total = [], 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


class _PeerCollector:
    def __init__(self, stats: Callable[[], Mapping[int, PeerCounts]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        sent = CounterMetricFamily(
            "etcd_network_peer_sent_bytes", "The total number of bytes sent to peers.", labels=["To"]
        )
        received = CounterMetricFamily(
            "etcd_network_peer_received_bytes", "The total number of bytes received from peers.", labels=["From"]
        )
        active = GaugeMetricFamily(
            "etcd_network_active_peers", "The current number of active peer connections.", labels=["Remote"]
        )
        trip = GaugeMetricFamily(
            "oarlock_peer_round_trip_seconds", "The last round trip with a peer; 0 before the first.", labels=["To"]
        )
        for member, peer in self._stats().items():
            name = f"{member:x}"
            sent.add_metric([name], float(peer.sent_bytes))
            received.add_metric([name], float(peer.received_bytes))
            active.add_metric([name], float(peer.connected))
            trip.add_metric([name], peer.rtt_ns / 1e9)
        yield from (sent, received, active, trip)


class _MethodCollector:
    def __init__(self, methods: list[Method]) -> None:
        self._methods = methods

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily(
            "grpc_server_started", "Calls started on the server.", labels=["grpc_service", "grpc_method"]
        )
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls completed on the server.", labels=["grpc_service", "grpc_method", "grpc_code"]
        )
        for method in self._methods:
            started.add_metric([method.service, method.name], float(method.started))
            for code, count in ((Code.OK, method.succeeded), *method.codes.items()):
                handled.add_metric([method.service, method.name, _CODE_NAMES[code]], float(count))
        yield started
        yield handled
