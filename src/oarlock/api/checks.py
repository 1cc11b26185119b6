"""Whether this member is well: what /health, /livez and /readyz say. (The last two as etcd since 3.5.11.)"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from oarlock.api.backend import Backend
from oarlock.errors import RaftError
from oarlock.machines.kv.alarms import AlarmBook
from oarlock.machines.kv.commands_alarm import AlarmType

HEALTH_TIMEOUT_S: Final = 5.0

Check: TypeAlias = Callable[[Backend], Awaitable[str]]
"""Gives what is wrong, or an empty text."""


async def health(backend: Backend, *, serializable: bool, exclude: list[str]) -> tuple[bool, str]:
    """etcd's rules: an alarm that is not excluded, no leader, or a read that fails make a member unhealthy."""
    view = backend.status()
    alarms: AlarmBook | None = getattr(backend.kv, "alarms", None)
    for _, kind in alarms.active() if alarms is not None else ():
        name = AlarmType(kind).name
        if name not in exclude:
            return False, f"ALARM {name}"
    for alarm in view.errors:
        if not any(name and name in alarm for name in exclude):
            return False, alarm
    if not view.leader:
        return False, "RAFT NO LEADER"
    if serializable:
        return True, ""
    error = await _read(backend)
    return (False, f"QGET ERROR: {error}") if error else (True, "")


async def _read(backend: Backend) -> str:
    answered: asyncio.Future[RaftError | None] = asyncio.get_running_loop().create_future()

    def done(error: RaftError | None) -> None:
        if not answered.done():
            answered.set_result(error)

    try:
        backend.read_barrier(done)
        error = await asyncio.wait_for(answered, HEALTH_TIMEOUT_S)
    except RaftError as refused:
        error = refused
    except TimeoutError:
        return f"no answer within {HEALTH_TIMEOUT_S:g} s"
    return "" if error is None else str(error) or type(error).__name__


# -- one by one
async def _data_corruption(backend: Backend) -> str:
    book: AlarmBook | None = getattr(backend.kv, "alarms", None)
    if book is not None and book.active(AlarmType.CORRUPT):
        return "alarm activated: CORRUPT"
    return "this member's state differs from the others'" if backend.quarantined else ""


async def _serializable_read(backend: Backend) -> str:
    """That this coroutine runs is the check: a read of one member asks nobody, and this member's reads are made by the
    same event loop. But nothing is shown of a state that is known to be wrong."""
    return "reads are refused: this member is in quarantine" if backend.quarantined else ""


async def _linearizable_read(backend: Backend) -> str:
    return await _read(backend)


async def _non_learner(backend: Backend) -> str:
    return "this member is a learner" if backend.status().is_learner else ""


CHECKS: Final[Mapping[str, Mapping[str, Check]]] = MappingProxyType(
    {
        "/livez": {"serializable_read": _serializable_read},
        "/readyz": {
            "data_corruption": _data_corruption,
            "linearizable_read": _linearizable_read,
            "non_learner": _non_learner,
            "serializable_read": _serializable_read,
        },
    }
)


def routes(backend: Backend) -> list[Route]:
    """/livez and /readyz, each with a path for each of its checks."""
    made = []
    for path, checks in CHECKS.items():
        made.append(Route(path, partial(_answer, backend, checks)))
        made += [Route(f"{path}/{name}", partial(_answer, backend, {name: check})) for name, check in checks.items()]
    return made


async def _answer(backend: Backend, checks: Mapping[str, Check], request: Request) -> Response:
    """`?verbose` tells each check, `?exclude=NAME` leaves one out, `?allowlist=NAME` all others."""
    query = request.query_params
    names = set(query.getlist("allowlist")) or set(checks)
    names -= set(query.getlist("exclude"))
    lines, well = [], True
    for name, check in checks.items():
        if name not in names:
            continue
        wrong = await check(backend)
        well = well and not wrong
        lines.append(f"[-]{name} failed: {wrong}\n" if wrong else f"[+]{name} ok\n")
    if not well:
        return PlainTextResponse("".join(lines), status_code=503)
    return PlainTextResponse(("".join(lines) if "verbose" in query else "") + "ok\n")
