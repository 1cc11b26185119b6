"""A thin gRPC server on top of `api.http2`: framing, metadata, deadlines, status, trailers, unary and streaming calls.

Public: `Call`, `StreamCall`, `Method`, `Router`, `Code`, `RpcError`, `GrpcConnection`, `GrpcHost`.
"""

from oarlock.api.grpc.call import Call, StreamCall
from oarlock.api.grpc.connection import GrpcConnection, GrpcHost
from oarlock.api.grpc.router import Method, Route, Router
from oarlock.api.grpc.status import Code, RpcError

__all__ = ["Call", "Code", "GrpcConnection", "GrpcHost", "Method", "Route", "Router", "RpcError", "StreamCall"]
