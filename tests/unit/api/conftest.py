"""A server over a single-member backend, with further methods for tests, on both HTTP/2 engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.single_backend import SingleBackend, make_machine

from oarlock.api.etcd.tokens import AuthOptions
from oarlock.api.grpc import Call, Code, Method, RpcError, StreamCall
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import ApiServer, start_api


@dataclass
class Served:
    server: ApiServer
    backend: SingleBackend
    metrics: Metrics
    waiting: list[Call]

    @property
    def url(self) -> str:
        return self.server.addresses[0]

    def refused(self, reason: str) -> float:
        """How often something was cut for `reason`."""
        return self.metrics.registry.get_sample_value("oarlock_api_refused_total", {"reason": reason}) or 0.0

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for `condition`, at most 10 s."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)
        assert condition(), what


def _echo(call: Call, message: bytes) -> None:
    call.reply(message)


def _big(call: Call, message: bytes) -> None:
    call.reply(b"z" * int(message))


def _fail(call: Call, message: bytes) -> None:
    raise RpcError(Code.ABORTED, message.decode())


def _broken(call: Call, message: bytes) -> None:
    raise ZeroDivisionError("on purpose")


async def _chat(call: StreamCall) -> None:
    """Answers every message with itself; "fail" ends the call."""
    while (message := await call.receive()) is not None:
        if message == b"fail":
            raise RpcError(Code.ABORTED, "as asked")
        await call.send(message)


async def _pour(call: StreamCall) -> None:
    """Sends 64 KiB messages for ever."""
    await call.receive()
    while True:
        await call.send(b"p" * 65536)
        poured.append(1)


async def _deaf(call: StreamCall) -> None:
    """Takes no message."""
    await asyncio.get_running_loop().create_future()


poured: list[int] = []


@asynccontextmanager
async def serve(engine: str, *, auth: AuthOptions | None = None, **limits: Any) -> AsyncIterator[Served]:
    backend = SingleBackend(make_machine())
    metrics = Metrics()
    waiting: list[Call] = []
    poured.clear()
    methods = [
        Method("test.Test", "Echo", unary=_echo),
        Method("test.Test", "Big", unary=_big),
        Method("test.Test", "Fail", unary=_fail),
        Method("test.Test", "Broken", unary=_broken),
        Method("test.Test", "Wait", unary=lambda call, message: waiting.append(call)),
        Method("test.Test", "Chat", stream=_chat),
        Method("test.Test", "Pour", stream=_pour),
        Method("test.Test", "Deaf", stream=_deaf),
    ]
    server = await start_api(
        backend, ["http://127.0.0.1:0"], metrics, limits=Limits(**limits), engine=engine, methods=methods, auth=auth
    )
    try:
        yield Served(server, backend, metrics, waiting)
    finally:
        await server.close(0.2)
        assert server.connections == 0
        assert server.open_streams == 0, f"{server.open_streams} calls were forgotten"
        assert server.unsent_bytes == 0, f"{server.unsent_bytes} unsent bytes were forgotten"


@pytest.fixture(params=["own", "ngh2", "h2"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs one coroutine in a loop of its own, at most 200 s."""

    def go(work: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(200):
                await work

        asyncio.run(bounded())

    return go


@pytest.fixture
def serving() -> Any:
    """`serving(engine, **limits)` is an async context manager that gives a `Served`."""
    return serve


@pytest.fixture
def pours() -> list[int]:
    """Grows by one for every message that test.Test/Pour got rid of."""
    return poured
