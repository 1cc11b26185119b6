"""`oarlockctl` beside etcdctl 3.5: the same command lines against the same cluster print the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.test_etcdctl_cluster import cluster, etcdctl_path

from oarlock.cli.local_cluster import LocalCluster
from oarlock.ctl.app import ctl

__all__ = ["cluster"]  # fixture
LINES = [
    "-w json put a 1", "--hex get a", "--command-timeout 9s get a", "compaction", "compaction 999999",
    "put a 2 --prev-kv", "put ab 3 -w json", "get a", "get a --prefix", "get a --prefix -w json",
    "get missing", "get missing -w json", "get a --hex", "get a --print-value-only", "get a --prefix --keys-only",
    "get a --prefix --order DESCEND --limit 1", "get a --from-key --sort-by MODIFY --order ASCEND", "get a b",
    "get a --consistency s", "get a --rev 999999", "put x", "put x --ignore-value", "put a --ignore-value --prev-kv",
    "get", "put", "del", "get a b c", "get a b --prefix", "get a --prefix --from-key", "put a 1 --lease zz",
    "put a 1 --lease 99", "del missing", "del a --prev-kv", "del a --prefix -w json", "get a --prefix", "del x",
    "del a b c",
]  # fmt: skip

# Here etcdctl prints its usage on stdout, or its word for the error differs: the exit codes are the same.
REFUSED = [
    "get a --nonsense", "get a --command-timeout 3x", "get a --limit many", "get a --order UP", "get a --sort-by SIZE",
    "get a --consistency x", "get a --limit", "compaction x",
]  # fmt: skip


def run(program: list[str], line: str, endpoint: str) -> tuple[str, int]:
    """What a command line prints, ids and revisions left out, and its exit code."""
    done = subprocess.run(
        [*program, *line.split(), f"--endpoints={endpoint}"], input=b"typed\n", capture_output=True, timeout=120,
        env={**os.environ, "ETCDCTL_API": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or b"Error: " in done.stderr, (line, done.stderr)
    return re.sub(r'("\w*(?:_id|revision|raft_term)"):\d+', r"\1:N", done.stdout.decode()), done.returncode


@pytest.mark.system
def test_the_same_lines_print_the_same(cluster: LocalCluster) -> None:
    theirs = [run([etcdctl_path("3.5")], line, cluster.endpoints[0]) for line in LINES]
    ours = [run([sys.executable, "-c", "import oarlock.ctl as c; c.main()"], x, cluster.endpoints[0]) for x in LINES]
    assert dict(zip(LINES, ours, strict=True)) == dict(zip(LINES, theirs, strict=True))

    for line in REFUSED:
        mine = run([sys.executable, "-c", "import oarlock.ctl as c; c.main()"], line, cluster.endpoints[0])
        assert (line, mine[1]) == (line, run([etcdctl_path("3.5")], line, cluster.endpoints[0])[1])
    assert run([etcdctl_path("3.5")], "compaction 3", cluster.endpoints[0]) == ("compacted revision 3\n", 0)
    mine = run([sys.executable, "-c", "import oarlock.ctl as c; c.main()"], "compaction 4", cluster.endpoints[0])
    assert mine == ("compacted revision 4\n", 0)


def test_a_get_loads_no_event_loop() -> None:
    code = "import oarlock.ctl.app, oarlock.ctl.channel, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "rich", "ssl", "uvloop"} & set(loaded)


def test_every_verb_and_flag_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/oarlockctl.md").read_text()
    words = set(re.findall(r"[\w-]+", page))
    for name, verb in ctl.commands.items():
        assert name in words
        assert {option for p in verb.params for option in p.opts if option.startswith("-")} <= words
