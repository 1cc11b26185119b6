"""All of etcd's services over one `Backend`, each in a module of its own."""

from __future__ import annotations

from oarlock.api import proto
from oarlock.api.backend import Backend
from oarlock.api.etcd.cluster import ClusterService
from oarlock.api.etcd.context import ServiceContext, not_served, not_served_stream
from oarlock.api.etcd.health import HealthService
from oarlock.api.etcd.kv import KvService
from oarlock.api.etcd.maintenance import MaintenanceService
from oarlock.api.grpc import Method
from oarlock.api.limits import Limits


class EtcdService:
    """`methods` are all RPCs of etcd 3.5; those not served yet answer Unimplemented."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.context = ServiceContext(backend, limits)
        self._services = (
            KvService(self.context),
            ClusterService(self.context),
            MaintenanceService(self.context),
            HealthService(),
        )

    def refresh(self) -> None:
        """Called about once a second."""
        self.context.refresh()

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
