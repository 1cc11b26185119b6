"""Leases in the simulated world: holders that are granted leases and renew them, and the LEASE checker.

The keeper of leases and the auditor are at work. The checker knows the world's own time and what holders were told; it
shares nothing with the keeper:

- a lease that was granted or renewed does not end before its TTL has passed since the holder asked, on the fastest
  clock that any member ever had;
- what has ended, by expiry or by a revocation, is never renewed for who asks later;
- what is left of a TTL is never more than the TTL;
- no member is found to have diverged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from oarlock.errors import Outcome
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.commands_alarm import AuditMark, AuditReport
from oarlock.machines.kv.commands_lease import LeaseExpire, LeaseGrant, LeaseRenew, LeaseRevoke, LeaseTick
from oarlock.machines.kv.machine import KvMachine
from oarlock.node.replica import events as ev
from oarlock.node.replica.sessions import plain
from oarlock.sim.invariants import Violation
from oarlock.sim.world.application import WorldMachine
from oarlock.sim.world.model import Model, Plain, _Version, encode_kv
from oarlock.sim.world.workload import Op

if TYPE_CHECKING:
    from oarlock.sim.world.features import EtcdApplication
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

SECOND: Final = 10**9
HOLDERS: Final = 3
TTL_MAX: Final = 4
RENEWALS_MAX: Final = 12  # of one lease, before it is left to itself


class LeaseChecker:
    """What holders were promised, and what has ended. Times are the world's."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.promised: dict[int, tuple[int, int]] = {}  # lease -> when somebody asked, and the TTL in s it was told
        self.ended: dict[int, int] = {}  # lease -> when its end was first committed
        self.expired = 0
        self.revoked = 0
        self.renewed = 0
        self.granted = 0
        self.fastest = 1_000_000  # millionths of true time

    def promise(self, lease: int, asked_at: int, ttl: int) -> None:
        at, known = self.promised.get(lease, (0, 0))
        if asked_at + ttl * SECOND > at + known * SECOND:
            self.promised[lease] = (asked_at, ttl)

    def look_at_clocks(self) -> None:
        assert self.world is not None
        for process in self.world.processes.values():
            self.fastest = max(self.fastest, process.clock.rate)

    def end(self, lease: int, expired: bool) -> None:
        """The end of a lease is committed."""
        assert self.world is not None
        now = self.world.now
        self.ended.setdefault(lease, now)
        if not expired:
            self.revoked += 1
            return
        self.expired += 1
        self.look_at_clocks()
        asked_at, ttl = self.promised.get(lease, (0, 0))
        if now - asked_at < ttl * SECOND * 1_000_000 // self.fastest:
            raise Violation(
                "LEASE",
                f"lease {lease} ended {(now - asked_at) / SECOND:.3f} s after a holder asked for {ttl} s and was told "
                f"that it has them (the fastest clock ran at {self.fastest / 10_000:.1f} %)",
            )

    def renewal(self, lease: int, asked_at: int, ttl: int, wanted: int) -> None:
        """A holder was told that its renewal gave it `ttl` s."""
        ended = self.ended.get(lease)
        if ttl and ended is not None and ended < asked_at:
            raise Violation("LEASE", f"lease {lease} ended at {ended}, and was renewed for who asked at {asked_at}")
        if ttl:
            if ttl != wanted:
                raise Violation("LEASE", f"lease {lease} of {wanted} s was renewed for {ttl} s")
            self.renewed += 1
            self.promise(lease, asked_at, ttl)

    def left(self, lease: int, remaining: int, wanted: int) -> None:
        if remaining > wanted:
            raise Violation("LEASE", f"lease {lease} of {wanted} s has {remaining} s left")


