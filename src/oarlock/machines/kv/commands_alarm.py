"""Commands and results that concern alarms, the comparison of states between members and upkeep: tags 40 to 47 of
`machines.kv.commands.Command`. (docs/explanation/alarms.md)"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec


class AlarmType(IntEnum):
    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


class AlarmActivate(msgspec.Struct, tag=40, array_like=True, gc=False):
    member: int
    alarm: int


class AlarmDeactivate(msgspec.Struct, tag=41, array_like=True, gc=False):
    member: int
    alarm: int


class AuditMark(msgspec.Struct, tag=42, array_like=True, gc=False):
    """The leader of `term` asks every member for the digest that its state has before this entry. `members` of them
    have a state."""

    term: int
    members: int


class AuditReport(msgspec.Struct, tag=43, array_like=True, gc=False):
    """Before the mark at `index`, the state of `member` had this digest."""

    member: int
    index: int
    digest: bytes


class AutoCompact(msgspec.Struct, tag=44, array_like=True, gc=False):
    """The leader compacts by the clock; what `Compact` is of a client."""

    revision: int


AlarmCommand: TypeAlias = AlarmActivate | AlarmDeactivate | AuditMark | AuditReport
ALARM_COMMANDS = (AlarmActivate, AlarmDeactivate, AuditMark, AuditReport)


class AlarmResult(msgspec.Struct):
    """`changed` is False if the alarm was as asked already."""

    revision: int
    changed: bool
