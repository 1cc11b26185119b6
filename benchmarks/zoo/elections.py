"""Elections, votes, and what of them must be durable. (Raft 5.2, 5.4.1; diss. 4.2.3, 9.6)"""

# ruff: noqa: E501 - what is replaced is written as it stands

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Edit, Entry, Excluded

CORE: Final = "raft/core.py"

ENTRIES: Final = (
    Entry(
        id="BZ-01",
        name="a vote is granted before it is durable",
        source="sofa-jraft 9f6f5dc2 (#1241)",
        trigger="crash right after the grant; a second candidate of the same term",
        edits=(
            Edit(
                CORE,
                "        self._send_durable(sender, RequestVoteReply(term=self.current_term, granted=granted))",
                "        self._send(sender, RequestVoteReply(term=self.current_term, granted=granted))",
            ),
        ),
    ),
    Entry(
        id="BZ-02",
        name="a candidate asks before its own term and vote are durable",
        source="sofa-jraft 5222f3ff (#1245)",
        trigger="the candidate crashes after asking and votes for another in that term",
        edits=(
            Edit(
                CORE, "            self._send_durable(peer, request)\n\n", "            self._send(peer, request)\n\n"
            ),
        ),
    ),
    Entry(
        id="BZ-03",
        name="term and vote in two writes",
        source="hashicorp/raft #661; rabbitmq/ra 306b59c2",
        trigger="crash between the two",
        edits=(
            Edit(
                "storage/wal.py",
                "        self._put(HARD_STATE, 0, 0, group, hard.commit, hard.term, pack_vote(hard))\n",
                "        if hard.vote and hard.term > written.hard_state.term:\n"
                "            first = HardState(hard.term, 0, hard.commit)\n"
                "            self._put(HARD_STATE, 0, 0, group, first.commit, first.term, pack_vote(first))\n"
                "            self._commit()\n"
                "        self._put(HARD_STATE, 0, 0, group, hard.commit, hard.term, pack_vote(hard))\n",
            ),
        ),
    ),
    Entry(
        id="BZ-04",
        name="the vote is forgotten on entering PreVote",
        source="canonical/raft 98d8f51",
        trigger="a vote in this term, a timeout, another candidate of this term",
        edits=(
            Edit(
                CORE,
                "            precandidate = PreCandidate(votes={self.id: True})\n",
                "            precandidate = PreCandidate(votes={self.id: True})\n            self.voted_for = NOBODY\n",
            ),
        ),
    ),
    Entry(
        id="BZ-05",
        name="votes are counted, not voters",
        source="microsoft/coyote-samples #8",
        trigger="a duplicated answer",
        edits=(
            Edit(
                CORE,
                "        elif isinstance(role, Candidate) and not message.pre_vote:\n"
                "            role.votes[sender] = message.granted\n",
                "        elif isinstance(role, Candidate) and not message.pre_vote:\n"
                "            open_ = [v for v in self._voting_peers() if v not in role.votes]\n"
                "            role.votes[open_[0] if message.granted and open_ else sender] = message.granted\n",
            ),
        ),
    ),
    Entry(
        id="BZ-06",
        name="a joint election counts a majority of the union",
        source="microsoft/CCF #3948",
        trigger="an election while a change of members is joint",
        edits=(
            Edit(
                "raft/quorum.py",
                "    incoming = _tally_one(votes, configuration.voters)\n",
                "    return _tally_one(votes, configuration.voters | configuration.outgoing)\n"
                "    incoming = _tally_one(votes, configuration.voters)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-07",
        name="a candidate counts itself, and its log, before the disk has them",
        source="canonical/raft a54636b (PR #429)",
        trigger="an append in flight, a timeout, a win, a crash that loses the tail",
        edits=(
            Edit(
                CORE,
                "        self.role = Candidate(transfer=transfer)\n",
                "        self.role = Candidate(votes={self.id: True}, transfer=transfer)\n",
            ),
            Edit(
                CORE, "            self._send_durable(peer, request)\n\n", "            self._send(peer, request)\n\n"
            ),
        ),
    ),
    Entry(
        id="BZ-09",
        name="votes of members without a vote count",
        source="hashicorp/raft 38cb186 (#477)",
        trigger="learners in the group, and a candidate with a stale log",
        note="learners are asked, and what they answer is counted",
        edits=(
            Edit(
                CORE,
                "        return [node for node in configuration.ids if node != self.id and configuration.is_voter(node)]\n",
                "        return [node for node in configuration.ids if node != self.id]\n",
            ),
            Edit(
                "raft/quorum.py",
                "    granted = sum(1 for voter in voters if votes.get(voter) is True)\n",
                "    granted = sum(1 for vote in votes.values() if vote is True)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-13",
        name="a PreVote is answered with the answerer's term",
        source="canonical/raft da1ee05; etcd-io/raft 3c7359d",
        trigger="any election by PreVote",
        edits=(
            Edit(
                CORE,
                "            term = message.term if granted else self.current_term\n",
                "            term = self.current_term\n",
            ),
        ),
    ),
    Entry(
        id="BZ-15",
        name="a precandidate keeps protecting the dead leader",
        source="tikv/raft-rs 37ad3a1 (#84); etcd #8334",
        trigger="two followers time out within one election timeout of each other",
        note="its own campaign counts as word of the leader, as in the original",
        edits=(
            Edit(
                CORE,
                "        self.leader_id = (\n"
                "            NOBODY  # also before a PreVote: two members that lost one leader must not protect it "
                "(diss. 9.6)\n"
                "        )\n",
                "        if pre_vote:\n"
                "            self._last_contact = self._now\n"
                "        else:\n"
                "            self.leader_id = NOBODY\n",
            ),
        ),
    ),
    Entry(
        id="BZ-18",
        name="a candidacy that is merely seen is voted for",
        source="databendlabs/openraft 94c820c3, b06cbb37",
        trigger="a candidate whose log is behind",
        edits=(
            Edit(
                CORE,
                "        granted = free and theirs >= ours\n        if granted:\n",
                "        granted = free\n        if granted:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-21",
        name="a candidate ignores the leader of its own term",
        source="vesoft/nebula #1769; rabbitmq/ra 3b904736",
        trigger="a candidate that lost hears the winner",
        edits=(
            Edit(
                CORE,
                "        if not isinstance(self.role, Follower):  # a candidate of this very term has lost (Raft 5.2)\n"
                "            self._become_follower(self.current_term, sender)\n",
                "        if not isinstance(self.role, Follower):\n            return False\n",
            ),
        ),
    ),
    Entry(
        id="BZ-135",
        name="heartbeats are answered behind the disk",
        source="etcd #14501; hashicorp/raft docs/divergence.md",
        trigger="fsyncs that take longer than an election timeout",
        edits=(
            Edit(
                CORE,
                "        self._send_durable(sender, HeartbeatReply(term=self.current_term, round=message.round, "
                "sent=message.sent))\n",
                "        reply = HeartbeatReply(term=self.current_term, round=message.round, sent=message.sent)\n"
                "        self._send_durable(sender, reply, self.log.last_index)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-137",
        name="a leader without a majority goes on leading",
        source="Howard & Abraham 2020; Cloudflare 2020-11-02",
        trigger="only one member reaches all others, and it is not the leader",
        note="CheckQuorum does nothing, though it is configured",
        edits=(
            Edit(
                CORE,
                "            if heard_at + config.election_timeout_ns <= now:\n",
                "            heard_at = now\n            if heard_at + config.election_timeout_ns <= now:\n",
            ),
        ),
    ),
)

EXCLUDED: Final = (
    Excluded(
        "BZ-20",
        "the term changes outside the serialized loop",
        "nothing but `handle` touches the term, and an entry carries its term from the moment it is appended",
    ),
)
