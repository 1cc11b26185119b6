"""Quorum arithmetic against brute force: every simple and joint configuration of up to seven voters.

Members are told apart only by the sets they vote in, so a configuration is fully described by how many vote in the
incoming set only, in both, and in the outgoing set only; all such triples with at most seven voters are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import pytest

from oarlock.raft.quorum import VoteResult, agreed, tally
from oarlock.raft.types import Configuration, MemberInfo

VOTERS_MAX = 7
VALUES = (0, 1, 2, 3)  # enough to tell apart; larger groups use fewer, so that all assignments stay feasible


def configurations() -> Iterator[Configuration]:
    for size in range(1, VOTERS_MAX + 1):
        yield Configuration.of_voters(*range(1, size + 1))
    for only_new, both, only_old in product(range(VOTERS_MAX + 1), repeat=3):
        if only_new + both < 1 or both + only_old < 1 or only_new + both + only_old > VOTERS_MAX:
            continue
        ids = range(1, only_new + both + only_old + 1)
        voters = frozenset(ids[: only_new + both])
        outgoing = frozenset(ids[only_new:])
        yield Configuration(members=tuple(MemberInfo(id=i) for i in ids), voters=voters, outgoing=outgoing)


ALL = list(configurations())


def is_quorum(group: frozenset[int], configuration: Configuration) -> bool:
    """A majority of each active set, by counting heads."""
    sets = [configuration.voters] + ([configuration.outgoing] if configuration.outgoing else [])
    return all(sum(1 for v in voters if v in group) > len(voters) / 2 for voters in sets)


def everybody(configuration: Configuration) -> list[int]:
    return sorted(configuration.voters | configuration.outgoing)


def name(configuration: Configuration) -> str:
    return f"{len(configuration.voters)}+{len(configuration.outgoing)}of{len(everybody(configuration))}"


@pytest.mark.parametrize("configuration", ALL, ids=name)
def test_agreed_is_the_largest_value_that_a_quorum_reached(configuration: Configuration) -> None:
    ids = everybody(configuration)
    values = VALUES if len(ids) <= 4 else VALUES[:3] if len(ids) <= 5 else VALUES[:2]
    quorums = [
        frozenset(group)
        for size in range(1, len(ids) + 1)
        for group in combinations(ids, size)
        if is_quorum(frozenset(group), configuration)
    ]
    for assignment in product(values, repeat=len(ids)):
        match = dict(zip(ids, assignment, strict=True))
        expected = max((min(match[i] for i in group) for group in quorums), default=0)
        assert agreed(match, configuration) == expected, (match, configuration)


@pytest.mark.parametrize("configuration", ALL, ids=name)
def test_tally_says_what_every_completion_of_the_votes_says(configuration: Configuration) -> None:
    """WON if the votes given suffice, LOST if no completion could win, PENDING between."""
    ids = everybody(configuration)
    for votes in product((None, True, False), repeat=len(ids)):
        given = {i: v for i, v in zip(ids, votes, strict=True) if v is not None}
        yes = frozenset(i for i, v in given.items() if v)
        at_best = yes | frozenset(i for i in ids if i not in given)
        if is_quorum(yes, configuration):
            expected = VoteResult.WON
        elif not is_quorum(at_best, configuration):
            expected = VoteResult.LOST
        else:
            expected = VoteResult.PENDING
        assert tally(given, configuration) is expected, (given, configuration)


def test_strangers_and_learners_do_not_count() -> None:
    configuration = Configuration.of_voters(1, 2, 3)
    assert agreed({1: 5, 9: 9, 8: 9}, configuration) == 0
    assert tally({1: True, 8: True, 9: True}, configuration) is VoteResult.PENDING
    assert tally({1: True, 8: False, 9: False}, configuration) is VoteResult.PENDING


def test_nobody_votes_in_an_empty_configuration() -> None:
    assert agreed({1: 5}, Configuration()) == 0
    assert tally({1: True}, Configuration()) is not VoteResult.WON


def test_a_majority_of_the_union_is_not_enough() -> None:
    """Reliability BZ-06: three of five in the union, and none of the outgoing majority."""
    joint = Configuration(
        members=tuple(MemberInfo(id=i) for i in range(1, 6)), voters=frozenset({1, 4, 5}), outgoing=frozenset({1, 2, 3})
    )
    assert tally({1: True, 4: True, 5: True}, joint) is VoteResult.PENDING
    assert agreed({1: 7, 4: 7, 5: 7}, joint) == 0
