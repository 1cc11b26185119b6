"""Members die and freeze under concurrent clients: nothing acknowledged is lost, and the history is linearizable.

`OARLOCK_KILL_SECONDS` (60) is the time for which members are killed, `OARLOCK_KILL_SEED` repeats a choice of victims
(not the interleaving: these are real processes).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import pytest
from tests.support.clusters import LocalCluster, MemberProcess, assert_all_equal, cluster_of, find_leader
from tests.support.workload import Workload, assert_nothing_lost, final_reads

from oarlock.check import Register, check_linearizable

SECONDS = float(os.environ.get("OARLOCK_KILL_SECONDS", "60"))
SEED = int(os.environ.get("OARLOCK_KILL_SEED", str(random.SystemRandom().randrange(1_000_000))))
CALLS_WHILE_DOWN = 60
"""So many calls must be answered by the other members before the victim comes back."""
CALLS_BETWEEN = 200


class Faults:
    """The faults, each of which leaves all members running when it returns. Never is more than one member down, but for
    `two_in_a_row`, whose second victim falls while the first may still be starting."""

    def __init__(self, cluster: LocalCluster, workload: Workload, rng: random.Random) -> None:
        self.cluster = cluster
        self.workload = workload
        self.rng = rng
        self.done: dict[str, int] = {}

    def one(self) -> None:
        fault = self.rng.choice([self.kill_any, self.kill_leader, self.two_in_a_row, self.freeze_leader])
        self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1
        fault()

    def kill_any(self) -> None:
        self._kill_and_return(self.rng.choice(self.cluster.members))

    def kill_leader(self) -> None:
        self._kill_and_return(find_leader(self.cluster))

    def two_in_a_row(self) -> None:
        """The second falls as soon as the first has been started again: that may not have caught up, or not be up."""
        first, second = self.rng.sample(self.cluster.members, 2)
        first.kill()
        first.start()
        if self.rng.random() < 0.5:
            first.wait_ready()
        second.kill()
        second.start()
        first.wait_ready()
        second.wait_ready()

    def freeze_leader(self) -> None:
        """A leader that stands still while another is elected wakes up believing it leads."""
        leader = find_leader(self.cluster)
        leader.signal(signal.SIGSTOP)
        try:
            self.workload.wait_progress(CALLS_WHILE_DOWN)
        finally:
            leader.signal(signal.SIGCONT)
        leader.wait_ready()

    def _kill_and_return(self, victim: MemberProcess) -> None:
        victim.kill()
        self.workload.wait_progress(CALLS_WHILE_DOWN)
        victim.start()
        victim.wait_ready()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_kill_9_under_load_loses_nothing_and_is_linearizable() -> None:
    print(f"OARLOCK_KILL_SEED={SEED}", file=sys.stderr)
    rng = random.Random(SEED)
    with cluster_of(3, steady=False) as cluster:
        with Workload(cluster.endpoints, seed=SEED) as workload:
            faults = Faults(cluster, workload, rng)
            workload.wait_progress(CALLS_BETWEEN)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                faults.one()
                workload.wait_progress(CALLS_BETWEEN)
        for member in cluster.members:
            final_reads(member.endpoint, workload.recorder)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)
    verdict = check_linearizable(Register(), workload.history())
    summary = f"{workload.acknowledgements} calls answered, faults {faults.done}, failures {workload.failures}"
    print(summary, verdict, sep="\n", file=sys.stderr)
    assert verdict.linearizable, f"{verdict}\n{summary}"
    assert len(workload.acknowledged) > 100


@pytest.mark.timeout(400)
def test_sigterm_under_load_loses_nothing() -> None:
    """Each member in turn is asked to stop, the leader too, while clients write; it leaves with 0 and comes back."""
    with cluster_of(3, steady=False) as cluster:
        with Workload(cluster.endpoints, clients=4) as workload:
            for member in [find_leader(cluster), *cluster.members]:
                workload.wait_progress(CALLS_BETWEEN)
                code = member.terminate()
                # A real etcd ends by the signal once it has shut down; ours says that all went well.
                assert code in (0, -signal.SIGTERM), f"{member.name} ended with {code}\n{member.log_tail()}"
                workload.wait_progress(CALLS_WHILE_DOWN)
                member.start()
                member.wait_ready()
        for member in cluster.members:
            final_reads(member.endpoint, workload.recorder)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)
    verdict = check_linearizable(Register(), workload.history())
    assert verdict.linearizable, str(verdict)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL"])
def test_restart_of_all_members_keeps_everything(way: str) -> None:
    """All members end at once under load, and start again: what was acknowledged is there."""
    with cluster_of(3, steady=False) as cluster:
        with Workload(cluster.endpoints, clients=4) as workload:
            workload.wait_progress(2 * CALLS_BETWEEN)
            for member in cluster.members:
                member.signal(signal.Signals[way])
            for member in cluster.members:
                member.wait_exit()
            cluster.start()
            workload.wait_progress(CALLS_BETWEEN)
        final_reads(cluster.endpoints[0], workload.recorder)
        rows = assert_all_equal(cluster)
    assert_nothing_lost(rows, workload)
    verdict = check_linearizable(Register(), workload.history())
    assert verdict.linearizable, str(verdict)
