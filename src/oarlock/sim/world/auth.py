"""Users, roles and permissions in the simulated world: a warden who changes them, clients who act as somebody, and the
AUTH checker.

The reference decides anew what everybody may do, without intervals that are kept, merged or cached, from the committed
log alone. So every answer says whether it should have been a refusal:

- nobody without the right sees or changes a key, with whatever auth revision the command was sent;
- a right that was taken away is gone for every command applied after it, and for every read of a member that has
  applied it;
- all members agree on users, roles, permissions, tokens and the auth revision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from oarlock.errors import Outcome
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.commands_alarm import AuditMark, AuditReport
from oarlock.machines.kv.commands_auth import (
    AUTH_COMMANDS,
    AuthDisable,
    AuthEnable,
    Authenticate,
    Checked,
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
from oarlock.machines.kv.commands_lease import LeaseExpire, LeaseGrant, LeaseRenew, LeaseRevoke, LeaseTick
from oarlock.machines.kv.machine import KvMachine
from oarlock.node.replica.sessions import plain
from oarlock.sim.failures import Violation
from oarlock.sim.world.model import DENIED, Model, Plain
from oarlock.sim.world.workload import KvAsker, Op

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

USERS: Final = ("root", "u1", "u2")
ROLES: Final = ("r1", "r2", "root")
STRANGERS: Final = ("ghost", "")
EVER: Final = 1 << 40
"""An auth revision that no change makes an old one: for what must be done whatever the warden does."""
OF_MEMBERS: Final = (LeaseTick, LeaseRenew, LeaseExpire, AuditMark, AuditReport)
DENIALS: Final = {
    int(error)
    for error in (
        kv.KvError.USER_EMPTY,
        kv.KvError.USER_NOT_FOUND,
        kv.KvError.PERMISSION_DENIED,
        kv.KvError.AUTH_OLD_REVISION,
    )
}
"""Which of several reasons a refusal names is the unit tests' business: here it counts that it is one."""
READ, WRITE, BOTH = 0, 1, 2  # as in `Permission.type`


class AsUser(msgspec.Struct, frozen=True):
    """A read by somebody, checked by the member that answers it, when it does."""

    user: str
    range: kv.Range


class Rights(msgspec.Struct, frozen=True):
    """Who may do what: `users` have roles, and roles permit (type, key, range end)."""

    on: bool
    revision: int
    users: dict[str, frozenset[str]]
    roles: dict[str, frozenset[tuple[int, bytes, bytes]]]

    def is_root(self, user: str) -> bool:
        return "root" in self.users.get(user, ())

    def may(self, user: str, right: int, key: bytes, end: bytes) -> bool:
        """Whether `user` has a right on every key of a range: walk along it, as far as one permission after another
        reaches."""
        if self.is_root(user):
            return True
        place, stop = key, _stop(key, end)
        if stop is not None and stop <= key:
            return False
        permissions = [
            p for role in self.users.get(user, ()) for p in self.roles.get(role, ()) if p[0] in (right, BOTH)
        ]
        while True:
            reached = [_stop(start, to) for _, start, to in permissions if start <= place]
            if None in reached:
                return True
            farthest = max((at for at in reached if at is not None), default=place)
            if farthest <= place:
                return False
            place = farthest
            if stop is not None and place >= stop:
                return True


def _stop(key: bytes, end: bytes) -> bytes | None:
    """Where a range ends; None if nowhere."""
    if not end:
        return key + b"\0"
    return None if end == b"\0" else end


def _needs(op: Any) -> Iterator[tuple[int, bytes, bytes]]:
    """What a command touches, in both branches and at every depth."""
    if isinstance(op, kv.Txn):
        for part in (*op.compare, *op.success, *op.failure):
            yield from _needs(part)
    elif isinstance(op, kv.Put):
        yield WRITE, op.key, b""
        if op.prev_kv:
            yield READ, op.key, b""
    elif isinstance(op, kv.DeleteRange):
        yield WRITE, op.key, op.range_end
        if op.prev_kv:
            yield READ, op.key, op.range_end
    else:
        yield READ, op.key, op.range_end


