"""What an entry of the zoo is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Arena(Enum):
    """Where an entry is hunted."""

    WORLD = "world"  # whole members: `oarlock.sim.world`
    HASHES = "two hash seeds"  # the same seed in two processes with different PYTHONHASHSEED: the digests must agree
    SCOPE = "scope H"  # the log alone, through every crash: `oarlock.sim.scopes.wal`
    TESTS = "tests"  # a named test of the suite, run on the changed copy


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `old` by `new` in `file` (below src/oarlock). `old` must occur exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One defect. `source` says whose it was, `trigger` what makes it show, `note` how it is expressed here if that is
    not obvious. `survives`: no defect, but a liberty that the oracle must grant; it must not be killed."""

    id: str
    name: str
    source: str
    trigger: str
    edits: tuple[Edit, ...]
    arena: Arena = Arena.WORLD
    tests: tuple[str, ...] = ()  # for `Arena.TESTS`: what pytest is given
    note: str = ""
    survives: bool = False


@dataclass(frozen=True, slots=True)
class Excluded:
    """An entry that is not run, and why. `waiting`: until the part that it is about exists, or runs in the world."""

    id: str
    name: str
    why: str
    waiting: bool = False
