"""The key-value machine as a seed makes it: with or without watches, leases and authentication, in every combination.

Each of the three brings people who use it, what the reference must know of it, and a checker. (swarm testing)
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from oarlock.check.watch import EventHistory
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.commands_alarm import AlarmResult
from oarlock.machines.kv.commands_auth import AuthResult, Checked
from oarlock.machines.kv.commands_lease import LeaseDone, LeaseGranted
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.permissions import interval
from oarlock.machines.kv.visit import READ
from oarlock.sim.failures import Violation
from oarlock.sim.world.application import KvApplication, WorldMachine
from oarlock.sim.world.auth import DENIALS, EVER, AsUser, AuthAsker, AuthModel, Warden
from oarlock.sim.world.choices import Stream
from oarlock.sim.world.leases import HOLDERS, Holder, LeaseChecker, LeaseModel, LeaseWorldMachine
from oarlock.sim.world.model import DENIED, Model, Plain, plain_result
from oarlock.sim.world.swarm import AUTH, LEASES, WATCHES
from oarlock.sim.world.watches import FOLLOWERS, Follower, WatchModel
from oarlock.sim.world.workload import KvAsker

if TYPE_CHECKING:
    from oarlock.sim.world.world import World


@cache
def _reference(features: frozenset[str]) -> type[Model]:
    parts: tuple[tuple[str, type[Model]], ...] = ((AUTH, AuthModel), (WATCHES, WatchModel), (LEASES, LeaseModel))
    bases = tuple(part for name, part in parts if name in features)
    return type("Reference", (*bases, Model), {}) if bases else Model


class EtcdApplication(KvApplication):
    """See the module. Without features it is `KvApplication`."""

    def __init__(self, features: frozenset[str]) -> None:
        self.features = features
        self.name = "+".join(("kv", *sorted(features)))
        self.wrapper: type[WorldMachine] = LeaseWorldMachine if LEASES in features else WorldMachine
        self.history = EventHistory()
        self.checker = LeaseChecker()
        self.followers: list[Follower] = []
        self.holders: list[Holder] = []
        self.warden: Warden | None = None
        self.model = _reference(features)(self)

    def reference(self) -> Model:
        return self.model

    def asker(self, world: World, client: int, draw: Stream) -> KvAsker:
        if client == 1:
            self._begin(world)
        return AuthAsker(world, client, draw) if AUTH in self.features else KvAsker(world, client, draw)

    def _begin(self, world: World) -> None:
        self.checker.world = world
        if WATCHES in self.features:
            self.followers = [Follower(world, self, number) for number in range(1, FOLLOWERS + 1)]
        if LEASES in self.features:
            self.holders = [Holder(world, self, number) for number in range(1, HOLDERS + 1)]
        if AUTH in self.features:
            self.warden = Warden(world)

    def signed(self, data: bytes) -> bytes:
        """A command that must not be refused whatever the warden does."""
        return kv.encode(Checked("root", EVER, data)) if AUTH in self.features else data

    def serving(self, turn: int, node: int) -> bytes:
        return self.signed(super().serving(turn, node))

    def answer(self, machine: KvMachine, question: Any) -> object:
        if isinstance(question, AsUser):
            asked = interval(question.range.key, question.range.range_end)
            refused = machine.auth.refuse_range(question.user, machine.auth.revision, READ, asked)
            if refused is not None:
                return kv.Refused(refused, machine.revision)
            question = question.range
        return machine.range(question)

    def plain(self, result: object) -> Plain:
        if isinstance(result, LeaseGranted | LeaseDone | AlarmResult):
            return ("compacted", result.revision)
        if isinstance(result, AuthResult):
            return ("auth", result.revision, result.auth_revision)
        found = plain_result(result)
        return DENIED if isinstance(found, tuple) and found[0] == "refused" and found[1] in DENIALS else found

    def digest(self, machine: KvMachine) -> bytes:
        if AUTH not in self.features:
            return machine.hash()
        return machine.hash() + b"%d %d" % (machine.auth.enabled, machine.auth.revision)

    def validate(self, machine: KvMachine) -> None:
        """Asked of every member at the end of a run: those who follow it, or nobody, are told the rest."""
        super().validate(machine)
        for follower in self.followers:
            follower.finish(machine)
        if LEASES in self.features and (found := machine.alarms.active()):
            raise Violation("HASH", f"members were found to differ: {found}")
        if isinstance(self.model, AuthModel):
            self.model.check_auth(machine)

    def told(self) -> dict[str, int]:
        """What happened, for statistics: a feature that nobody used proves nothing."""
        found: dict[str, int] = {}
        if WATCHES in self.features:
            for name in ("events", "moves", "compacted", "progress"):
                found[f"watches.{name}"] = sum(getattr(follower, name) for follower in self.followers)
            found["watches.fell behind"] = sum(follower.fell_behind for follower in self.followers)
        if LEASES in self.features:
            for name in ("granted", "renewed", "expired", "revoked"):
                found[f"leases.{name}"] = getattr(self.checker, name)
        if isinstance(self.model, AuthModel) and self.warden is not None:
            found["auth.changes"], found["auth.denials"] = self.warden.changes, self.model.denials
        return found
