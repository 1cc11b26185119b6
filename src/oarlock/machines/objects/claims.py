"""Claims: who has asked for something that only some may have at once, in the order in which they asked.

Locks, semaphores, elections and the like are claims with different rules of who is granted. A claim belongs to a holder
(`leases`); when the holder ends, its claims go. A claim's number is a fencing token: whoever is granted later has a
greater one, because claims are granted in the order in which they were made.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from oarlock.machines.objects.declare import command, query
from oarlock.machines.objects.machine import StateMachine

CLAIMS_MAX: Final = 100_000


@dataclass
class Claim:
    """One claim, waiting or granted."""

    token: int
    holder: str
    kind: str = ""
    value: Any = None


class HolderUnknown(Exception):
    """The holder has ended: it was not heard of in time, or has given up."""


class TooManyClaims(Exception):
    """`CLAIMS_MAX` are waiting."""


class Claims(StateMachine):
    """A line of claims. `granted_count` says how many from its front have what they asked for."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self) -> None:
        self.claims: list[Claim] = []

    @abstractmethod
    def granted_count(self) -> int:
        """How many claims, from the front, are granted."""
        raise NotImplementedError

    @command
    def enter(self, holder: str, kind: str = "", value: Any = None) -> int:
        """Ask; gives the claim's token. Whether it is granted shows in `state_of_claim`."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        if len(self.claims) >= CLAIMS_MAX:
            raise TooManyClaims(f"CLAIMS_MAX is {CLAIMS_MAX}")
        token = self.context.token
        before = self.granted_count()
        self.claims.append(Claim(token, holder, kind, value))
        self._tell(before)
        return token

    @command
    def enter_nowait(self, holder: str, kind: str = "", value: Any = None) -> int:
        """Ask for something that is free: gives the token, or 0 if it would have to wait."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        if len(self.claims) >= CLAIMS_MAX:
            raise TooManyClaims(f"CLAIMS_MAX is {CLAIMS_MAX}")
        self.claims.append(Claim(self.context.token, holder, kind, value))
        if self.granted_count() < len(self.claims):
            self.claims.pop()
            return 0
        self._tell(len(self.claims) - 1)
        return self.context.token

    @command
    def leave(self, token: int) -> bool:
        """Give a claim up, waiting or granted; whether there was one."""
        return self._remove([claim for claim in self.claims if claim.token == token])

    def holder_ended(self, holder: str) -> None:
        self._remove([claim for claim in self.claims if claim.holder == holder])

    def _remove(self, gone: list[Claim]) -> bool:
        if not gone:
            return False
        before = {claim.token for claim in self.claims[: self.granted_count()]}
        tokens = {claim.token for claim in gone}
        self.claims = [claim for claim in self.claims if claim.token not in tokens]
        for claim in gone:
            self.note_change(claim.token)
        for claim in self.claims[: self.granted_count()]:
            if claim.token not in before:
                self.note_change(claim.token)
        self.note_change()
        return True

    def _tell(self, before: int) -> None:
        """Claims from place `before` on may be granted now."""
        for claim in self.claims[before : self.granted_count()]:
            self.note_change(claim.token)
        self.note_change()

    def state_of_claim(self, token: int) -> bool | None:
        """On this member's copy: whether a claim is granted; None if there is no such claim (any more)."""
        granted = self.granted_count()
        for place, claim in enumerate(self.claims):
            if claim.token == token:
                return place < granted
        return None

    @query
    def granted(self) -> list[Claim]:
        """The claims that are granted now."""
        return self.claims[: self.granted_count()]

    @query
    def waiting(self) -> list[Claim]:
        """The claims that wait, in their order."""
        return self.claims[self.granted_count() :]


class OneAtATime(Claims):
    """The first claim is granted."""

    def granted_count(self) -> int:
        return min(1, len(self.claims))
