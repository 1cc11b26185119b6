"""Users, roles, permissions and tokens in the replicated state: each rule of etcd's model, and what a client's command
meets when it is applied."""

from __future__ import annotations

import random
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oarlock.machines.base import Context
from oarlock.machines.kv import auth as auth_module
from oarlock.machines.kv import commands as kv_commands
from oarlock.machines.kv.auth import AuthState
from oarlock.machines.kv.commands import (
    Command,
    Compact,
    Compare,
    CompareTarget,
    DeleteRange,
    KvError,
    Put,
    PutResult,
    Range,
    Refused,
    Txn,
    encode,
)
from oarlock.machines.kv.commands_alarm import AlarmActivate, AlarmType
from oarlock.machines.kv.commands_auth import (
    AuthDisable,
    AuthEnable,
    Authenticate,
    AuthResult,
    Checked,
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
from oarlock.machines.kv.commands_lease import LeaseGrant
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.visit import depth, steps

ALL = (b"\0", b"\0")
READ, WRITE, READWRITE = PermissionType.READ, PermissionType.WRITE, PermissionType.READWRITE
SECRET = b"$2a$04$notAnyPasswordAtAll"


class Cluster:
    """One machine; commands come from `user`, found out at the present auth revision unless said otherwise."""

    def __init__(self, machine: KvMachine) -> None:
        self.machine = machine
        self.index = machine.applied_index
        self.auth = machine.auth

    def bare(self, *commands: Command) -> Any:
        self.index += 1
        results = self.machine.apply(Context(self.index, 1, self.index * 10), [encode(c) for c in commands])
        return results[0] if len(results) == 1 else results

    def __call__(self, user: str, command: Command, revision: int | None = None) -> Any:
        at = self.auth.revision if revision is None else revision
        return self.bare(Checked(user, at, encode(command)))

    def refusal(self, user: str, command: Command, revision: int | None = None) -> KvError | None:
        result = self(user, command, revision)
        return result.error if isinstance(result, Refused) else None

    def people(self) -> None:
        """root, reader (r on [a, c)), writer (rw on [a, c)), nobody (no role); authentication on."""
        for command in (
            UserAdd("root", SECRET),
            UserGrantRole("root", "root"),
            RoleAdd("r"),
            RoleAdd("w"),
            RoleGrantPermission("r", Permission(READ, b"a", b"c")),
            RoleGrantPermission("w", Permission(READWRITE, b"a", b"c")),
            UserAdd("reader", SECRET),
            UserAdd("writer", SECRET),
            UserAdd("nobody", SECRET),
            UserGrantRole("reader", "r"),
            UserGrantRole("writer", "w"),
            AuthEnable(),
        ):
            assert isinstance(self.bare(command), AuthResult), command


@pytest.fixture(params=["memory", "disk"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    machine = KvMachine.in_memory() if request.param == "memory" else KvMachine.on_disk(tmp_path / "state")
    yield Cluster(machine)
    machine.validate()


def test_the_first_revision_is_etcds_and_every_change_adds_one(kv: Cluster) -> None:
    assert kv.auth.revision == 1
    assert kv.bare(UserAdd("u", SECRET)) == AuthResult(1, 2, 1)
    assert kv.bare(RoleAdd("r")).auth_revision == 3
    assert kv.bare(UserGrantRole("u", "r")).auth_revision == 4
    assert kv.bare(UserGrantRole("u", "r")).auth_revision == 4  # has it already: nothing changes
    assert kv.bare(RoleGrantPermission("r", Permission(READ, b"k"))).auth_revision == 5
    assert kv.bare(UserChangePassword("u", SECRET)).auth_revision == 6
    assert kv.bare(UserRevokeRole("u", "r")).auth_revision == 7
    assert kv.bare(RoleRevokePermission("r", b"k")).auth_revision == 8
    assert kv.bare(RoleDelete("r")).auth_revision == 9
    assert kv.bare(UserDelete("u")).auth_revision == 10
    assert kv.machine.revision == 1  # of keys nothing changed


def test_refusals_of_management(kv: Cluster) -> None:
    assert kv.bare(AuthEnable()) == Refused(KvError.ROOT_USER_MISSING, 1)
    kv.bare(UserAdd("root", SECRET))
    assert kv.bare(AuthEnable()) == Refused(KvError.ROOT_ROLE_MISSING, 1)
    for command, error in (
        (UserAdd("", SECRET), KvError.USER_EMPTY),
        (UserAdd("root", SECRET), KvError.USER_EXISTS),
        (UserDelete("x"), KvError.USER_NOT_FOUND),
        (UserChangePassword("x", SECRET), KvError.USER_NOT_FOUND),
        (UserGrantRole("x", "r"), KvError.USER_NOT_FOUND),
        (UserGrantRole("root", "r"), KvError.ROLE_NOT_FOUND),
        (UserRevokeRole("x", "r"), KvError.USER_NOT_FOUND),
        (UserRevokeRole("root", "r"), KvError.ROLE_NOT_GRANTED),
        (RoleAdd(""), KvError.ROLE_EMPTY),
        (RoleDelete("x"), KvError.ROLE_NOT_FOUND),
        (RoleGrantPermission("x", Permission(READ, b"k")), KvError.ROLE_NOT_FOUND),
        (RoleGrantPermission("x", Permission(READ, b"")), KvError.INVALID_AUTH_MANAGEMENT),
        (RoleGrantPermission("x", Permission(READ, b"b", b"b")), KvError.INVALID_AUTH_MANAGEMENT),
        (RoleGrantPermission("x", Permission(3, b"b")), KvError.PERMISSION_NOT_GIVEN),
        (RoleRevokePermission("x", b"k"), KvError.ROLE_NOT_FOUND),
        (Authenticate("root", b"d" * 16, 2), KvError.AUTH_NOT_ENABLED),
    ):
        assert kv.bare(command) == Refused(error, 1), command
    kv.bare(RoleAdd("r"))
    assert kv.bare(RoleAdd("r")) == Refused(KvError.ROLE_EXISTS, 1)
    assert kv.bare(RoleRevokePermission("r", b"k")) == Refused(KvError.PERMISSION_NOT_GRANTED, 1)


def test_root_stays_root_while_authentication_is_on(kv: Cluster) -> None:
    kv.people()
    kv("root", RoleAdd("root"))
    for command in (UserDelete("root"), UserRevokeRole("root", "root"), RoleDelete("root")):
        assert kv.refusal("root", command) is KvError.INVALID_AUTH_MANAGEMENT
    assert kv.refusal("root", AuthDisable()) is None
    assert kv.bare(RoleDelete("root")).auth_revision == kv.auth.revision
    assert kv.auth.user("root").roles == []  # type: ignore[union-attr]


def test_a_permission_is_replaced_where_key_and_range_end_are_the_same(kv: Cluster) -> None:
    kv.bare(RoleAdd("r"))
    for kind, end in ((READ, b"b"), (READWRITE, b"c"), (READ, b"c")):
        kv.bare(RoleGrantPermission("r", Permission(kind, b"a", end)))
    role = kv.auth.role("r")
    assert role is not None
    assert role.permissions == [Permission(READ, b"a", b"b"), Permission(READ, b"a", b"c")]


OPERATIONS: list[tuple[str, Command, dict[str, KvError | None]]] = [
    ("get", Range(b"a"), {"reader": None, "writer": None}),
    ("get outside", Range(b"c"), {}),
    ("range", Range(b"a", b"c"), {"reader": None, "writer": None}),
    ("range over the end", Range(b"a", b"c\0"), {}),
    ("from key", Range(b"a", b"\0"), {}),
    ("everything", Range(*ALL), {}),
    ("put", Put(b"a", b"v"), {"writer": None}),
    ("put outside", Put(b"c", b"v"), {}),
    ("put prev_kv", Put(b"a", b"v", prev_kv=True), {"writer": None}),
    ("delete", DeleteRange(b"a", b"b"), {"writer": None}),
    ("delete everything", DeleteRange(*ALL), {}),
    ("txn", Txn([], [Range(b"a")], [Put(b"b", b"")]), {"writer": None}),
    ("txn, branch not taken", Txn([], [Range(b"a")], [Put(b"c", b"")]), {}),
    ("txn that reads", Txn([], [Range(b"a")], []), {"reader": None, "writer": None}),
    ("compare outside", Txn([Compare(CompareTarget.VERSION, 0, b"c", 0)], [], []), {}),
    ("compare range", Txn([Compare(CompareTarget.VERSION, 0, b"a", 0, b"\0")], [], []), {}),
    ("nested", Txn([], [Txn([], [Txn([], [Put(b"a", b"")], [])], [])], []), {"writer": None}),
    ("nested outside", Txn([], [Txn([], [Txn([], [], [Put(b"c", b"")])], [])], []), {}),
    ("nested read outside", Txn([], [Txn([], [Range(b"c")], [])], []), {}),
    ("empty txn", Txn(), {"reader": None, "writer": None, "nobody": None}),
    ("compact", Compact(2), {}),
    ("role add", RoleAdd("new"), {}),
    ("user add", UserAdd("new", SECRET), {}),
    ("enable", AuthEnable(), {}),
    ("disable", AuthDisable(), {}),
]


@pytest.mark.parametrize(("name", "command", "allowed"), OPERATIONS, ids=[o[0] for o in OPERATIONS])
def test_who_may_do_what(name: str, command: Command, allowed: dict[str, None]) -> None:
    kv = Cluster(KvMachine.in_memory())
    kv.bare(Put(b"a", b"1"), Put(b"c", b"2"))
    kv.people()
    before = kv.machine.hash()
    for user in ("reader", "writer", "nobody", "ghost", ""):
        if user not in allowed:
            error = kv.refusal(user, command)
            assert error is not None, f"{user} may {name}"
            expected = {"": KvError.USER_EMPTY, "ghost": error}.get(user, KvError.PERMISSION_DENIED)
            assert error is expected
            assert error in (KvError.USER_EMPTY, KvError.PERMISSION_DENIED, KvError.USER_NOT_FOUND)
    assert isinstance(kv.bare(command), Refused), "a command from nobody is applied"
    assert kv.machine.hash() == before, "what was refused left a trace"
    for user in allowed:
        assert kv.refusal(user, command) is None, f"{user} may not {name}"
    assert kv.refusal("root", command) is None


def test_prev_kv_needs_the_right_to_read() -> None:
    """CVE-2026-44283 for nested puts; deletes alike."""
    kv = Cluster(KvMachine.in_memory())
    kv.people()
    kv("root", RoleAdd("wo"))
    kv("root", RoleGrantPermission("wo", Permission(WRITE, b"k", b"l")))
    kv("root", UserAdd("blind", SECRET))
    kv("root", UserGrantRole("blind", "wo"))
    for command in (
        Put(b"k", b"v", prev_kv=True),
        DeleteRange(b"k", b"l", prev_kv=True),
        Txn([], [Put(b"k", b"v", prev_kv=True)], []),
        Txn([], [Txn([], [], [Put(b"k", b"v", prev_kv=True)])], []),
        Txn([], [Txn([], [], [DeleteRange(b"k", prev_kv=True)])], []),
    ):
        assert kv.refusal("blind", command) is KvError.PERMISSION_DENIED, command
    for command in (Put(b"k", b"v"), DeleteRange(b"k", b"l"), Txn([], [Txn([], [Put(b"k", b"v")], [])], [])):
        assert kv.refusal("blind", command) is None, command


def test_a_put_with_a_lease_needs_the_right_to_write_what_hangs_on_it() -> None:
    """CVE-2026-44283: also in transactions, also nested."""
    kv = Cluster(KvMachine.in_memory())
    kv.bare(LeaseGrant(7, 60), LeaseGrant(8, 60), Put(b"a", b"", 7), Put(b"z", b"", 7))
    kv.people()
    for command in (Put(b"b", b"v", 7), Txn([], [Put(b"b", b"v", 7)], []), Txn([], [Txn([], [], [Put(b"b", b"", 7)])])):
        assert kv.refusal("writer", command) is KvError.PERMISSION_DENIED, command
        assert kv.refusal("root", command) is None, command
    assert kv.refusal("writer", Put(b"b", b"v", 8)) is None


def test_a_command_checked_under_an_older_revision_is_refused(kv: Cluster) -> None:
    kv.people()
    at = kv.auth.revision
    assert kv.refusal("writer", Put(b"a", b"1"), at) is None
    kv("root", UserRevokeRole("writer", "w"))
    assert kv.refusal("writer", Put(b"a", b"2"), at) is KvError.AUTH_OLD_REVISION
    assert kv.refusal("writer", Put(b"a", b"2")) is KvError.PERMISSION_DENIED
    assert kv.refusal("writer", Put(b"a", b"2"), 0) is KvError.USER_EMPTY
    # As in etcd, management asks for the role only: root's old token still works.
    assert kv.refusal("root", RoleAdd("again"), at) is None


def test_within_one_entry_a_change_counts_at_once(kv: Cluster) -> None:
    kv.people()
    revoke = Checked("root", kv.auth.revision, encode(UserRevokeRole("writer", "w")))
    write = Checked("writer", kv.auth.revision, encode(Put(b"a", b"v")))
    first, _, third = kv.bare(write, revoke, write)
    assert isinstance(first, PutResult)
    assert third == Refused(KvError.AUTH_OLD_REVISION, 2)
    off = Checked("root", kv.auth.revision, encode(AuthDisable()))
    results = kv.bare(Put(b"a", b"v"), off, Put(b"a", b"v"), AuthEnable(), Put(b"a", b"v"))
    assert [isinstance(r, Refused) for r in results] == [True, False, False, False, True]


def test_while_authentication_is_off_a_wrapper_means_nothing(kv: Cluster) -> None:
    assert isinstance(kv("ghost", Put(b"k", b"v"), 0), PutResult)


@pytest.mark.parametrize(
    "inner", [b"", b"\xc1", encode(Checked("root", 99, encode(Put(b"k", b"v")))), encode(Range(b"k", sort_order=9))]
)
def test_a_wrapper_with_nothing_sensible_in_it_is_refused(kv: Cluster, inner: bytes) -> None:
    kv.people()
    assert kv.bare(Checked("root", kv.auth.revision, inner)) == Refused(KvError.MALFORMED, 1)


def test_a_wrapped_transaction_nested_very_deep_is_refused(kv: Cluster) -> None:
    kv.people()
    raw = b"\x94\x04\x90" + b"\x91\x94\x04\x90" * 50_000
    assert kv.bare(Checked("root", kv.auth.revision, raw)) == Refused(KvError.MALFORMED, 1)


def test_the_visitor_uses_no_stack() -> None:
    txn = Txn([], [Put(b"deep", b"")], [])
    for _ in range(5_000):
        txn = Txn([], [txn], [])
    assert [step.key for step in steps(txn)] == [b"deep"]
    assert depth(txn) == 5_001
    while txn.success:  # take it apart, for a struct nested so deep cannot be freed in one go
        inner = txn.success.pop()
        if not isinstance(inner, Txn):
            break
        txn = inner


def test_tokens_end_with_password_user_and_authentication(kv: Cluster) -> None:
    kv.people()

    def login(user: str, digest: bytes) -> None:
        result = kv.bare(Authenticate(user, digest * 16, kv.auth.revision))
        assert isinstance(result, AuthResult) and result.index == kv.index
        token = kv.auth.token(digest * 16)
        assert token is not None and (token.user, token.index, token.stamp_ns) == (user, kv.index, kv.index * 10)

    login("reader", b"1")
    login("writer", b"2")
    login("root", b"3")
    kv("root", UserChangePassword("reader", SECRET))
    kv("root", UserDelete("writer"))
    assert [kv.auth.token(d * 16) is None for d in (b"1", b"2", b"3")] == [True, True, False]
    assert kv.bare(Authenticate("reader", b"3" * 16, kv.auth.revision)) == Refused(KvError.AUTH_FAILED, 1)  # taken
    kv("root", AuthDisable())
    assert kv.auth.token(b"3" * 16) is None


def test_authenticate_is_refused_for_a_password_checked_before_a_change(kv: Cluster) -> None:
    kv.people()
    at = kv.auth.revision
    kv("root", UserChangePassword("reader", SECRET))
    assert kv.bare(Authenticate("reader", b"1" * 16, at)) == Refused(KvError.AUTH_OLD_REVISION, 1)
    kv("root", UserAdd("cn", b"", True))
    for name, digest in (("cn", b"1" * 16), ("ghost", b"1" * 16), ("reader", b"short")):
        assert kv.bare(Authenticate(name, digest, kv.auth.revision)) == Refused(KvError.AUTH_FAILED, 1)


def test_a_user_without_password_gets_none(kv: Cluster) -> None:
    kv.bare(UserAdd("cn", SECRET, True))
    kv.bare(UserChangePassword("cn", SECRET))
    user = kv.auth.user("cn")
    assert user is not None and user.no_password and user.password == b""


def test_bounds(kv: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERS_MAX", "ROLES_MAX"):
        monkeypatch.setattr(auth_module, name, 3)
    for name in ("ROLES_OF_USER_MAX", "PERMISSIONS_OF_ROLE_MAX", "TOKENS_OF_USER_MAX"):
        monkeypatch.setattr(auth_module, name, 2)
    monkeypatch.setattr(auth_module, "TOKENS_MAX", 3)
    full = Refused(KvError.AUTH_FULL, 1)
    assert kv.bare(UserAdd("x" * (auth_module.NAME_BYTES_MAX + 1), SECRET)) == full
    assert kv.bare(UserAdd("u", b"x" * (auth_module.PASSWORD_HASH_BYTES_MAX + 1))) == full
    assert kv.bare(RoleAdd("ü" * (auth_module.NAME_BYTES_MAX // 2 + 1))) == full
    names = ["root", "u2", "u3"]
    for name in names:
        kv.bare(UserAdd(name, SECRET))
        kv.bare(RoleAdd(name + "r"))
    assert kv.bare(UserAdd("u4", SECRET)) == full
    assert kv.bare(RoleAdd("r4")) == full
    kv.bare(UserGrantRole("u2", "rootr"), UserGrantRole("u2", "u2r"))
    assert kv.bare(UserGrantRole("u2", "u3r")) == full
    assert kv.bare(UserChangePassword("u2", b"x" * (auth_module.PASSWORD_HASH_BYTES_MAX + 1))) == full
    long = b"k" * (auth_module.PERMISSION_BYTES_MAX + 1)
    assert kv.bare(RoleGrantPermission("u2r", Permission(READ, long))) == full
    kv.bare(RoleGrantPermission("u2r", Permission(READ, b"1")), RoleGrantPermission("u2r", Permission(READ, b"2")))
    assert kv.bare(RoleGrantPermission("u2r", Permission(READ, b"3"))) == full
    assert isinstance(kv.bare(RoleGrantPermission("u2r", Permission(WRITE, b"2"))), AuthResult)
    kv.bare(UserGrantRole("root", "root"), AuthEnable())
    for n, name in enumerate(("u2", "u2", "u2", "u3", "u3")):
        assert isinstance(kv.bare(Authenticate(name, bytes([n]) * 16, kv.auth.revision)), AuthResult)
    assert [kv.auth.token(bytes([n]) * 16) is not None for n in range(5)] == [False, False, True, True, True]


def test_state_survives_capture_restore_and_checkpoint(kv: Cluster, tmp_path: Path) -> None:
    kv.people()
    assert isinstance(kv.bare(Authenticate("writer", b"1" * 16, kv.auth.revision)), AuthResult)
    assert kv.refusal("writer", Put(b"a", b"v")) is None
    if kv.machine.durable:
        checkpoint = kv.machine.checkpoint()
        checkpoint.write()
        kv.machine.checkpointed(checkpoint)
    capture = kv.machine.capture()
    chunks = list(capture.chunks())
    other = KvMachine.in_memory()
    # What the other had derived from its old state must not outlive it (etcd#14571).
    elsewhere = Cluster(other)
    elsewhere.people()
    elsewhere("root", RoleGrantPermission("r", Permission(READWRITE, *ALL)))
    assert elsewhere.refusal("reader", Put(b"z", b"v")) is None
    held = other.auth
    other.restore(capture.index, chunks)
    capture.close()
    assert other.auth is held
    assert other.hash() == kv.machine.hash()
    assert (other.auth.enabled, other.auth.revision) == (True, kv.auth.revision)
    assert other.auth.token(b"1" * 16) == kv.auth.token(b"1" * 16)
    restored = Cluster(other)
    for user, command, error in (
        ("reader", Put(b"z", b"v"), KvError.PERMISSION_DENIED),
        ("writer", Put(b"b", b"v"), None),
        ("root", RoleAdd("new"), None),
    ):
        assert restored.refusal(user, command) is error
        assert kv.refusal(user, command) is error
    assert other.hash() == kv.machine.hash()
    other.validate()


def test_members_agree_whatever_their_store_and_their_past(tmp_path: Path) -> None:
    """The same entries, on a store in memory, one on disk with checkpoints, and ones that began from a capture."""
    chance = random.Random(20261124)
    members = [Cluster(KvMachine.in_memory()), Cluster(KvMachine.on_disk(tmp_path / "state"))]
    users, roles = ["root", "u1", "u2", "u3"], ["root", "r1", "r2"]
    keys = [b"a", b"b", b"c", b"d"]

    def command() -> Command:
        user, role, key = chance.choice(users), chance.choice(roles), chance.choice(keys)
        end = chance.choice([b"", b"\0", key + b"\0", b"z"])
        made: Command = chance.choice(
            [
                UserAdd(user, SECRET), UserGrantRole(user, role), UserRevokeRole(user, role), RoleAdd(role),
                RoleGrantPermission(role, Permission(chance.randrange(3), key, end)),
                RoleRevokePermission(role, key, end),
                Put(key, b"v"), Put(key, b"v", prev_kv=True), DeleteRange(key, end), Range(key, end),
                Txn([], [Put(key, b"t")], [Txn([], [Range(key, end)], [])]), Compact(1), AuthEnable(),
                UserChangePassword(user, SECRET), Authenticate(user, chance.randbytes(16), members[0].auth.revision),
            ]
        )  # fmt: skip
        if chance.random() < 0.05:
            made = chance.choice([AuthDisable(), UserDelete(user), RoleDelete(role)])
        if chance.random() < 0.85:
            revision = max(0, members[0].auth.revision - (chance.random() < 0.1))
            return Checked(chance.choice(["root", "root", *users, "ghost"]), revision, encode(made))
        return made

    refused: set[KvError] = set()
    for step in range(400):
        entry = [command() for _ in range(chance.randrange(1, 6))]
        results = [member.bare(*entry) for member in members]
        for member, result in zip(members[1:], results[1:], strict=True):
            assert result == results[0], f"step {step}: {entry}"
            assert member.machine.hash() == members[0].machine.hash(), f"step {step}: {entry}"
            assert (member.auth.enabled, member.auth.revision) == (members[0].auth.enabled, members[0].auth.revision)
        for result in results[0] if isinstance(results[0], list) else results:
            if isinstance(result, Refused):
                refused.add(result.error)
        if step % 100 == 50:
            checkpoint = members[1].machine.checkpoint()
            checkpoint.write()
            members[1].machine.checkpointed(checkpoint)
            capture = members[0].machine.capture()
            late = KvMachine.in_memory()
            late.restore(capture.index, list(capture.chunks()))
            capture.close()
            members.append(Cluster(late))
    assert {KvError.PERMISSION_DENIED, KvError.USER_EMPTY, KvError.AUTH_OLD_REVISION} <= refused
    for member in members:
        member.machine.validate()
        member.machine.close()


def test_the_digest_counts_users_and_roles() -> None:
    """Members whose rights differ must be noticed."""
    one, two = Cluster(KvMachine.in_memory()), Cluster(KvMachine.in_memory())
    for kv in (one, two):
        kv.bare(RoleAdd("r"))
    assert one.machine.hash() == two.machine.hash()
    one.bare(RoleGrantPermission("r", Permission(READ, b"k")))
    two.bare(RoleGrantPermission("r", Permission(WRITE, b"k")))
    assert one.machine.hash() != two.machine.hash()


def test_every_command_has_a_rule() -> None:
    """A command without one is refused while authentication is on, so a new kind shows up here, not in the field."""
    known = {Put, DeleteRange, Range, Txn, Authenticate, Checked, *auth_module.ROOT_COMMANDS}
    known |= {*auth_module.INTERNAL_COMMANDS, *auth_module.RULES}
    every = set(typing.get_args(kv_commands.Command))
    assert every <= known, f"without a rule in machines/kv/auth.py: {every - known}"


def test_nobody_stops_all_writes_through_a_member_that_lags_behind() -> None:
    """It does not know yet that authentication is on, so it proposes what a client asks for as it is."""
    kv = Cluster(KvMachine.in_memory())
    for command in (UserAdd("root", SECRET), RoleAdd("root"), UserGrantRole("root", "root"), AuthEnable()):
        kv.bare(command)
    refuse = kv.auth.refuse
    assert refuse("", 0, AlarmActivate(1, AlarmType.CORRUPT), lambda lease: (), wrapped=False) is KvError.USER_EMPTY
    assert refuse("", 0, AlarmActivate(1, AlarmType.NOSPACE), lambda lease: (), wrapped=False) is None, "a member's own"
    assert refuse("", 0, AlarmActivate(1, AlarmType.NOSPACE), lambda lease: (), wrapped=True) is KvError.USER_EMPTY


def test_no_hash_is_shown() -> None:
    kv = Cluster(KvMachine.in_memory())
    kv.bare(UserAdd("u", SECRET))
    shown = [UserAdd("u", SECRET), UserChangePassword("u", SECRET), kv.auth.user("u")]
    shown.append(Checked("u", 1, encode(UserAdd("u", SECRET))))
    for value in shown:
        assert SECRET.decode() not in repr(value)
        assert "u" in repr(value)


def test_an_old_state_is_a_new_one() -> None:
    """A directory from before there was authentication."""
    machine = KvMachine.in_memory()
    assert (machine.auth.enabled, machine.auth.revision, machine.auth.users()) == (False, 1, [])
    assert isinstance(machine.auth, AuthState)
