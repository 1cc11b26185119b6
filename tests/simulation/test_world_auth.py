"""Authentication in the simulated world: nobody sees or changes what is not theirs, and a hole is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.auth import AuthState
from oarlock.machines.kv.commands_auth import UserAdd
from oarlock.machines.kv.machine import KvMachine
from oarlock.sim.failures import Violation
from oarlock.sim.world.auth import BOTH, READ, WRITE, Rights
from oarlock.sim.world.features import EtcdApplication
from oarlock.sim.world.outcome import Outcome, Replay, run_replay

Patch = pytest.MonkeyPatch
SEEDS = 8
EVENTS = 600


def run(seed: int) -> tuple[Outcome, EtcdApplication]:
    application = EtcdApplication(frozenset({"auth"}))
    return run_replay(Replay(seed=seed, events=EVENTS), application=application), application


def test_rights_are_in_force() -> None:
    changes = denials = 0
    for seed in range(SEEDS):
        outcome, application = run(seed)
        assert not outcome.failed, f"{outcome.trace}\nseed {seed}: {outcome.invariant} {outcome.what}"
        told = application.told()
        changes, denials = changes + told["auth.changes"], denials + told["auth.denials"]
    assert changes > 50 and denials > 50


def merged_is_kept(patch: Patch) -> None:
    """What a user may do is not computed anew after a change."""

    def changed(self: Any) -> None:
        self.revision += 1
        self._save_state()

    patch.setattr(AuthState, "_changed", changed)


def old_revisions_pass(patch: Patch) -> None:
    """A command that was checked before a right was taken away is not checked again."""
    real = AuthState.refuse_range

    def refuse_range(self: Any, user: str, revision: int, right: int, asked: Any) -> Any:
        refused = real(self, user, revision, right, asked)
        return None if refused is kv.KvError.AUTH_OLD_REVISION else refused

    patch.setattr(AuthState, "refuse_range", refuse_range)


def only_the_first_operation_is_looked_at(patch: Patch) -> None:
    """A transaction is judged by the first thing that it touches."""
    from oarlock.machines.kv import auth

    real = auth.touches
    patch.setattr(auth, "touches", lambda command: list(real(command))[:1])


def a_restore_keeps_the_old_rights(patch: Patch) -> None:
    """A member restored from a snapshot goes on with the users that it had. (etcd#14571)"""
    real = AuthState.attach

    def attach(self: Any, table: Any) -> None:
        if hasattr(self, "_users"):
            self._table = table
        else:
            real(self, table)

    patch.setattr(AuthState, "attach", attach)
    patch.setattr(AuthState, "validate", lambda self: None)


def unwrapped_commands_pass(patch: Patch) -> None:
    """A command of a member that does not know yet that authentication is on is applied."""
    real = AuthState.refuse

    def refuse(self: Any, user: str, revision: int, command: Any, keys_of: Any, *, wrapped: bool) -> Any:
        return real(self, user, revision, command, keys_of, wrapped=wrapped) if wrapped else None

    patch.setattr(AuthState, "refuse", refuse)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "plant",
    [
        merged_is_kept,
        old_revisions_pass,
        only_the_first_operation_is_looked_at,
        a_restore_keeps_the_old_rights,
        unwrapped_commands_pass,
    ],
)
def test_a_hole_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in range(60):
        outcome, _ = run(seed)
        if outcome.failed:
            assert outcome.invariant in ("AUTH", "HASH", "LIN"), outcome.what
            return
    raise AssertionError("nobody noticed")


def test_the_reference_walks_along_permissions() -> None:
    permissions = {(READ, b"a", b"c"), (BOTH, b"c", b""), (READ, b"c\0", b"\0"), (WRITE, b"x", b"y")}
    rights = Rights(True, 3, {"u": frozenset({"r"}), "root": frozenset({"root"})}, {"r": frozenset(permissions)})
    assert rights.may("u", READ, b"a", b"\0") and rights.may("u", READ, b"b", b"") and rights.may("u", READ, b"b", b"z")
    assert rights.may("u", WRITE, b"c", b"") and rights.may("u", WRITE, b"x1", b"x2")
    assert not rights.may("u", WRITE, b"c", b"d") and not rights.may("u", READ, b"\0", b"b")
    assert not rights.may("u", READ, b"b", b"a") and not rights.may("ghost", READ, b"a", b"")
    assert rights.may("root", WRITE, b"a", b"\0")


def test_a_member_that_holds_other_users_at_the_end_is_found() -> None:
    application = EtcdApplication(frozenset({"auth"}))
    machine = KvMachine.in_memory()
    application.validate(machine)
    machine.auth.apply(UserAdd("u1", b"hash"), 1, 0)
    with pytest.raises(Violation, match="AUTH"):
        application.validate(machine)
