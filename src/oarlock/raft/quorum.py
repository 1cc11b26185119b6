"""Arithmetic of majorities, simple and joint. Pure functions over a configuration. (Raft 5.2, 5.3; diss. 4.3)"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from oarlock.raft.types import Configuration, NodeId


class VoteResult(Enum):
    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def agreed(values: Mapping[NodeId, int], configuration: Configuration) -> int:
    """The largest v such that a majority of every active voter set has a value of at least v.

    A voter missing from `values` counts as 0; whoever does not vote does not count. Over match indexes this is the
    index replicated on a quorum (Raft 5.3); over times or round numbers it is the moment a quorum has confirmed. With
    no voters at all it is 0: nothing can be agreed on.

    >>> agreed({1: 7, 2: 5, 3: 2}, Configuration.of_voters(1, 2, 3))
    5
    >>> agreed({1: 7, 2: 5}, Configuration.of_voters(1, 2))
    5
    """
    result = _majority_value(values, configuration.voters)
    if configuration.outgoing:
        result = min(result, _majority_value(values, configuration.outgoing))
    return result


def _majority_value(values: Mapping[NodeId, int], voters: frozenset[NodeId]) -> int:
    if not voters:
        return 0
    ascending = sorted(values.get(voter, 0) for voter in voters)
    return ascending[(len(ascending) - 1) // 2]  # a majority holds this value or more, for odd and even sizes alike


def tally(votes: Mapping[NodeId, bool], configuration: Configuration) -> VoteResult:
    """Whether these votes win an election, lose it, or leave it open. Votes of others than voters do not count.

    >>> tally({1: True, 2: True}, Configuration.of_voters(1, 2, 3)).value
    'won'
    """
    incoming = _tally_one(votes, configuration.voters)
    if not configuration.outgoing:
        return incoming
    outgoing = _tally_one(votes, configuration.outgoing)
    if incoming is VoteResult.LOST or outgoing is VoteResult.LOST:
        return VoteResult.LOST
    if incoming is VoteResult.WON and outgoing is VoteResult.WON:
        return VoteResult.WON
    return VoteResult.PENDING


def _tally_one(votes: Mapping[NodeId, bool], voters: frozenset[NodeId]) -> VoteResult:
    needed = len(voters) // 2 + 1
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if voters and granted >= needed:
        return VoteResult.WON
    if len(voters) - refused < needed:
        return VoteResult.LOST
    return VoteResult.PENDING
