"""What other programs speak: the etcd v3 API over gRPC, and health, version and metrics over HTTP/1.1, on one port.

Layers, each using only those before it: `limits`; `http2` (a sans-I/O engine and the asyncio connection); `grpc`
(calls); `proto` (etcd's messages); `etcd` (the services over a `backend.Backend`); `metrics`; `http1`; `server`.

Public: `backend.Backend`, `limits.Limits`, `metrics.Metrics`, `server.start_api`, `server.ApiServer`. Import them
from their modules: a client that needs only `proto` then loads nothing else.
"""