class LeaseModel(Model):
    """The reference with leases: which keys are attached to which, and what their ends delete."""

    def __init__(self, application: Any) -> None:
        super().__init__(application)
        self._checker: LeaseChecker = application.checker
        self.leases: dict[int, tuple[int, int]] = {}  # TTL in s, ceiling in ns
        self._clock = 0
        self._term = 0
        self._attached: dict[tuple[bytes, tuple[int, int]], int] = {}  # key and place of a version -> lease

    def apply(self, commands: Sequence[bytes], context: Context | None = None) -> list[Plain]:
        assert context is not None
        self._term = context.term
        return super().apply(commands, context)

    def _run(self, command: Any) -> Plain:
        if isinstance(command, kv.Put) and command.lease and command.lease not in self.leases:
            return ("refused", int(kv.KvError.LEASE_NOT_FOUND), self.revision)
        if isinstance(command, AuditMark | AuditReport):
            return ("compacted", self.revision)
        if isinstance(command, LeaseGrant | LeaseRevoke | LeaseTick | LeaseRenew | LeaseExpire):
            return self._lease(command)
        return super()._run(command)

    def _keys_of(self, lease: int) -> list[bytes]:
        """What hangs on a lease, ascending."""
        found = []
        for key in sorted(self._keys):
            latest = self._latest(key)
            if latest and self._attached.get((key, latest.place)) == lease:
                found.append(key)
        return found

    def _lease(self, command: Any) -> Plain:
        leases = self.leases
        if isinstance(command, LeaseGrant):
            if command.id in leases:
                return ("refused", int(kv.KvError.LEASE_EXISTS), self.revision)
            slack = max(SECOND, command.ttl * SECOND // 2)
            leases[command.id] = (command.ttl, self._clock + command.ttl * SECOND + slack)
        elif isinstance(command, LeaseRevoke):
            if command.id not in leases:
                return ("refused", int(kv.KvError.LEASE_NOT_FOUND), self.revision)
            self._end(command.id, expired=False)
        elif command.term != self._term:
            return ("refused", int(kv.KvError.LEASE_OF_OTHER_TERM), self.revision)
        elif isinstance(command, LeaseTick):
            if leases:
                self._clock = max(self._clock, command.clock)
        elif isinstance(command, LeaseRenew):
            for lease, deadline in zip(command.ids, command.deadlines, strict=True):
                if lease in leases:
                    ttl, ceiling = leases[lease]
                    leases[lease] = (ttl, max(ceiling, deadline))
        else:
            for lease, ceiling in zip(command.ids, command.ceilings, strict=True):
                if lease in leases and leases[lease][1] == ceiling:
                    self._end(lease, expired=True)
        return ("compacted", self.revision)

    def _end(self, lease: int, *, expired: bool) -> None:
        del self.leases[lease]
        keys = self._keys_of(lease)
        for sub, key in enumerate(keys):
            self._keys[key].append(_Version((self.revision + 1, sub), 0, 0, b""))
            self._deleted(key)
        self.revision += bool(keys)
        self._checker.end(lease, expired)

    def _op(self, op: Any) -> Plain:
        if isinstance(op, kv.Put) and op.lease:
            self._attached[op.key, (self.revision + 1, self._sub)] = op.lease
        return super()._op(op)

    def _encode(self, key: bytes, version: _Version, value: bytes | None = None) -> bytes:  # type: ignore[override]
        shown = version.value if value is None else value
        lease = self._attached.get((key, version.place), 0)
        record = encode_kv(key, version.create, version.place[0], version.version, shown)
        return record + (b"\x30" + bytes(_small(lease)) if lease else b"")


def _small(number: int) -> bytearray:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return out


class LeaseWorldMachine(WorldMachine):
    """Lets the keeper and the auditor see what they need of the key-value machine."""

    @property
    def _kv(self) -> KvMachine:
        assert isinstance(self.inner, KvMachine)
        return self.inner

    @property
    def leases(self) -> Any:
        return self._kv.leases

    @property
    def alarms(self) -> Any:
        return self._kv.alarms

    def hash(self) -> bytes:
        return self._kv.hash()

    def audit_mark_command(self, term: int, members: int) -> bytes:
        return self._kv.audit_mark_command(term, members)

    def audit_report_command(self, member: int, index: int, digest: bytes) -> bytes:
        return self._kv.audit_report_command(member, index, digest)


class Holder:
    """Is granted a lease, attaches keys, renews it for a while, then leaves or revokes it; and again."""

    def __init__(self, world: World, application: EtcdApplication, number: int) -> None:
        self.world = world
        self.stopped = False
        self._application = application
        self._checker = application.checker
        self._number = number
        self._draw = world.choices.stream(f"holder/{number}")
        self._lease = 0
        self._ttl = 0
        self._held = False
        self._renewals = 0
        self._asked_at = 0
        self._count = 0
        self._what = ""
        self._think()

    def _think(self) -> None:
        self.world.later(SECOND // 20 + self._draw.draw(SECOND // 2), self._next)

    def _process(self) -> Process | None:
        up = [p for p in self.world.up() if not p.witness]
        return up[self._draw.draw(len(up))] if up else None

    def _next(self) -> None:
        if self.world.healed:
            return
        process = self._process()
        self._think()
        if process is None:
            return
        self._checker.look_at_clocks()
        if not self._held:
            self._count += 1
            self._lease = self._number * 1000 + self._count
            self._ttl = 2 + self._draw.draw(TTL_MAX - 1)
            self._renewals = self._draw.draw(RENEWALS_MAX)
            self._held = True
            self._submit(process, LeaseGrant(self._lease, self._ttl), "grant")
            return
        roll = self._draw.draw(8)
        if self._renewals == 0:
            self._held = False
            if roll < 2:
                self._submit(process, LeaseRevoke(self._lease), "revoke")
        elif roll == 0:
            key = b"k%02d" % self._draw.draw(self.world.swarm.keys)
            self._submit(process, kv.Put(key, b"held", self._lease), "put")
        else:
            self._renewals -= 1
            self._renew(process)

    def _submit(self, process: Process, command: kv.Command, what: str) -> None:
        op = _HolderOp(self, what, self._lease, self._ttl)
        process.submit(op, [plain(self._application.signed(kv.encode(command)))])

    def _renew(self, process: Process) -> None:
        lease, ttl, asked_at = self._lease, self._ttl, self.world.now
        checker = self._checker

        def done(answer: ev.LeasesAnswered | ev.LeasesFailed) -> None:
            if isinstance(answer, ev.LeasesAnswered):
                checker.renewal(lease, asked_at, answer.renewed[0], ttl)
                checker.left(lease, answer.remaining[0], ttl)

        process.ask_leases([lease], [lease], done)

    # -- what an `Op` calls
    def learned(self, result: Plain) -> None: ...

    def done(self, op: Op) -> None:
        assert isinstance(op, _HolderOp)
        if op.what == "grant" and op.granted:
            self._checker.granted += 1
            self._checker.promise(op.lease, op.began, op.ttl)

    def failed(self, op: Op, outcome: Outcome) -> None: ...


class _HolderOp(Op):
    __slots__ = ("began", "granted", "lease", "ttl", "what")

    def __init__(self, holder: Holder, what: str, lease: int, ttl: int) -> None:
        super().__init__(holder, holder.world.oracle.acknowledged, 1)  # type: ignore[arg-type]
        self.began = holder.world.now
        self.what = what
        self.lease = lease
        self.ttl = ttl
        self.granted = False

    def answered(self, process: Process, number: int, result: Plain) -> None:
        self.granted = result[0] not in ("refused", "denied")
        super().answered(process, number, result)
