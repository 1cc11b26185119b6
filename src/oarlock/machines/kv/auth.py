"""Users, roles, permissions and tokens: the part of the replicated state that says who may do what. etcd's model.

Table `auth`: `s` -> whether authentication is on, and the auth revision; `u` + name -> user; `r` + name -> role;
`t` + digest -> token. All of it is held in memory as well, and read again when the table is replaced: what is derived
from it (merged permissions) never outlives the state it was derived from (etcd#14571).

Every change of users or roles raises the auth revision. A command that was checked under an older one is refused, alike
on every member. A token is known by a digest of its text, so neither log nor backup holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import msgspec

from oarlock.machines.kv.commands import Compact, DeleteRange, KvError, Op, Put, Range, Txn
from oarlock.machines.kv.commands_alarm import (
    AlarmActivate,
    AlarmDeactivate,
    AlarmType,
    AuditMark,
    AuditReport,
    AutoCompact,
)
from oarlock.machines.kv.commands_auth import (
    AUTH_COMMANDS,
    AuthCommand,
    AuthDisable,
    AuthEnable,
    Authenticate,
    Permission,
    PermissionType,
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
from oarlock.machines.kv.commands_lease import LeaseExpire, LeaseGrant, LeaseRenew, LeaseRevoke, LeaseTick
from oarlock.machines.kv.permissions import Interval, IntervalSet, interval
from oarlock.machines.kv.visit import WRITE, attached, touches
from oarlock.machines.store import Table

ROOT: Final = "root"
"""The user, and the role, that may do everything."""

NAME_BYTES_MAX: Final = 1024
USERS_MAX: Final = 10_000
ROLES_MAX: Final = 10_000
ROLES_OF_USER_MAX: Final = 1_000
PERMISSIONS_OF_ROLE_MAX: Final = 4_000
PERMISSION_BYTES_MAX: Final = 4_096  # key and range end of one permission
PASSWORD_HASH_BYTES_MAX: Final = 128
TOKENS_MAX: Final = 20_000
TOKENS_OF_USER_MAX: Final = 2_000
"""Past it the user's oldest token ends; past `TOKENS_MAX` the oldest of all."""

DIGEST_BYTES: Final = 16  # of a token

_STATE_KEY = b"s"


class User(msgspec.Struct, array_like=True):
    """`roles` ascending. `password` is a bcrypt hash."""

    name: str
    password: bytes
    no_password: bool
    roles: list[str]

    def __repr__(self) -> str:
        return f"User({self.name!r}, roles={self.roles}, no_password={self.no_password})"


class Role(msgspec.Struct, array_like=True):
    """`permissions` in ascending order of key."""

    name: str
    permissions: list[Permission]


class Token(msgspec.Struct, array_like=True, gc=False):
    """`stamp_ns` is the wall clock of the leader of that time. How long a token lives is for each member to say."""

    user: str
    index: int
    stamp_ns: int


_encode: Final = msgspec.msgpack.Encoder().encode
_user_decoder: Final = msgspec.msgpack.Decoder(User)
_role_decoder: Final = msgspec.msgpack.Decoder(Role)
_token_decoder: Final = msgspec.msgpack.Decoder(Token)
_state_decoder: Final = msgspec.msgpack.Decoder(tuple[bool, int])

ROOT_COMMANDS: Final[tuple[type, ...]] = (
    Compact,
    AlarmActivate,
    AlarmDeactivate,
    *(c for c in AUTH_COMMANDS if c is not Authenticate),
)
"""What only root may do. Of everything that is in no such list nobody may do anything while authentication is on."""

INTERNAL_COMMANDS: Final[tuple[type, ...]] = (
    LeaseTick,
    LeaseRenew,
    LeaseExpire,
    AuditMark,
    AuditReport,
    AutoCompact,
    AlarmActivate,
)
"""What members propose of their own accord, and clients cannot."""

