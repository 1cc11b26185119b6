"""All of etcd's services over one `Backend`, each in a module of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable

from oarlock.api import proto
from oarlock.api.backend import Backend
from oarlock.api.etcd.auth import AuthService
from oarlock.api.etcd.cluster import ClusterService
from oarlock.api.etcd.compactor import AutoCompaction, Compactor
from oarlock.api.etcd.context import ServiceContext, not_served, not_served_stream
from oarlock.api.etcd.election import ElectionService
from oarlock.api.etcd.health import HealthService
from oarlock.api.etcd.kv import KvService
from oarlock.api.etcd.lease import LeaseService
from oarlock.api.etcd.lock import LockService
from oarlock.api.etcd.maintenance import MaintenanceService
from oarlock.api.etcd.tokens import AuthOptions
from oarlock.api.etcd.turns import Turns
from oarlock.api.etcd.watch import WatchPump, WatchService
from oarlock.api.grpc import Method
from oarlock.api.limits import Limits


class EtcdService:
    """`methods` are all RPCs of etcd 3.5; those not served yet answer Unimplemented."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        auth: AuthOptions | None = None,
        compaction: AutoCompaction | None = None,
    ) -> None:
        self.context = ServiceContext(backend, limits, auth)
        self._compactor = Compactor(self.context, compaction or AutoCompaction())
        self._auth = AuthService(self.context, auth or AuthOptions())
        self._pump = WatchPump(self.context)
        self._turns = Turns(self.context, self._pump)
        self._services = (
            KvService(self.context),
            WatchService(self.context, self._pump),
            LockService(self.context, self._turns),
            ElectionService(self.context, self._turns),
            LeaseService(self.context, self._pump),
            ClusterService(self.context),
            MaintenanceService(self.context),
            self._auth,
            HealthService(),
        )

    def refresh(self) -> None:
        """Called about once a second."""
        self.context.refresh()
        self._compactor.tick(time.monotonic())
        self._pump.refresh()

    def close(self) -> None:
        """The port is closed: end what runs beside the event loop."""
        self._auth.close()
        self._turns.close()
        self._pump.close()
        self.context.close()

    def protect(self, methods: Iterable[Method]) -> None:
        """Put the table of rights before every handler. Of methods that are not in it nobody gets anything while
        authentication is on."""
        for method in methods:
            self.context.access.protect(method)

    def methods(self) -> list[Method]:
        methods = [method for service in self._services for method in service.methods()]
        served = {(method.service, method.name) for method in methods}
        for service, names in proto.services().items():
            for name, (client_streams, server_streams) in names.items():
                if (service, name) in served:
                    continue
                if client_streams or server_streams:
                    methods.append(Method(service, name, stream=not_served_stream))
                else:
                    methods.append(Method(service, name, unary=not_served))
        return methods
