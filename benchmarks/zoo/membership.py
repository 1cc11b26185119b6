"""Reads and leases, membership, leadership transfer. (diss. 3.10, 4, 6.4)"""

# ruff: noqa: E501 - what is replaced is written as it stands

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Edit, Entry, Excluded

CORE: Final = "raft/core.py"

ENTRIES: Final = (
    Entry(
        id="BZ-56",
        name="reads before the term's first commit",
        source="etcd #7331, #12680; tikv #6340",
        trigger="a new leader that knows an old commit index",
        edits=(
            Edit(
                CORE,
                "        if role.reads_round or not self._committed_in_term():\n",
                "        if role.reads_round:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-57",
        name="a retried read keeps its request number",
        source="etcd #20418 (Antithesis)",
        trigger="a pause, late heartbeats, a retry",
        edits=(
            Edit(
                "raft/reads.py",
                "        self._request += 1\n        self.asked_request = self._request\n",
                "        if not self._unanswered:\n"
                "            self._request += 1\n"
                "        self.asked_request = self._request\n",
            ),
        ),
    ),
    Entry(
        id="BZ-59",
        name="a lease is counted from the answer's arrival",
        source="tikv/raft-rs 40157d8 (#141)",
        trigger="slow answers, a leader cut off",
        edits=(
            Edit(
                CORE,
                "        progress.lease_sent = max(progress.lease_sent, message.sent)\n",
                "        progress.lease_sent = self._now\n",
            ),
        ),
    ),
    Entry(
        id="BZ-62",
        name="a lease outlives the handover that ends it",
        source="tikv #8034",
        trigger="the successor is elected before the old leader hears of it",
        edits=(
            Edit(CORE, "        role.lease_void = True\n", ""),
            Edit(
                CORE,
                "            role.transfer is None\n            and not self.configuration.joint\n",
                "            not self.configuration.joint\n",
            ),
        ),
    ),
    Entry(
        id="BZ-63",
        name="a read is answered when its index is committed, not applied",
        source="etcd's applyWait; RedisRaft #18",
        trigger="applying lags",
        edits=(
            Edit(
                "node/replica/pending.py",
                "        if index <= applied:\n            return True\n",
                "        return True\n",
            ),
        ),
    ),
    Entry(
        id="BZ-64",
        name="a restarted member answers reads from what it has replayed",
        source="RedisRaft #18, #30; openraft 97d92771",
        trigger="a restart, and a read before a leader is heard",
        edits=(
            Edit(
                "node/replica/member.py",
                "                else:\n                    self._reads.ask(token, self._now + self._timeout_ns)\n",
                "                elif self.raft.leader_id == NOBODY and self.raft.commit_index:\n"
                "                    self._out.append(ReadsReady([token]))\n"
                "                else:\n"
                "                    self._reads.ask(token, self._now + self._timeout_ns)\n",
            ),
        ),
    ),
    # ---------------------------------------------------------------- membership
    Entry(
        id="BZ-65",
        name="a new leader changes members before it has committed anything",
        source="raft-dev 2015 (Ongaro); hydro #3192",
        trigger="two leaders and a change each",
        edits=(
            Edit(
                CORE,
                '        if not self._committed_in_term():\n            return "not_ready"',
                '        if False:\n            return "not_ready"',
            ),
        ),
    ),
    Entry(
        id="BZ-68",
        name="a configuration is in force only when it is applied",
        source="etcd #11284",
        trigger="members whose applying lags, and an election",
        edits=(
            Edit(
                CORE,
                "        return self._configurations.current\n",
                "        applied = max(self.log.last_applied, self._configurations.first_index)\n"
                "        return self._configurations.at(applied)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-69",
        name="a restart takes configurations only up to what is applied",
        source="rabbitmq/ra 110b8d63; NuRaft 306fe0f",
        trigger="a crash with a configuration in the tail of the log",
        edits=(
            Edit(
                CORE,
                "            if entry.kind == EntryKind.CONFIG and entry.index > snapshot.index:\n"
                "                self._configurations.append",
                "            if entry.kind == EntryKind.CONFIG and snapshot.index < entry.index <= applied:\n"
                "                self._configurations.append",
            ),
        ),
    ),
    Entry(
        id="BZ-70",
        name="a configuration that is cut from the log stays in force",
        source="RedisRaft 619e623; rabbitmq/ra bb04b866",
        trigger="a leader cut off with an uncommitted change",
        edits=(
            Edit(
                CORE,
                "        if self._configurations.truncate_from(index):\n            self._configuration_in_force()\n",
                "",
            ),
        ),
    ),
    Entry(
        id="BZ-71",
        name="a snapshot carries today's configuration",
        source="etcd-io/raft e515a67; openraft #1808; NuRaft #566",
        trigger="a snapshot below a change of members",
        edits=(
            Edit(
                CORE,
                "configuration=self.configuration_at(index))\n\n    @property\n    def transferring",
                "configuration=self.configuration)\n\n    @property\n    def transferring",
            ),
        ),
    ),
    Entry(
        id="BZ-72",
        name="a joint configuration is left before it is committed",
        source="etcd-io/raft bd3c759, 477ebd8 (#12137)",
        trigger="any joint change",
        edits=(
            Edit(
                CORE,
                "        if self.configuration_index > self.log.commit_index or not self._committed_in_term():\n"
                "            return\n"
                "        if configuration.joint:\n",
                "        if configuration.joint:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-74",
        name="a leader that removed itself goes on",
        source="etcd-io/raft 72d62a1",
        trigger="the leader is removed",
        edits=(
            Edit(
                CORE,
                "            role = self.role\n            if isinstance(role, Leader):\n                # The leader manages",
                "            role = self.role\n"
                "            if isinstance(role, Leader):\n"
                "                self._answer_config_waits(role)\n"
                "                return\n"
                "                # The leader manages",
            ),
        ),
    ),
    Entry(
        id="BZ-75",
        name="a removed member disturbs the group",
        source="logcabin 4f74c25 (#56); hashicorp/raft 99125f5",
        trigger="a member that never heard of its removal",
        note="removed members are heard, and leaders are not protected from candidates",
        edits=(
            Edit(
                CORE, "            sender in committed.removed\n", "            False and sender in committed.removed\n"
            ),
            Edit(
                CORE,
                "        if message.transfer:\n            return False  # the leader itself asked for the election\n",
                "        if not self.config.lease_reads:\n            return False\n"
                "        if message.transfer:\n            return False  # the leader itself asked for the election\n",
            ),
        ),
    ),
    Entry(
        id="BZ-76",
        name="a learner is promoted before it has caught up",
        source="etcd #15096, #21736; openraft #1805",
        trigger="a promotion right after the addition",
        edits=(
            Edit(
                CORE,
                '            if not self._caught_up(role, node):\n                return "not_caught_up"\n',
                '            if False:\n                return "not_caught_up"\n',
            ),
        ),
    ),
    Entry(
        id="BZ-77",
        name="a new member takes an old configuration for its removal",
        source="NuRaft 1ecb58a; RedisRaft bec180f",
        trigger="a member joins a group whose log holds earlier changes",
        edits=(
            Edit(
                CORE,
                "        if self.id in committed.removed and not self._removed_reported:\n",
                "        if committed.members and committed.member(self.id) is None and not self._removed_reported:\n",
            ),
        ),
    ),
    # ---------------------------------------------------------------- leadership transfer
    Entry(
        id="BZ-94",
        name="writes are taken while leadership is handed over",
        source="hashicorp/raft 62eaa1c (#581); rabbitmq/ra ed8b7c5c",
        trigger="a handover under load",
        edits=(
            Edit(
                CORE,
                '        elif role.transfer is not None:\n            self._effects.append(ProposalRefused(token, "transferring", self.id))\n',
                "",
            ),
            Edit(
                CORE,
                "        return isinstance(self.role, Leader) and self.role.transfer is not None\n",
                "        return False\n",
            ),
        ),
    ),
    Entry(
        id="BZ-95",
        name="a handover that failed is never given up",
        source="hashicorp/raft f2fdbd6 (#493); NuRaft #659",
        trigger="a handover to a member that cannot be reached",
        edits=(
            Edit(
                CORE,
                "            role.transfer = None\n            if self._transfer_watch is not None and",
                "            role.transfer.deadline = NEVER\n            if self._transfer_watch is not None and",
            ),
        ),
    ),
    Entry(
        id="BZ-96",
        name="the chosen successor begins with PreVote",
        source="dragonboat 175f332; canonical/raft ac53ca3",
        trigger="a handover while everybody hears the leader",
        edits=(
            Edit(
                CORE,
                "            self._campaign(pre_vote=False, transfer=True)\n",
                "            self._campaign(pre_vote=self.config.pre_vote)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-97",
        name="leave to disturb a leader survives the election it was given for",
        source="hashicorp/raft 49bd61b (#570)",
        trigger="a successor that lost, and times out later",
        edits=(
            Edit(
                CORE,
                "            self._campaign(pre_vote=False, transfer=True)\n",
                "            self._forced = True\n            self._campaign(pre_vote=False, transfer=True)\n",
            ),
            Edit(
                CORE,
                "pre_vote=pre_vote, transfer=transfer\n        )\n\n    def _voting_peers",
                "pre_vote=pre_vote, transfer=self._forced\n        )\n\n    def _voting_peers",
            ),
            Edit(
                CORE,
                "        self.ignored_messages = 0\n",
                "        self.ignored_messages = 0\n        self._forced = False\n",
            ),
        ),
    ),
)

EXCLUDED: Final = (
    Excluded(
        "BZ-61",
        "reads under way survive a change of term",
        "the reads of a round belong to the role `Leader`, which ends with the term; kept on purpose they harm nobody, "
        "as a member wins again only with all that was committed meanwhile, and applies it in the turn it hears of it",
    ),
    Excluded(
        "BZ-138",
        "a lease is taken for mutual exclusion",
        "a mistake of whoever uses a lock without the fencing revision that it gives; nothing in the source could be "
        "changed to make it",
    ),
    Excluded(
        "BZ-133",
        "two stores differ on who is a member",
        "the log is the only source: a configuration is an entry, and a snapshot carries that of its index",
    ),
)