class AuthModel(Model):
    """The reference with authentication."""

    def __init__(self, application: Any) -> None:
        super().__init__(application)
        self.rights = Rights(False, 1, {}, {})
        self.tokens: dict[bytes, str] = {}
        self.denials = 0
        self._past: list[tuple[int, Rights]] = [(0, self.rights)]

    def _run(self, command: Any) -> Plain:
        user, revision, wrapped = "", 0, isinstance(command, Checked)
        if wrapped:
            user, revision = command.user, command.auth_revision
            command = kv.decode(command.command)
        if self.rights.on and self._forbidden(user, revision, command, wrapped):
            self.denials += 1
            return DENIED
        if isinstance(command, AUTH_COMMANDS):
            error = self._change(command)
            if error is not None:
                return DENIED if error in DENIALS else ("refused", int(error), self.revision)
            return ("auth", self.revision, self.rights.revision)
        return super()._run(command)

    def _forbidden(self, user: str, revision: int, command: Any, wrapped: bool) -> bool:
        rights = self.rights
        if isinstance(command, Authenticate) or (isinstance(command, OF_MEMBERS) and not wrapped):
            return False
        if user not in rights.users:
            return True
        if isinstance(command, LeaseGrant):
            return False
        if isinstance(command, LeaseRevoke):
            return not rights.is_root(user) and not self._may_touch(user, revision, command.id)
        if isinstance(command, kv.Put | kv.DeleteRange | kv.Range | kv.Txn):
            if revision < rights.revision or not all(rights.may(user, *need) for need in _needs(command)):
                return True
            lease = command.lease if isinstance(command, kv.Put) else 0
            return bool(lease) and not rights.is_root(user) and not self._may_touch(user, revision, lease)
        return not rights.is_root(user)

    def _may_touch(self, user: str, revision: int, lease: int) -> bool:
        """Whoever attaches to a lease, or ends it, must be allowed to write what hangs on it."""
        keys = self._keys_of(lease)
        return not keys or (
            revision >= self.rights.revision and all(self.rights.may(user, WRITE, key, b"") for key in keys)
        )

    def _keys_of(self, lease: int) -> list[bytes]:
        found: list[bytes] = getattr(super(), "_keys_of", lambda lease: [])(lease)
        return found

    # -- changes

    def _change(self, command: Any) -> kv.KvError | None:
        rights = self.rights
        error = kv.KvError
        users, roles = dict(rights.users), dict(rights.roles)
        on, revision = rights.on, rights.revision + 1
        match command:
            case AuthEnable():
                if not on and "root" not in users:
                    return error.ROOT_USER_MISSING
                if not on and not rights.is_root("root"):
                    return error.ROOT_ROLE_MISSING
                on, revision = True, rights.revision
            case AuthDisable():
                if not on:
                    return None
                on = False
                self.tokens.clear()
            case Authenticate(name, digest, seen):
                if not on:
                    return error.AUTH_NOT_ENABLED
                if name not in users or digest in self.tokens:
                    return error.AUTH_FAILED
                if seen != rights.revision:
                    return error.AUTH_OLD_REVISION
                self.tokens[digest] = name
                return None
            case UserAdd(name):
                if name in users:
                    return error.USER_EXISTS
                users[name] = frozenset()
            case UserDelete(name) | UserChangePassword(name):
                gone = isinstance(command, UserDelete)
                if gone and on and name == "root":
                    return error.INVALID_AUTH_MANAGEMENT
                if name not in users:
                    return error.USER_NOT_FOUND
                if gone:
                    del users[name]
                self.tokens = {digest: user for digest, user in self.tokens.items() if user != name}
            case UserGrantRole(name, role):
                if name not in users:
                    return error.USER_NOT_FOUND
                if role != "root" and role not in roles:
                    return error.ROLE_NOT_FOUND
                if role in users[name]:
                    return None
                users[name] |= {role}
            case UserRevokeRole(name, role):
                if on and name == role == "root":
                    return error.INVALID_AUTH_MANAGEMENT
                if name not in users:
                    return error.USER_NOT_FOUND
                if role not in users[name]:
                    return error.ROLE_NOT_GRANTED
                users[name] -= {role}
            case RoleAdd(name):
                if name in roles:
                    return error.ROLE_EXISTS
                roles[name] = frozenset()
            case RoleDelete(name):
                if on and name == "root":
                    return error.INVALID_AUTH_MANAGEMENT
                if name not in roles:
                    return error.ROLE_NOT_FOUND
                del roles[name]
                users = {user: held - {name} for user, held in users.items()}
            case RoleGrantPermission(name, permission):
                if name not in roles:
                    return error.ROLE_NOT_FOUND
                key, end = permission.key, permission.range_end
                roles[name] = frozenset(p for p in roles[name] if p[1:] != (key, end)) | {(permission.type, key, end)}
            case RoleRevokePermission(name, key, end):
                if name not in roles:
                    return error.ROLE_NOT_FOUND
                left = frozenset(p for p in roles[name] if p[1:] != (key, end))
                if left == roles[name]:
                    return error.PERMISSION_NOT_GRANTED
                roles[name] = left
        self.rights = Rights(on, revision, users, roles)
        self._past.append((self.index, self.rights))
        return None

    # -- looking

    def read(self, op: Any, index: int) -> Plain:
        if isinstance(op, AsUser):
            rights = self._past[bisect_right(self._past, index, key=lambda item: item[0]) - 1][1]
            if rights.on and not (
                op.user in rights.users and rights.may(op.user, READ, op.range.key, op.range.range_end)
            ):
                self.denials += 1
                return DENIED
            op = op.range
        return super().read(op, index)

    def check_auth(self, machine: KvMachine) -> None:
        """At the end: everybody holds the same users, roles, permissions and tokens, and they are what the log says."""
        if machine.applied_index != self.index:
            return
        auth, rights = machine.auth, self.rights
        users = {name: frozenset(user.roles) for name in auth.users() if (user := auth.user(name)) is not None}
        roles = {
            name: frozenset((p.type, p.key, p.range_end) for p in role.permissions)
            for name in auth.roles()
            if (role := auth.role(name)) is not None
        }
        if Rights(auth.enabled, auth.revision, users, roles) != rights:
            raise Violation(
                "AUTH", f"a member holds {auth.enabled, auth.revision, users, roles}, the log says {rights}"
            )
        for digest, name in self.tokens.items():
            token = auth.token(digest)
            if token is None or token.user != name:
                raise Violation("AUTH", f"a member takes the token of {name} for {token}")
        if (
            ended := next((d for d in Warden.digests(self) if auth.token(d) and d not in self.tokens), None)
        ) is not None:
            raise Violation("AUTH", f"a member still takes the token {ended.hex()}, which has ended")


