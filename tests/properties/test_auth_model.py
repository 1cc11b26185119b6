"""Users, roles and permissions against a reference that knows nothing of intervals: it asks key by key.

Keys are the strings over a small alphabet up to a length, so a range can be checked by looking at every key in it, and
at one beyond any of them for ranges without an end.
"""

from __future__ import annotations

import os
from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Command, KvError, Range, Refused, encode
from oarlock.machines.kv.commands_auth import (
    AuthDisable,
    AuthEnable,
    AuthResult,
    Checked,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
)
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.permissions import interval

LETTERS = [b"\0", b"a", b"b"]
KEYS = sorted(b"".join(p) for n in (1, 2, 3) for p in product(LETTERS, repeat=n))
BEYOND = b"\xff\xff"
SHORT_KEYS = [k for k in KEYS if len(k) < 3]
"""The ends of ranges. All gaps between ranges of these, or of single ones of these, hold a key of `KEYS`."""
keys = st.sampled_from(SHORT_KEYS)
ends = st.one_of(st.just(b""), st.just(b"\0"), keys)
names = st.sampled_from(["root", "u1", "u2"])
roles = st.sampled_from(["root", "r1", "r2", "r3"])
kinds = st.sampled_from([0, 1, 2])


def members(key: bytes, end: bytes) -> set[bytes]:
    """Every key of the universe in a range, by etcd's words: no end is the key alone, a zero byte no end."""
    if end == b"":
        return {key}
    return {k for k in [*KEYS, BEYOND] if k >= key and (end == b"\0" or k < end)}


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = KvMachine.in_memory()
        self.index = 0
        self.users: dict[str, set[str]] = {}
        self.roles: dict[str, dict[tuple[bytes, bytes], int]] = {}
        self.on = False
        self.revision = 1

    def apply(self, command: Command) -> object:
        self.index += 1
        # while authentication is on commands come from root
        data = encode(command)
        if self.on:
            data = encode(Checked("root", self.machine.auth.revision, data))
        return self.machine.apply(Context(self.index, 1, self.index), [data])[0]

    def expect(self, command: Command, error: KvError | None, changes: bool = True) -> None:
        result = self.apply(command)
        if error is not None:
            assert isinstance(result, Refused) and result.error is error, (command, result, error)
            return
        self.revision += changes
        assert isinstance(result, AuthResult), (command, result)
        assert result.auth_revision == self.revision, (command, result, self.revision)

    @rule(name=names)
    def user_add(self, name: str) -> None:
        known = name in self.users
        self.users.setdefault(name, set())
        self.expect(UserAdd(name, b"hash"), KvError.USER_EXISTS if known else None)

    @rule(name=names)
    def user_delete(self, name: str) -> None:
        if self.on and name == "root":
            self.expect(UserDelete(name), KvError.INVALID_AUTH_MANAGEMENT)
            return
        known = self.users.pop(name, None) is not None
        self.expect(UserDelete(name), None if known else KvError.USER_NOT_FOUND)

    @rule(name=roles)
    def role_add(self, name: str) -> None:
        known = name in self.roles
        self.roles.setdefault(name, {})
        self.expect(RoleAdd(name), KvError.ROLE_EXISTS if known else None)

    @rule(name=roles)
    def role_delete(self, name: str) -> None:
        if self.on and name == "root":
            self.expect(RoleDelete(name), KvError.INVALID_AUTH_MANAGEMENT)
            return
        known = self.roles.pop(name, None) is not None
        if known:
            for held in self.users.values():
                held.discard(name)
        self.expect(RoleDelete(name), None if known else KvError.ROLE_NOT_FOUND)

    @rule(user=names, role=roles)
    def grant(self, user: str, role: str) -> None:
        if user not in self.users:
            self.expect(UserGrantRole(user, role), KvError.USER_NOT_FOUND)
        elif role != "root" and role not in self.roles:
            self.expect(UserGrantRole(user, role), KvError.ROLE_NOT_FOUND)
        else:
            new = role not in self.users[user]
            self.users[user].add(role)
            self.expect(UserGrantRole(user, role), None, changes=new)

    @rule(user=names, role=roles)
    def revoke(self, user: str, role: str) -> None:
        command = UserRevokeRole(user, role)
        if self.on and user == role == "root":
            self.expect(command, KvError.INVALID_AUTH_MANAGEMENT)
        elif user not in self.users:
            self.expect(command, KvError.USER_NOT_FOUND)
        elif role not in self.users[user]:
            self.expect(command, KvError.ROLE_NOT_GRANTED)
        else:
            self.users[user].discard(role)
            self.expect(command, None)

    @rule(role=roles, kind=kinds, key=keys, end=ends)
    def permit(self, role: str, kind: int, key: bytes, end: bytes) -> None:
        command = RoleGrantPermission(role, Permission(kind, key, end))
        if not members(key, end):
            self.expect(command, KvError.INVALID_AUTH_MANAGEMENT)
        elif role not in self.roles:
            self.expect(command, KvError.ROLE_NOT_FOUND)
        else:
            self.roles[role][key, end] = kind
            self.expect(command, None)

    @rule(role=roles, key=keys, end=ends)
    def forbid(self, role: str, key: bytes, end: bytes) -> None:
        command = RoleRevokePermission(role, key, end)
        if role not in self.roles:
            self.expect(command, KvError.ROLE_NOT_FOUND)
        elif (key, end) not in self.roles[role]:
            self.expect(command, KvError.PERMISSION_NOT_GRANTED)
        else:
            del self.roles[role][key, end]
            self.expect(command, None)

    @rule()
    def enable(self) -> None:
        if self.on:
            self.expect(AuthEnable(), None, changes=False)
        elif "root" not in self.users:
            self.expect(AuthEnable(), KvError.ROOT_USER_MISSING)
        elif "root" not in self.users["root"]:
            self.expect(AuthEnable(), KvError.ROOT_ROLE_MISSING)
        else:
            self.expect(AuthEnable(), None, changes=False)
            self.on = True

    @rule()
    def disable(self) -> None:
        command = AuthDisable()
        self.expect(command, None, changes=self.on)
        self.on = False

    @initialize()
    def begin(self) -> None:
        """Authentication on, and users with a role to be filled."""
        self.set_up()

    @rule()
    def set_up(self) -> None:
        """The short way to what takes many steps otherwise."""
        for user, role in (("root", "root"), ("u1", "r1"), ("u1", "r2"), ("u2", "r2")):
            self.user_add(user)
            self.role_add(role)
            self.grant(user, role)
        self.enable()

    @rule(role=st.sampled_from(["r1", "r2"]), spans=st.lists(st.tuples(kinds, keys, ends), min_size=1, max_size=4))
    def permit_some(self, role: str, spans: list[tuple[int, bytes, bytes]]) -> None:
        self.set_up()
        for kind, key, end in spans:
            self.permit(role, kind, key, end)
        for user in ("u1", "u2"):
            for right in (1, 2):
                self.ask_for_everything(user, right)

    @rule()
    def restore(self) -> None:
        capture = self.machine.capture()
        digest = self.machine.hash()
        self.machine.restore(capture.index, list(capture.chunks()))
        capture.close()
        assert self.machine.hash() == digest

    @rule(user=st.sampled_from(["root", "u1", "u2", "ghost"]), right=st.sampled_from([1, 2]))
    def ask_for_everything(self, user: str, right: int) -> None:
        for key in SHORT_KEYS:
            for end in (b"", b"\0", *SHORT_KEYS):
                self.ask(user, right, key, end)

    def ask(self, user: str, right: int, key: bytes, end: bytes) -> None:
        auth = self.machine.auth
        got = auth.refuse_range(user, auth.revision, right, interval(key, end))
        if not self.on:
            assert got is None
            return
        held = self.users.get(user)
        if held is None:
            assert got is KvError.PERMISSION_DENIED
        elif "root" in held:
            assert got is None
        else:
            allowed: set[bytes] = set()
            for role in held:
                for (start, stop), kind in self.roles.get(role, {}).items():
                    if kind in ((0, 2) if right == 1 else (1, 2)):
                        allowed |= members(start, stop)
            asked = members(key, end)
            assert (got is None) == (bool(asked) and asked <= allowed), (user, right, key, end, got)

    @rule(user=st.sampled_from(["u1", "u2"]), key=keys, end=ends)
    def read(self, user: str, key: bytes, end: bytes) -> None:
        """The same question asked by applying a command."""
        auth = self.machine.auth
        asked = auth.refuse_range(user, auth.revision, 1, interval(key, end))
        self.index += 1
        data = encode(Checked(user, auth.revision, encode(Range(key, end))))
        result = self.machine.apply(Context(self.index, 1, self.index), [data])[0]
        assert (result.error if isinstance(result, Refused) else None) == asked

    @invariant()
    def same_names(self) -> None:
        auth = self.machine.auth
        assert auth.users() == sorted(self.users)
        assert auth.roles() == sorted(self.roles)
        assert auth.enabled == self.on
        auth.validate()


TestAuthModel = Model.TestCase
TestAuthModel.settings = settings(
    max_examples=int(os.environ.get("OARLOCK_AUTH_EXAMPLES", "60")), stateful_step_count=40, deadline=None
)