Rule: TypeAlias = Callable[["AuthState", str, int, Any, Callable[[int], Iterable[bytes]]], KvError | None]
RULES: Final[dict[type, Rule]] = {
    LeaseGrant: lambda auth, user, revision, command, keys_of: auth.refuse_nobody(user),
    LeaseRevoke: lambda auth, user, revision, command, keys_of: auth.refuse_lease(user, revision, keys_of(command.id)),
}
"""For commands that need neither root nor ranges: `rule(auth, user, revision, command, keys_of)`."""


class AuthState:
    """See the module. `enabled`, `revision` and the look-ups may be read between any two calls of `apply`."""

    def __init__(self, table: Table) -> None:
        self.attach(table)

    def attach(self, table: Table) -> None:
        """Take everything from `table`: on opening, and when a restore has replaced it."""
        self._table = table
        self.enabled = False
        self.revision = 1  # etcd's first
        self._users: dict[str, User] = {}
        self._roles: dict[str, Role] = {}
        self._tokens: dict[bytes, Token] = {}  # oldest first
        self._tokens_of: dict[str, dict[bytes, None]] = {}  # oldest first
        self._merged: dict[str, tuple[IntervalSet, IntervalSet]] = {}  # user -> what it may read, and write
        self._changes: list[bytes] = []
        tokens: list[tuple[int, bytes, Token]] = []
        for key, value in table.items():
            kind, name = key[:1], key[1:]
            if kind == b"u":
                self._users[name.decode()] = _user_decoder.decode(value)
            elif kind == b"r":
                self._roles[name.decode()] = _role_decoder.decode(value)
            elif kind == b"t":
                token = _token_decoder.decode(value)
                tokens.append((token.index, name, token))
            else:
                self.enabled, self.revision = _state_decoder.decode(value)
        for _, digest, token in sorted(tokens, key=lambda item: item[:2]):
            self._remember(digest, token)

    # -- reading

    def user(self, name: str) -> User | None:
        return self._users.get(name)

    def users(self) -> list[str]:
        """All names, ascending."""
        return sorted(self._users)

    def role(self, name: str) -> Role | None:
        return self._roles.get(name)

    def roles(self) -> list[str]:
        """All names, ascending."""
        return sorted(self._roles)

    def token(self, digest: bytes) -> Token | None:
        """Whom the token with this digest was given to. Whether it has expired is not known here."""
        return self._tokens.get(digest)

    def is_root(self, user: str) -> bool:
        """Whether `user` exists and holds the role root."""
        found = self._users.get(user)
        return found is not None and ROOT in found.roles

    # -- asking

    def refuse_root(self, user: str) -> KvError | None:
        """None if `user` may do what only root may; else why not. `user` is empty for nobody."""
        if not self.enabled:
            return None
        if not user:
            return KvError.USER_EMPTY
        found = self._users.get(user)
        if found is None:
            return KvError.USER_NOT_FOUND
        return None if ROOT in found.roles else KvError.PERMISSION_DENIED

    def refuse_nobody(self, user: str) -> KvError | None:
        """None if somebody is logged in who exists; else why not."""
        if not self.enabled:
            return None
        if not user:
            return KvError.USER_EMPTY
        return None if user in self._users else KvError.PERMISSION_DENIED

    def refuse_range(self, user: str, revision: int, right: int, asked: Interval) -> KvError | None:
        """None if `user`, found at auth revision `revision`, has `right` on all of `asked`; else why not."""
        if not self.enabled:
            return None
        if not user or not revision:
            return KvError.USER_EMPTY
        if revision < self.revision:
            return KvError.AUTH_OLD_REVISION
        found = self._users.get(user)
        if found is None:
            return KvError.PERMISSION_DENIED
        if ROOT in found.roles:
            return None
        merged = self._merged.get(user)
        if merged is None:
            merged = self._merged[user] = self._merge(found)
        return None if merged[right == WRITE].covers(asked) else KvError.PERMISSION_DENIED

    def refuse_operations(
        self, user: str, revision: int, command: Op, keys_of: Callable[[int], Iterable[bytes]]
    ) -> KvError | None:
        """`refuse_range` for everything that a key-value command touches. `keys_of` gives the keys on a lease."""
        if not self.enabled:
            return None
        if type(command) is Put and not (command.lease or command.prev_kv):  # what nearly all commands are
            return self.refuse_range(user, revision, WRITE, interval(command.key, b""))
        if (refused := self.refuse_nobody(user)) is not None:
            return refused
        for right, key, range_end in touches(command):
            if (refused := self.refuse_range(user, revision, right, interval(key, range_end))) is not None:
                return refused
        for lease in attached(command):
            if (refused := self.refuse_lease(user, revision, keys_of(lease))) is not None:
                return refused
        return None

    def refuse_lease(self, user: str, revision: int, keys: Iterable[bytes], right: int = WRITE) -> KvError | None:
        """None if `user` has `right` on each of the `keys` of a lease (to end it, renew it, attach to it, see it)."""
        if not self.enabled:
            return None
        if (refused := self.refuse_nobody(user)) is not None:
            return refused
        if self.is_root(user):
            return None
        for key in keys:
            if (refused := self.refuse_range(user, revision, right, interval(key, b""))) is not None:
                return refused
        return None

    def refuse(
        self,
        user: str,
        revision: int,
        command: object,
        keys_of: Callable[[int], Iterable[bytes]],
        *,
        wrapped: bool,
    ) -> KvError | None:
        """Whether a command may be applied for `user`: of any kind, and for a kind that has no rule never. `wrapped`
        says that it came from a client."""
        if not self.enabled or isinstance(command, Authenticate):
            return None
        if isinstance(command, INTERNAL_COMMANDS) and not wrapped:
            # A client may have asked a member that does not know yet that authentication is on. Of what clients can ask
            # for, members themselves raise only the alarm that space is short.
            if isinstance(command, AlarmActivate) and command.alarm != AlarmType.NOSPACE:
                return self.refuse_root(user)
            return None
        if isinstance(command, Put | DeleteRange | Range | Txn):
            return self.refuse_operations(user, revision, command, keys_of)
        if isinstance(command, ROOT_COMMANDS):
            return self.refuse_root(user)
        rule = RULES.get(type(command))
        if rule is not None:
            return rule(self, user, revision, command, keys_of)
        return self.refuse_nobody(user) or KvError.PERMISSION_DENIED

    def _merge(self, user: User) -> tuple[IntervalSet, IntervalSet]:
        readable: list[Interval] = []
        writable: list[Interval] = []
        for name in user.roles:
            role = self._roles.get(name)
            for permission in role.permissions if role is not None else ():
                span = interval(permission.key, permission.range_end)
                if permission.type in (PermissionType.READ, PermissionType.READWRITE):
                    readable.append(span)
                if permission.type in (PermissionType.WRITE, PermissionType.READWRITE):
                    writable.append(span)
        return IntervalSet(readable), IntervalSet(writable)

    # -- applying

    def apply(self, command: AuthCommand, index: int, stamp_ns: int) -> KvError | None:
        """Apply a command that nobody has to be asked about any more. A refusal changes nothing."""
        match command:
            case AuthEnable():
                return self._enable()
            case AuthDisable():
                return self._disable()
            case Authenticate():
                return self._authenticate(command, index, stamp_ns)
            case UserAdd():
                return self._user_add(command)
            case UserDelete():
                return self._user_delete(command.name)
            case UserChangePassword():
                return self._change_password(command)
            case UserGrantRole():
                return self._grant_role(command.name, command.role)
            case UserRevokeRole():
                return self._revoke_role(command.name, command.role)
            case RoleAdd():
                return self._role_add(command.name)
            case RoleDelete():
                return self._role_delete(command.name)
            case RoleGrantPermission():
                return self._grant_permission(command.name, command.permission)
            case RoleRevokePermission():
                return self._revoke_permission(command.name, command.key, command.range_end)

    def take_changes(self) -> list[bytes]:
        """What was written since the last call: goes into the machine's digest."""
        changes, self._changes = self._changes, []
        return changes

    def _put(self, key: bytes, value: bytes) -> None:
        self._table.put(key, value)
        self._changes.append(b"auth" + len(key).to_bytes(4, "little") + key + value)

    def _delete(self, key: bytes) -> None:
        self._table.delete(key)
        self._changes.append(b"unauth" + key)

    def _put_user(self, user: User) -> None:
        self._users[user.name] = user
        self._put(b"u" + user.name.encode(), _encode(user))

    def _put_role(self, role: Role) -> None:
        self._roles[role.name] = role
        self._put(b"r" + role.name.encode(), _encode(role))

    def _save_state(self) -> None:
        self._put(_STATE_KEY, _encode((self.enabled, self.revision)))

    def _changed(self) -> None:
        self.revision += 1
        self._merged.clear()
        self._save_state()

    def _enable(self) -> KvError | None:
        if self.enabled:
            return None
        root = self._users.get(ROOT)
        if root is None:
            return KvError.ROOT_USER_MISSING
        if ROOT not in root.roles:
            return KvError.ROOT_ROLE_MISSING
        self.enabled = True
        self._save_state()  # as in etcd, no new revision
        return None

    def _disable(self) -> KvError | None:
        if self.enabled:
            self.enabled = False
            for digest in list(self._tokens):
                self._forget(digest)
            self._changed()
        return None

    def _authenticate(self, command: Authenticate, index: int, stamp_ns: int) -> KvError | None:
        if not self.enabled:
            return KvError.AUTH_NOT_ENABLED
        user = self._users.get(command.name)
        if user is None or user.no_password or len(command.digest) != DIGEST_BYTES or command.digest in self._tokens:
            return KvError.AUTH_FAILED
        if command.auth_revision != self.revision:
            return KvError.AUTH_OLD_REVISION  # the password that was found right may have been changed since
        own = self._tokens_of.get(command.name)
        if own is not None and len(own) >= TOKENS_OF_USER_MAX:
            self._forget(next(iter(own)))
        elif len(self._tokens) >= TOKENS_MAX:
            self._forget(next(iter(self._tokens)))
        token = Token(command.name, index, stamp_ns)
        self._remember(command.digest, token)
        self._put(b"t" + command.digest, _encode(token))
        return None

    def _remember(self, digest: bytes, token: Token) -> None:
        self._tokens[digest] = token
        self._tokens_of.setdefault(token.user, {})[digest] = None

    def _forget(self, digest: bytes) -> None:
        token = self._tokens.pop(digest)
        own = self._tokens_of[token.user]
        del own[digest]
        if not own:
            del self._tokens_of[token.user]
        self._delete(b"t" + digest)

    def _forget_tokens_of(self, user: str) -> None:
        for digest in list(self._tokens_of.get(user, ())):
            self._forget(digest)

    def _user_add(self, command: UserAdd) -> KvError | None:
        if not command.name:
            return KvError.USER_EMPTY
        if command.name in self._users:
            return KvError.USER_EXISTS
        if len(self._users) >= USERS_MAX or _too_long(command.name) or len(command.password) > PASSWORD_HASH_BYTES_MAX:
            return KvError.AUTH_FULL
        password = b"" if command.no_password else command.password
        self._put_user(User(command.name, password, command.no_password, []))
        self._changed()
        return None

    def _user_delete(self, name: str) -> KvError | None:
        if self.enabled and name == ROOT:
            return KvError.INVALID_AUTH_MANAGEMENT
        if name not in self._users:
            return KvError.USER_NOT_FOUND
        del self._users[name]
        self._delete(b"u" + name.encode())
        self._forget_tokens_of(name)
        self._changed()
        return None

    def _change_password(self, command: UserChangePassword) -> KvError | None:
        user = self._users.get(command.name)
        if user is None:
            return KvError.USER_NOT_FOUND
        if len(command.password) > PASSWORD_HASH_BYTES_MAX:
            return KvError.AUTH_FULL
        password = b"" if user.no_password else command.password
        self._put_user(User(user.name, password, user.no_password, user.roles))
        self._forget_tokens_of(user.name)
        self._changed()
        return None

    def _grant_role(self, name: str, role: str) -> KvError | None:
        user = self._users.get(name)
        if user is None:
            return KvError.USER_NOT_FOUND
        if role != ROOT and role not in self._roles:
            return KvError.ROLE_NOT_FOUND
        if role in user.roles:
            return None
        if len(user.roles) >= ROLES_OF_USER_MAX:
            return KvError.AUTH_FULL
        self._put_user(User(user.name, user.password, user.no_password, sorted([*user.roles, role])))
        self._changed()
        return None

    def _revoke_role(self, name: str, role: str) -> KvError | None:
        if self.enabled and name == ROOT and role == ROOT:
            return KvError.INVALID_AUTH_MANAGEMENT
        user = self._users.get(name)
        if user is None:
            return KvError.USER_NOT_FOUND
        if role not in user.roles:
            return KvError.ROLE_NOT_GRANTED
        self._put_user(User(user.name, user.password, user.no_password, [r for r in user.roles if r != role]))
        self._changed()
        return None

    def _role_add(self, name: str) -> KvError | None:
        if not name:
            return KvError.ROLE_EMPTY
        if name in self._roles:
            return KvError.ROLE_EXISTS
        if len(self._roles) >= ROLES_MAX or _too_long(name):
            return KvError.AUTH_FULL
        self._put_role(Role(name, []))
        self._changed()
        return None

    def _role_delete(self, name: str) -> KvError | None:
        if self.enabled and name == ROOT:
            return KvError.INVALID_AUTH_MANAGEMENT
        if name not in self._roles:
            return KvError.ROLE_NOT_FOUND
        del self._roles[name]
        self._delete(b"r" + name.encode())
        for holder in sorted(self._users):
            user = self._users[holder]
            if name in user.roles:
                self._put_user(User(user.name, user.password, user.no_password, [r for r in user.roles if r != name]))
        self._changed()
        return None

    def _grant_permission(self, name: str, permission: Permission) -> KvError | None:
        key, range_end = permission.key, permission.range_end
        if not 0 <= permission.type <= PermissionType.READWRITE:
            return KvError.PERMISSION_NOT_GIVEN
        if not key or (range_end not in (b"", b"\0") and range_end <= key):
            return KvError.INVALID_AUTH_MANAGEMENT  # it would hold no key
        role = self._roles.get(name)
        if role is None:
            return KvError.ROLE_NOT_FOUND
        kept = [p for p in role.permissions if p.key != key or p.range_end != range_end]
        if len(kept) >= PERMISSIONS_OF_ROLE_MAX or len(key) + len(range_end) > PERMISSION_BYTES_MAX:
            return KvError.AUTH_FULL
        # Differs from etcd, which under two permissions that begin with the same key may leave the one to be replaced.
        kept.append(permission)
        kept.sort(key=lambda p: (p.key, p.range_end))
        self._put_role(Role(name, kept))
        self._changed()
        return None

    def _revoke_permission(self, name: str, key: bytes, range_end: bytes) -> KvError | None:
        role = self._roles.get(name)
        if role is None:
            return KvError.ROLE_NOT_FOUND
        kept = [p for p in role.permissions if p.key != key or p.range_end != range_end]
        if len(kept) == len(role.permissions):
            return KvError.PERMISSION_NOT_GRANTED
        self._put_role(Role(name, kept))
        self._changed()
        return None

    # -- invariants

    def validate(self) -> None:
        """Check the state against itself and against the table, reading all of it."""
        fresh = AuthState(self._table)
        assert (fresh.enabled, fresh.revision) == (self.enabled, self.revision), (fresh.revision, self.revision)
        assert fresh._users == self._users, "the table holds other users"
        assert fresh._roles == self._roles, "the table holds other roles"
        assert list(fresh._tokens) == list(self._tokens), "the table holds other tokens"
        assert self.revision >= 1, self.revision
        for user in self._users.values():
            assert user.roles == sorted(set(user.roles)), user
            for role in user.roles:
                assert role == ROOT or role in self._roles, f"{user} holds a role that does not exist"
        for token in self._tokens.values():
            assert token.user in self._users, f"a token of {token.user!r}, who does not exist"
        if self.enabled:
            assert self.is_root(ROOT), "authentication is on, and root is not root"
        else:
            assert not self._tokens, "tokens while authentication is off"


def _too_long(name: str) -> bool:
    return len(name.encode()) > NAME_BYTES_MAX