class Warden:
    """Sets up users and roles, turns authentication on, and never stops to change what everybody may do."""

    FIRST: Final[tuple[kv.Command, ...]] = (
        UserAdd("root", b"hash"),
        UserGrantRole("root", "root"),
        RoleAdd("r1"),
        UserAdd("u1", b"hash"),
        UserGrantRole("u1", "r1"),
        RoleGrantPermission("r1", Permission(READ, b"k", b"l")),
        RoleGrantPermission("r1", Permission(WRITE, b"k00", b"k04")),
        AuthEnable(),
    )

    def __init__(self, world: World) -> None:
        self.world = world
        self.stopped = False
        self.changes = 0
        self._draw = world.choices.stream("warden")
        self._tokens = 0
        self._think()

    def _think(self) -> None:
        timeout = self.world.swarm.timeout
        self.world.later(timeout // 16 + self._draw.draw(timeout // 2), self._next)

    def _next(self) -> None:
        if self.world.healed:
            return
        self._think()
        up = [p for p in self.world.up() if not p.witness]
        if not up:
            return
        process = up[self._draw.draw(len(up))]
        rights = self.world.oracle.model.rights
        # At first all at once; what is lost on the way is asked for again.
        commands = [self._command()] if rights.on or self._draw.draw(4) == 3 else [*self.FIRST]
        data = [kv.encode(command) for command in commands]
        if rights.on or self._draw.draw(4) == 3:
            data = [kv.encode(Checked("root", max(1, rights.revision - self._draw.draw(2)), one)) for one in data]
        process.submit(_WardenOp(self, len(data)), [plain(one) for one in data])

    def _command(self) -> kv.Command:
        draw = self._draw
        user, role = USERS[draw.draw(3)], ROLES[draw.draw(3)]
        first = b"k%02d" % draw.draw(self.world.swarm.keys)
        end = (b"", b"k99", b"\0", b"l")[draw.draw(4)]
        kind = draw.draw(20)
        if kind < 5:
            return RoleGrantPermission(role, Permission(draw.draw(3), first, end))
        if kind < 8:
            held = sorted(self.world.oracle.model.rights.roles.get(role, ()))
            if held:
                _, first, end = held[draw.draw(len(held))]
            return RoleRevokePermission(role, first, end)
        if kind < 10:
            return UserGrantRole(user, role)
        if kind < 12:
            return UserRevokeRole(user, role)
        if kind < 14:
            self._tokens += 1
            return Authenticate(user, self.digest(self._tokens), self.world.oracle.model.rights.revision)
        return (
            UserAdd(user, b"hash"),
            UserDelete(user),
            UserChangePassword(user, b"other"),
            RoleAdd(role),
            RoleDelete(role),
            AuthEnable() if draw.draw(8) else AuthDisable(),
        )[kind - 14]

    @staticmethod
    def digest(number: int) -> bytes:
        return number.to_bytes(16, "big")

    @classmethod
    def digests(cls, model: AuthModel) -> Iterator[bytes]:
        """Every token that may ever have been given."""
        return map(cls.digest, range(1, model.index + 1))

    # -- what an `Op` calls
    def learned(self, result: Plain) -> None: ...

    def done(self, op: Op) -> None: ...

    def failed(self, op: Op, outcome: Outcome) -> None: ...


class _WardenOp(Op):
    __slots__ = ()

    def __init__(self, warden: Warden, count: int) -> None:
        super().__init__(warden, warden.world.oracle.acknowledged, count)  # type: ignore[arg-type]

    def answered(self, process: Process, number: int, result: Plain) -> None:
        self.client.changes += result[0] == "auth"  # type: ignore[attr-defined]
        super().answered(process, number, result)


class AuthAsker(KvAsker):
    """Commands and reads as somebody: now and then with what an earlier auth revision allowed, or as nobody."""

    def _who(self) -> str:
        roll = self._draw.draw(8)
        return "root" if roll < 2 else (*USERS[1:], *USERS[1:], *STRANGERS)[roll - 2]

    def command(self) -> bytes:
        data = super().command()
        rights = self.world.oracle.model.rights
        user = self._who()
        if not user or (not rights.on and self._draw.draw(2)):
            return data
        revision = rights.revision - (0, 0, 0, 0, 0, 0, 1, 2)[self._draw.draw(8)]
        return kv.encode(Checked(user, max(1, revision), data))

    def question(self) -> Any:
        question = super().question()
        return AsUser(self._who(), question) if self._draw.draw(4) else question
