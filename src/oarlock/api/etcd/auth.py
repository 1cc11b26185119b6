"""etcd's Auth service: users, roles, permissions, tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.context import ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.passwords import Passwords
from oarlock.api.etcd.tokens import AuthOptions, JwtTokens, SimpleTokens
from oarlock.api.grpc import Call, Method, RpcError
from oarlock.machines.kv.commands import KvError, Refused
from oarlock.machines.kv.commands_auth import (
    AuthCommand,
    AuthDisable,
    AuthEnable,
    Authenticate,
    AuthResult,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserChangePassword,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
)

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5  # to check a password at an auth revision that is still the present one when the token is made

_M = {
    name: proto.message(f"etcdserverpb.{name}")
    for service in ("etcdserverpb.Auth",)
    for method in proto.services()[service]
    for prefix in ("" if method.startswith("Auth") else "Auth",)
    for name in (f"{prefix}{method}Request", f"{prefix}{method}Response")
}


class AuthService:
    """See the module."""

    def __init__(self, context: ServiceContext, options: AuthOptions) -> None:
        self._context = context
        self._auth = context.access.auth
        self._tokens = context.access.tokens
        self._passwords = Passwords(context.limits, options.bcrypt_cost, options.password_length_min)

    def close(self) -> None:
        self._passwords.close()

    def methods(self) -> list[Method]:
        handlers = {
            "AuthEnable": self._change(lambda request: AuthEnable()),
            "AuthDisable": self._change(lambda request: AuthDisable()),
            "AuthStatus": self._look(self._status),
            "Authenticate": self._authenticate,
            "UserAdd": self._user_add,
            "UserGet": self._look(self._user_get),
            "UserList": self._look(self._user_list),
            "UserDelete": self._change(lambda request: UserDelete(request.name)),
            "UserChangePassword": self._change_password,
            "UserGrantRole": self._change(lambda request: UserGrantRole(request.user, request.role)),
            "UserRevokeRole": self._change(lambda request: UserRevokeRole(request.name, request.role)),
            "RoleAdd": self._change(lambda request: RoleAdd(request.name)),
            "RoleGet": self._look(self._role_get),
            "RoleList": self._look(self._role_list),
            "RoleDelete": self._change(lambda request: RoleDelete(request.role)),
            "RoleGrantPermission": self._change(_grant),
            "RoleRevokePermission": self._change(
                lambda request: RoleRevokePermission(request.role, request.key, request.range_end)
            ),
        }
        made = []
        for name, handler in handlers.items():
            request = _M[f"{name}Request" if name.startswith("Auth") else f"Auth{name}Request"]
            made.append(Method("etcdserverpb.Auth", name, unary=partial(self._parsed, request, handler)))
        return made

    @staticmethod
    def _parsed(request: Any, handler: Callable[[Call, Any], None], call: Call, message: bytes) -> None:
        handler(call, parse(request, message))

    # -- changes
    def _change(self, command: Callable[[Any], AuthCommand]) -> Callable[[Call, Any], None]:
        def handler(call: Call, request: Any) -> None:
            self._submit(call, command(request))

        return handler

    def _submit(self, call: Call, command: AuthCommand) -> None:
        self._context.may_serve(call)
        self._context.submit(call, command, self._changed)

    def _changed(self, call: Call, result: object) -> None:
        if isinstance(result, AuthResult):
            log.info("auth change=%s revision=%d", call.method.name, result.auth_revision)
            call.reply(self._context.header(result.revision, self._context.backend.term))
        else:
            fail(call, result)

    def _user_add(self, call: Call, request: Any) -> None:
        name, password = request.name, request.password
        if request.options.no_password:
            self._submit(call, UserAdd(name, b"", True))
        elif request.hashedPassword and not password:
            # Differs from etcd, which hashes the empty password then.
            self._submit(call, UserAdd(name, self._passwords.given_hash(request.hashedPassword)))
        elif not name:
            raise RpcError(*errors.of_kv_error(KvError.USER_EMPTY))
        else:
            self._hash(call, password, partial(UserAdd, name))

    def _change_password(self, call: Call, request: Any) -> None:
        name, password = request.name, request.password
        if request.hashedPassword and not password:
            self._submit(call, UserChangePassword(name, self._passwords.given_hash(request.hashedPassword)))
        else:
            self._hash(call, password, partial(UserChangePassword, name))

    def _hash(self, call: Call, password: str, command: Callable[[bytes], AuthCommand]) -> None:
        self._context.may_serve(call)
        refused = self._passwords.refuse(password)
        if refused is not None:
            raise refused

        def hashed(value: bytes) -> None:
            if call.open:
                self._context.submit(call, command(value), self._changed)

        self._passwords.hash(password, hashed)

    # -- looking
    def _look(self, answer: Callable[[Any], Any]) -> Callable[[Call, Any], None]:
        def handler(call: Call, request: Any) -> None:
            self._context.may_serve(call)
            self._context.read(call, partial(reply, request))

        def reply(request: Any, call: Call) -> None:
            response = answer(request)
            self._context.fill(response.header, self._context.kv.revision)
            call.reply(response.SerializeToString())

        return handler

    def _status(self, request: Any) -> Any:
        return _M["AuthStatusResponse"](enabled=self._auth.enabled, authRevision=self._auth.revision)

    def _user_get(self, request: Any) -> Any:
        user = self._auth.user(request.name)
        if user is None:
            raise RpcError(*errors.of_kv_error(KvError.USER_NOT_FOUND))
        return _M["AuthUserGetResponse"](roles=user.roles)

    def _user_list(self, request: Any) -> Any:
        return _M["AuthUserListResponse"](users=self._auth.users())

    def _role_get(self, request: Any) -> Any:
        role = self._auth.role(request.role)
        if role is None:
            raise RpcError(*errors.of_kv_error(KvError.ROLE_NOT_FOUND))
        response = _M["AuthRoleGetResponse"]()
        for permission in role.permissions:
            response.perm.add(permType=permission.type, key=permission.key, range_end=permission.range_end)
        return response

    def _role_list(self, request: Any) -> Any:
        return _M["AuthRoleListResponse"](roles=self._auth.roles())

    # -- logging in
    def _authenticate(self, call: Call, request: Any) -> None:
        self._context.may_serve(call)
        self._context.read(call, partial(self._check, request.name, request.password, ATTEMPTS_MAX))

    def _check(self, name: str, password: str, attempts: int, call: Call) -> None:
        auth = self._auth
        if not auth.enabled:
            raise RpcError(*errors.AUTH_NOT_ENABLED)
        user = auth.user(name)
        if user is not None and user.no_password:
            raise RpcError(*errors.NO_PASSWORD_USER)
        revision = auth.revision
        checked = partial(self._checked, call, name, password, attempts, revision)
        hashed = user.password if user is not None else None
        self._passwords.check(call.connection.peer_host, name, password, hashed, checked)

    def _checked(self, call: Call, name: str, password: str, attempts: int, revision: int, right: bool) -> None:
        if not call.open:
            return
        if not right:
            log.warning("authentication failed peer=%s user=%r", call.connection.peer, name[:64])
            call.fail(*errors.AUTH_FAILED)
            return
        tokens = self._tokens
        if isinstance(tokens, JwtTokens):
            if self._auth.revision != revision:
                self._again(call, name, password, attempts)
                return
            token = tokens.make(name, revision)
            if token is None:
                call.fail(*errors.VERIFY_ONLY)
            else:
                self._reply_token(call, token, self._context.kv.revision)
            return
        prefix, digest = SimpleTokens.make()

        def made(call: Call, result: object) -> None:
            if isinstance(result, AuthResult):
                self._reply_token(call, f"{prefix}.{result.index}", result.revision)
            elif isinstance(result, Refused) and result.error is KvError.AUTH_OLD_REVISION:
                self._again(call, name, password, attempts)
            else:
                fail(call, result)

        self._context.submit(call, Authenticate(name, digest, revision), made)

    def _again(self, call: Call, name: str, password: str, attempts: int) -> None:
        """Users or roles changed while the password was checked: it may not be the right one any more."""
        if attempts <= 1:
            call.fail(*errors.AUTH_OLD_REVISION)
        else:
            self._context.read(call, partial(self._check, name, password, attempts - 1))

    def _reply_token(self, call: Call, token: str, revision: int) -> None:
        response = _M["AuthenticateResponse"](token=token)
        self._context.fill(response.header, revision)
        call.reply(response.SerializeToString())


def _grant(request: Any) -> AuthCommand:
    if not request.HasField("perm"):
        raise RpcError(*errors.PERMISSION_NOT_GIVEN)
    perm = request.perm
    return RoleGrantPermission(request.name, Permission(perm.permType, perm.key, perm.range_end))
