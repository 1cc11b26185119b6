"""The measuring programs themselves: the load generator counts right, and the comparison runs from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.clusters import cluster_of, find_leader, program_under_test
from tests.support.etcd_wire import EtcdClient

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def test_load_generator_counts_what_the_server_saw() -> None:
    """Every put it reports raised the revision; it makes a few more before and after the measured time."""
    with cluster_of(1) as cluster, EtcdClient(cluster.endpoints[0]) as client:
        before = client.status().header.revision
        command = [sys.executable, "-m", "benchmarks.load", f"--endpoint={cluster.endpoints[0]}", "--method=put"]
        command += ["--clients=4", "--seconds=1", "--warm-up=0", "--key-space=100"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        written = client.status().header.revision - before
        assert result["errors"] == 0
        assert result["requests"] <= written <= result["requests"] + 8, (
            "at most the last one of each client is uncounted"
        )
        assert 0 < result["p50_us"] <= result["p99_us"]
        kvs = client.get(b"0000000000000000", range_end=b"1").kvs
        assert 0 < len(kvs) <= 100
        assert all(len(kv.key) == 16 and len(kv.value) == 256 for kv in kvs)


@pytest.mark.timeout(400)
def test_load_generator_reads_what_is_there() -> None:
    with cluster_of(1) as cluster:
        command = [sys.executable, "-m", "benchmarks.load", f"--endpoint={find_leader(cluster).endpoint}"]
        command += ["--method=range", "--clients=2", "--seconds=0.5", "--warm-up=0"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["requests"] > 10


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_comparison_runs_from_end_to_end() -> None:
    server = program_under_test().name
    command = [sys.executable, "-m", "benchmarks", "--quick", f"--servers={server}", "--kills=1", "--keys=5000"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=380, check=False)
    assert done.returncode == 0, done.stderr
    assert "| put | 64 |" in done.stdout
    assert f"| {server} | 1 |" in done.stdout


def test_comparison_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "benchmarks", "--parts=loads,walks"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 2
    assert "--parts knows loads, failover and big, not walks" in done.stderr
