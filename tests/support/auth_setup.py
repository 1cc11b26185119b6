"""Callers of every kind for tests of rights, over the server's own API."""

from __future__ import annotations

from typing import Any

from tests.support.h2_client import Answer, H2Client

from oarlock.api import proto
from oarlock.api.etcd.tokens import AuthOptions

CHEAP = AuthOptions(bcrypt_cost=4)
"""As the defaults, but without the work that makes passwords hard to guess."""

USERS = ("reader", "writer", "nobody", "root")
READ, WRITE, READWRITE = 0, 1, 2


def m(name: str, /, **fields: Any) -> Any:
    full = name if "." in name else f"etcdserverpb.{name}"
    return proto.message(full)(**fields)


def path_of(rpc: str) -> str:
    """`KV/Put` and the like, with the package."""
    service, _, name = rpc.partition("/")
    for full in proto.services():
        if full.rpartition(".")[2] == service:
            return f"/{full}/{name}"
    raise KeyError(rpc)


async def ask(client: H2Client, rpc: str, request: Any, token: str | None = None, header: bytes = b"token") -> Answer:
    extra = [(header, token.encode())] if token is not None else []
    return await client.unary(path_of(rpc), request.SerializeToString(), extra)


async def ok(client: H2Client, rpc: str, request: Any, token: str | None = None) -> Answer:
    answer = await ask(client, rpc, request, token)
    assert answer.code == 0, f"{rpc}: {answer.code} {answer.text}"
    return answer


async def login(client: H2Client, user: str) -> str:
    request = m("AuthenticateRequest", name=user, password=f"{user}'s password")
    answer = await ok(client, "Auth/Authenticate", request)
    return str(proto.message("etcdserverpb.AuthenticateResponse").FromString(answer.messages[0]).token)


async def people(client: H2Client) -> dict[str, str]:
    """`reader` and `writer` on [a, c), `nobody` without a role, `root`; authentication on. Gives their tokens."""
    for name in USERS:
        await ok(client, "Auth/UserAdd", m("AuthUserAddRequest", name=name, password=f"{name}'s password"))
    for role, kind in (("r", READ), ("w", READWRITE)):
        await ok(client, "Auth/RoleAdd", m("AuthRoleAddRequest", name=role))
        grant = m("AuthRoleGrantPermissionRequest", name=role)
        grant.perm.permType, grant.perm.key, grant.perm.range_end = kind, b"a", b"c"
        await ok(client, "Auth/RoleGrantPermission", grant)
    for user, role in (("reader", "r"), ("writer", "w"), ("root", "root")):
        await ok(client, "Auth/UserGrantRole", m("AuthUserGrantRoleRequest", user=user, role=role))
    await ok(client, "Auth/AuthEnable", m("AuthEnableRequest"))
    return {name: await login(client, name) for name in USERS}
