"""tooz and its etcd3gw driver, the published packages, against three members of ours and against a real etcd."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.clusters import find_leader, wait_until
from tests.support.environments import ROOT, environment
from tests.support.programs import Program

from oarlock.cli.local_cluster import LocalCluster, ProgramMissing, etcd_program, oarlock_program

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 90.0


@pytest.fixture(scope="module", params=["oarlock", "etcd"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    try:
        program = oarlock_program() if request.param == "oarlock" else etcd_program()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    with LocalCluster(program, 3) as made:
        made.start()
        yield made


def test_what_tooz_promises_holds(cluster: LocalCluster) -> None:
    contract = ROOT / "tests" / "support" / "tooz_contract.py"
    command = [str(environment("tooz") / "python"), str(contract), cluster.endpoints[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("holds") == 3


def test_a_killed_worker_is_missed_and_its_lead_passes_on(cluster: LocalCluster, tmp_path: Path) -> None:
    """examples/tooz_workers.py, with a worker killed, and then the leading member of the servers."""
    python = str(environment("tooz") / "python")
    example = ROOT / "examples" / "tooz_workers.py"
    leader = find_leader(cluster)
    endpoint = next(member.endpoint for member in cluster.members if member is not leader)
    workers = [Program([python, str(example), name, endpoint], name, tmp_path) for name in ("w1", "w2", "w3")]
    try:
        for number, each in enumerate(workers):
            each.start()
            wait_until(lambda: each.said("joined"), PATIENCE_S, f"{each.name} joins")  # noqa: B023
            for other in workers[:number]:
                wait_until(lambda: other.said(f"sees {each.name} join"), PATIENCE_S, "others see it")  # noqa: B023
        wait_until(lambda: any(each.said("leads") for each in workers), PATIENCE_S, "a worker leads")
        [first] = [each for each in workers if each.said("leads")]
        others = [each for each in workers if each is not first]
        first.kill()
        for each in others:
            wait_until(lambda: each.said(f"sees {first.name} leave"), PATIENCE_S, f"{each.name} misses it")  # noqa: B023
        wait_until(lambda: any(each.said("leads") for each in others), PATIENCE_S, "another leads")
        assert sum(each.said("leads") for each in others) == 1

        seen = {each.name: len(each.lines) for each in others}
        leader.kill()
        find_leader(cluster)  # a worker that begins while nobody leads would end with an error of its driver
        first.start()
        for each in others:
            since = seen[each.name]
            wait_until(lambda: each.said(f"sees {first.name} join", since=since), PATIENCE_S, "it is back")  # noqa: B023
        leader.start()
        leader.wait_ready()
        for each in others:
            assert not any(each.said(f"sees {other.name} leave") for other in others), "nobody else was missed"
    except BaseException:
        for each in workers:
            print(f"{each.name}: {each.lines[-15:]}", file=sys.stderr)
        raise
    finally:
        for each in workers:
            each.kill()
