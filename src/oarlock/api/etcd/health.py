"""grpc.health.v1, as etcd serves it."""

from __future__ import annotations

import asyncio

from oarlock.api import proto
from oarlock.api.etcd.parsing import parse
from oarlock.api.grpc import Call, Code, Method, RpcError, StreamCall

_HealthCheckRequest = proto.message("grpc.health.v1.HealthCheckRequest")
_HealthCheckResponse = proto.message("grpc.health.v1.HealthCheckResponse")
_SERVING = 1
_SERVICE_UNKNOWN = 3


class HealthService:
    """Check and Watch: a member that answers is serving."""

    def methods(self) -> list[Method]:
        service = "grpc.health.v1.Health"
        return [
            Method(service, "Check", unary=self._health_check),
            Method(service, "Watch", stream=self._health_watch),
        ]

    def _health_check(self, call: Call, message: bytes) -> None:
        if parse(_HealthCheckRequest, message).service:
            raise RpcError(Code.NOT_FOUND, "unknown service")
        call.reply(_HealthCheckResponse(status=_SERVING).SerializeToString())

    async def _health_watch(self, call: StreamCall) -> None:
        message = await call.receive()
        if message is None:
            raise RpcError(Code.INTERNAL, "grpc: malformed request: the request has no message")
        status = _SERVICE_UNKNOWN if parse(_HealthCheckRequest, message).service else _SERVING
        await call.send(_HealthCheckResponse(status=status).SerializeToString())
        await asyncio.get_running_loop().create_future()  # until the client leaves or the server stops
