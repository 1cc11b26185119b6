"""Metrics in Prometheus' form, in a registry of their own, with etcd's names where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
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
        self.sent_bytes = 0
        self.received_bytes = 0

    def watch_backend(self, backend: Backend, version: str) -> None:
        """Show `backend`'s state at every scrape."""
        self.registry.register(_BackendCollector(backend, version))

    def watch_methods(self, methods: Iterable[Method]) -> None:
        """Show the counters of the gRPC methods at every scrape."""
        self.registry.register(_MethodCollector(list(methods)))

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)


class _BackendCollector:
    def __init__(self, backend: Backend, version: str) -> None:
        self._backend = backend
        self._version = version

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
        identity = GaugeMetricFamily(
            "etcd_server_id", "Server or member ID in hexadecimal format.", labels=["server_id"]
        )
        identity.add_metric([f"{backend.member_id:x}"], 1.0)
        yield identity


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
