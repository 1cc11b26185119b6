"""What a person needs to see of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member of the group, as this node sees it."""

    name: str
    address: str
    id: int
    is_leader: bool
    is_voter: bool
    is_self: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a person needs to see of a node."""

    name: str
    role: str
    """`leader`, `follower`, `candidate`, `pre_candidate` or `stopped`."""

    leader: str
    """The leader's name, empty while none is known."""

    term: int
    commit_index: int
    applied_index: int
    code_version: int
    active_version: int
    members: tuple[MemberStatus, ...]
