"""Many seeds at once: the same outcomes in one process, in several, and on a dask cluster; and an end that is clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import oarlock.cli.campaign as module
from oarlock.cli.app import main
from oarlock.cli.campaign import campaign, dask_campaign
from oarlock.errors import ConfigurationError
from oarlock.sim.world import Outcome, run_seed

EVENTS = 120
SEEDS = range(300, 318)
OFF = frozenset({"rot"})


def digests(outcomes: Iterator[Outcome]) -> dict[int, str]:
    found = {outcome.seed: outcome.digest for outcome in outcomes}
    return dict(sorted(found.items()))


@pytest.fixture(scope="module")
def plain() -> dict[int, str]:
    found = digests(campaign(SEEDS, EVENTS, OFF, 1))
    assert list(found) == list(SEEDS)
    assert len(set(found.values())) == len(SEEDS)
    return found


def test_processes_give_the_same(plain: dict[int, str]) -> None:
    assert digests(campaign(SEEDS, EVENTS, OFF, 2)) == plain


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="the extra oarlock[dask] is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, processes=True
    ) as cluster:
        cluster.wait_for_workers(2)
        yield cluster.scheduler_address


@pytest.mark.slow
class TestDask:
    def test_a_cluster_gives_the_same(self, scheduler: str, plain: dict[int, str]) -> None:
        assert digests(dask_campaign(SEEDS, EVENTS, OFF, scheduler)) == plain

    def test_the_command_prints_one_digest_for_all(self, scheduler: str, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = ["sim", "--seeds", "8", "--start", "300", "--events", str(EVENTS), "--digest"]
        said = []
        for more in (["--jobs", "1"], ["--jobs", "2"], ["--dask", scheduler]):
            with pytest.raises(SystemExit) as ended:
                main([*arguments, *more])
            assert ended.value.code == 0
            said.append(capfd.readouterr().out.splitlines()[-1])
        assert len(said[0]) == 32
        assert said[0] == said[1] == said[2]

    def test_a_worker_of_another_version_is_refused(self, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "__version__", "9.9.9")
        with pytest.raises(ConfigurationError, match=r"a worker runs oarlock .*, this is 9\.9\.9"):
            list(dask_campaign(range(2), 20, OFF, scheduler))


@pytest.mark.slow
def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra oarlock[dask] is not installed")
    monkeypatch.setattr(module, "DASK_CONNECT_SECONDS", 1)
    with pytest.raises(ConfigurationError, match="there is no scheduler"):
        list(dask_campaign(range(2), 20, OFF, "tcp://127.0.0.1:9"))


def test_the_lowest_failing_seed_is_among_the_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(seed: int, **_: Any) -> Outcome:
        if seed == 11:
            time.sleep(0.3)  # it fails later than the higher one
        return Outcome(seed, invariant="ES" if seed in (11, 21) else "", digest=str(seed))

    monkeypatch.setattr(module, "run_seed", fails)
    outcomes = list(campaign(range(4000), EVENTS, OFF, 2))
    assert min(outcome.seed for outcome in outcomes if outcome.failed) == 11
    assert len(outcomes) < 100
    assert run_seed is not fails


def wait_until_at_work(pid: int, count: int) -> None:
    """Until so many children of a process have used more processor time than starting takes, however busy we are."""
    deadline = time.monotonic() + 250
    tick = os.sysconf("SC_CLK_TCK")
    while time.monotonic() < deadline:
        busy = 0
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                used = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
            except OSError:
                continue  # it has ended meanwhile
            busy += sum(map(int, used)) > 2 * tick
        if busy >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"the children of {pid} did not begin to work")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children are looked up in /proc")
def test_ctrl_c_ends_with_a_summary(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "oarlock", "sim", "--seeds", "100000", "--events", "100", "--jobs", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        wait_until_at_work(process.pid, 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        out, err = process.communicate(timeout=250)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, err
    assert "interrupted after" in err
    assert "Traceback" not in err
    assert json.loads(out)["seeds"] >= 0
