"""auth, user and role: who may do what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from oarlock.ctl import ask, text
from oarlock.ctl.app import Run
from oarlock.ctl.failures import CallError, bad_arguments
from oarlock.ctl.show import Printer, permission_name

PERMISSIONS: Final = {"READ": 0, "WRITE": 1, "READWRITE": 2}
NO_ROOT_ROLE: Final = "etcdserver: root user does not have root role"
OPEN_END: Final = b"\0"


def auth_enable(run: Run) -> None:
    _no_arguments(run, "auth enable command does not accept any arguments")
    try:
        run.client("Auth/AuthEnable")
    except CallError as error:
        if error.text != NO_ROOT_ROLE:
            raise
        try:
            run.client("Auth/RoleAdd", name="root")
        except CallError as existing:
            if "already exists" not in existing.text:
                raise
        run.client("Auth/UserGrantRole", user="root", role="root")
        run.client("Auth/AuthEnable")
    run.printer.write(b"Authentication Enabled\n")


def auth_disable(run: Run) -> None:
    _no_arguments(run, "auth disable command does not accept any arguments")
    run.client("Auth/AuthDisable")
    run.printer.write(b"Authentication Disabled\n")


def auth_status(run: Run) -> None:
    _no_arguments(run, "auth status command does not accept any arguments")
    answer = run.client("Auth/AuthStatus", repeat=True)
    enabled = str(answer.enabled).lower()
    lines = [f"Authentication Status: {enabled}".encode(), f"AuthRevision: {answer.authRevision}".encode()]
    run.printer(answer, lambda: lines)


# -- users


def user_add(run: Run) -> None:
    user = _one(run, "user add command requires user name as its argument")
    password = ""
    if not run.no_password:
        name, colon, inline = user.partition(":")
        if run.new_user_password:
            password = run.new_user_password
        elif colon:
            user, password = name, inline
            if not user:
                raise bad_arguments("empty user name is not allowed")
        else:
            password = ask.new_password(user) if run.interactive else ask.line()
    answer = run.client("Auth/UserAdd", name=user, password=password, options={"no_password": run.no_password})
    _done(run, answer, f"User {user} created")


def user_delete(run: Run) -> None:
    user = _one(run, "user delete command requires user name as its argument")
    _done(run, run.client("Auth/UserDelete", name=user), f"User {user} deleted")


def user_get(run: Run) -> None:
    user = _one(run, "user get command requires user name as its argument")
    if run.detail:
        run.check_format()
    elif run.write_out == "fields":
        raise _no_fields(run)
    answer = run.client("Auth/UserGet", repeat=True, name=user)
    if not run.detail:
        roles = " ".join(["Roles:", *answer.roles])
        run.printer(answer, lambda: [f"User: {user}".encode(), roles.encode()])
        return
    run.printer.lines([f"User: {user}".encode()])
    for role in answer.roles:
        run.printer.write(b"\n")
        found = run.client("Auth/RoleGet", repeat=True, role=role)
        _print_role(run.printer, role, found)


def _no_fields(run: Run) -> Exception:
    run.verb = run.verb._replace(formats=("simple", "json", "protobuf"))
    run.check_format()
    raise AssertionError("fields is no format of `user get` without --detail")


def user_list(run: Run) -> None:
    _no_arguments(run, "user list command requires no arguments")
    answer = run.client("Auth/UserList", repeat=True)
    run.printer(answer, lambda: (user.encode() for user in answer.users))


def user_passwd(run: Run) -> None:
    user = _one(run, "user passwd command requires user name as its argument")
    password = ask.new_password(user) if run.interactive else ask.line()
    _done(run, run.client("Auth/UserChangePassword", name=user, password=password), "Password updated")


def user_grant_role(run: Run) -> None:
    user, role = _two(run, "user grant command requires user name and role name as its argument")
    answer = run.client("Auth/UserGrantRole", user=user, role=role)
    _done(run, answer, f"Role {role} is granted to user {user}")


def user_revoke_role(run: Run) -> None:
    user, role = _two(run, "user revoke-role requires user name and role name as its argument")
    answer = run.client("Auth/UserRevokeRole", name=user, role=role)
    _done(run, answer, f"Role {role} is revoked from user {user}")


# -- roles


def role_add(run: Run) -> None:
    role = _one(run, "role add command requires role name as its argument")
    _done(run, run.client("Auth/RoleAdd", name=role), f"Role {role} created")


def role_delete(run: Run) -> None:
    role = _one(run, "role delete command requires role name as its argument")
    _done(run, run.client("Auth/RoleDelete", role=role), f"Role {role} deleted")


def role_list(run: Run) -> None:
    _no_arguments(run, "role list command requires no arguments")
    answer = run.client("Auth/RoleList", repeat=True)
    run.printer(answer, lambda: (role.encode() for role in answer.roles))


def role_get(run: Run) -> None:
    role = _one(run, "role get command requires role name as its argument")
    _print_role(run.printer, role, run.client("Auth/RoleGet", repeat=True, role=role))


def role_grant_permission(run: Run) -> None:
    if len(run.args) < 3:
        raise bad_arguments("role grant command requires role name, permission type, and key [endkey] as its argument")
    kind = PERMISSIONS.get(run.args[1].upper())
    if kind is None:
        raise bad_arguments(f"invalid permission type: {run.args[1]}", "it is read, write or readwrite")
    key, end = _span(run, 2)
    perm = {"permType": kind, "key": key, "range_end": end}
    answer = run.client("Auth/RoleGrantPermission", name=run.args[0], perm=perm)
    _done(run, answer, f"Role {run.args[0]} updated")


def role_revoke_permission(run: Run) -> None:
    if len(run.args) < 2:
        raise bad_arguments("role revoke-permission command requires role name and key [endkey] as its argument")
    key, end = _span(run, 1)
    answer = run.client("Auth/RoleRevokePermission", role=run.args[0], key=key, range_end=end)
    what = f"key {run.args[1]}"
    if end:
        closing = "<open ended>" if end == OPEN_END else os.fsdecode(end) + ")"
        what = f"range [{run.args[1]}, {closing}"
    _done(run, answer, f"Permission of {what} is revoked from role {run.args[0]}")


def _span(run: Run, at: int) -> tuple[bytes, bytes]:
    if run.prefix and run.from_key:
        raise bad_arguments("--from-key and --prefix flags are mutually exclusive")
    key = run.raw(at)
    wide = run.prefix or run.from_key
    if wide and len(run.args) > at + 1:
        name = "prefix" if run.prefix else "from-key"
        raise bad_arguments(f"unexpected endkey argument with --{name} flag")
    if wide and not key:
        return b"\0", OPEN_END
    if run.from_key:
        return key, OPEN_END
    if run.prefix:
        return key, text.prefix_end(key)
    return key, run.raw(at + 1) if len(run.args) > at + 1 else b""


def _print_role(printer: Printer, role: str, answer: Any) -> None:
    printer(answer, lambda: _permissions(role, answer))


def _permissions(role: str, answer: Any) -> Iterator[bytes]:
    yield b"Role " + os.fsencode(role)
    for title, kinds in (("Read", ("READ", "READWRITE")), ("Write", ("WRITE", "READWRITE"))):
        yield f"KV {title}:".encode()
        for perm in answer.perm:
            if permission_name(perm) in kinds:
                yield b"\t" + _shown_span(perm.key, perm.range_end)


def _shown_span(key: bytes, end: bytes) -> bytes:
    if not end:
        return key
    shown = b"[%b, <open ended>" % key if end == OPEN_END else b"[%b, %b)" % (key, end)
    return shown + (b" (prefix %b)" % key if key and text.prefix_end(key) == end else b"")


# -- arguments and answers


def _no_arguments(run: Run, wrong: str) -> None:
    if run.args:
        raise bad_arguments(wrong)


def _one(run: Run, wrong: str) -> str:
    if len(run.args) != 1:
        raise bad_arguments(wrong)
    return str(run.args[0])


def _two(run: Run, wrong: str) -> tuple[str, str]:
    if len(run.args) != 2:
        raise bad_arguments(wrong)
    return run.args[0], run.args[1]


def _done(run: Run, answer: Any, line: str) -> None:
    run.printer(answer, lambda: [os.fsencode(line)])
