"""One replica, whole: consensus, the queue of proposals in front of it and the state machine behind it.

Synchronous and deterministic; the production runtime and the simulator drive this same code. Public: `Member` and
`MemberLimits`, `MemberStatus` (`member`), what goes in and out (`events`), the payload of an entry (`batch`), client
sessions and envelopes (`sessions`), member records (`directory`).
"""

from oarlock.node.replica.member import NEVER, Member, MemberLimits, MemberStatus

__all__ = ["NEVER", "Member", "MemberLimits", "MemberStatus"]
