"""HTTP/2 on one socket: a sans-I/O engine (two implementations behind one protocol) and the asyncio connection
around it.

Public: `Engine`, `EngineSink`, `ConnectionFailed`, `ErrorCode`, `engine_factory`, `ENGINES`, `Http2Connection`.
"""

from oarlock.api.http2.connection import Http2Connection, Http2Host
from oarlock.api.http2.engine import (
    ENGINES,
    ConnectionFailed,
    Engine,
    EngineFactory,
    EngineSink,
    ErrorCode,
    Headers,
    engine_factory,
)

__all__ = [
    "ENGINES",
    "ConnectionFailed",
    "Engine",
    "EngineFactory",
    "EngineSink",
    "ErrorCode",
    "Headers",
    "Http2Connection",
    "Http2Host",
    "engine_factory",
]
