"""Commands of the part of the state that says who may do what: users, roles, permissions, and the wrapper under which
a client's command travels while authentication is on.

As in `commands`, tags and field order are a file format. A password never stands here: what does is its bcrypt hash,
made before the proposal, and even that is left out of every `repr`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec


class PermissionType(IntEnum):
    READ = 0
    WRITE = 1
    READWRITE = 2


class AuthEnable(msgspec.Struct, tag=16, array_like=True, gc=False):
    """Needs the user root with the role root."""


class AuthDisable(msgspec.Struct, tag=17, array_like=True, gc=False):
    """Also ends every token."""


class Authenticate(msgspec.Struct, tag=18, array_like=True, gc=False):
    """A password was found right at `auth_revision`: whoever shows the token with this digest is `name` from now on."""

    name: str
    digest: bytes
    auth_revision: int


class UserAdd(msgspec.Struct, tag=19, array_like=True, gc=False):
    """`password` is a bcrypt hash; empty with `no_password`, for users who come with a certificate."""

    name: str
    password: bytes = b""
    no_password: bool = False

    def __repr__(self) -> str:
        return f"UserAdd({self.name!r}, no_password={self.no_password})"


class UserDelete(msgspec.Struct, tag=20, array_like=True, gc=False):
    name: str


class UserChangePassword(msgspec.Struct, tag=21, array_like=True, gc=False):
    """`password` is a bcrypt hash. Ends the user's tokens."""

    name: str
    password: bytes = b""

    def __repr__(self) -> str:
        return f"UserChangePassword({self.name!r})"


class UserGrantRole(msgspec.Struct, tag=22, array_like=True, gc=False):
    name: str
    role: str


class UserRevokeRole(msgspec.Struct, tag=23, array_like=True, gc=False):
    name: str
    role: str


class RoleAdd(msgspec.Struct, tag=24, array_like=True, gc=False):
    name: str


class RoleDelete(msgspec.Struct, tag=25, array_like=True, gc=False):
    name: str


class Permission(msgspec.Struct, array_like=True, gc=False):
    """`range_end` as in `Range`: empty is one key, one zero byte is everything from `key` on."""

    type: int
    key: bytes
    range_end: bytes = b""


class RoleGrantPermission(msgspec.Struct, tag=26, array_like=True):
    name: str
    permission: Permission


class RoleRevokePermission(msgspec.Struct, tag=27, array_like=True, gc=False):
    name: str
    key: bytes
    range_end: bytes = b""


class Checked(msgspec.Struct, tag=48, array_like=True, gc=False):
    """A client's command (encoded) with whom it comes from, as the member it came to found out at `auth_revision`.

    Checked again when it is applied: between the two a right may have been taken away.
    """

    user: str
    auth_revision: int
    command: bytes

    def __repr__(self) -> str:
        return f"Checked({self.user!r}, auth_revision={self.auth_revision}, {len(self.command)} bytes)"


AuthCommand: TypeAlias = (
    AuthEnable
    | AuthDisable
    | Authenticate
    | UserAdd
    | UserDelete
    | UserChangePassword
    | UserGrantRole
    | UserRevokeRole
    | RoleAdd
    | RoleDelete
    | RoleGrantPermission
    | RoleRevokePermission
)

AUTH_COMMANDS = (
    AuthEnable,
    AuthDisable,
    Authenticate,
    UserAdd,
    UserDelete,
    UserChangePassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
)


class AuthResult(msgspec.Struct, gc=False):
    """`revision` is the key-value store's; `index` is that of the entry, which goes into a token's text."""

    revision: int
    auth_revision: int
    index: int = 0
