"""Running etcdctl and oarlockctl alike, and making what they print comparable."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OARLOCKCTL = [sys.executable, "-c", "import oarlock.ctl; oarlock.ctl.main()"]
SECONDS = 120

_NUMBERS = "cluster_id|member_id|ID|id|lease|leader|revision|raft_term|create_revision|mod_revision|raftIndex|raftTerm"
_MORE = "raftAppliedIndex|dbSize|dbSizeInUse|authRevision|compact_revision|hash"
_FIELDS = "ClusterID|MemberID|ID|Leader|Revision|RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|Lease|PrevLease"
_KEYS = "CreateRevision|ModRevision|PrevCreateRevision|PrevModRevision|Hash"


@dataclass(frozen=True)
class Printed:
    """How a command line ended: its exit code, stdout, and the errors on stderr, made comparable."""

    code: int
    out: str
    errors: tuple[str, ...]


def environment() -> dict[str, str]:
    """Without settings of the machine's own; etcdctl 3.4 is told to speak version 3."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("ETCDCTL_", "OARLOCKCTL_"))}
    source = str(Path(__file__).parents[2] / "src")
    return {**kept, "ETCDCTL_API": "3", "PYTHONPATH": os.pathsep.join(filter(None, [source, kept.get("PYTHONPATH")]))}


def words(line: str, endpoint: str) -> list[str]:
    """A command line as words. `{E}` in it stands for the endpoint, which is given if the line gives none."""
    given = [] if "--endpoints" in line else [f"--endpoints={endpoint}"]
    if "timeout" not in line and "127.0.0.1:1" not in line:
        given.append(f"--command-timeout={SECONDS}s")
    return [*given, *shlex.split(line.replace("{E}", endpoint))]


def printed(code: int, out: bytes, err: bytes, addresses: dict[str, str]) -> Printed:
    told = err.decode("utf-8", "replace").splitlines()
    errors = [
        line for line in told if re.match(r"Error: |watch was canceled|Failed to |.* is unhealthy:|command ", line)
    ]
    shown = comparable(out.decode("utf-8", "backslashreplace"), addresses)
    return Printed(code, shown, tuple(dict.fromkeys(comparable(line, addresses) for line in errors)))


class Forks:
    """Command lines of oarlockctl, one after the other, in forks of one process. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._files = {name: directory / name for name in ("in", "out", "err")}
        program = [sys.executable, str(Path(__file__).with_name("ctl_forks.py"))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=environment())

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, arguments: list[str], stdin: bytes, **more: str) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr."""
        for name, content in (("in", stdin), ("out", b""), ("err", b"")):
            self._files[name].write_bytes(content)
        job = {name: str(path) for name, path in self._files.items()} | {"words": arguments, "environment": more}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, self._files["out"].read_bytes(), self._files["err"].read_bytes()


def comparable(text: str, addresses: dict[str, str]) -> str:
    """Without what differs between two clusters alike: addresses, ids, revisions, durations, the program's name."""
    for address, name in addresses.items():
        text = text.replace(address, name)
    text = re.sub(rf'("(?:{_NUMBERS}|{_MORE})"):"?[0-9a-f]+"?', r"\1:N", text)
    text = re.sub(rf'("(?:{_FIELDS}|{_KEYS})" : )\d+', r"\1N", text)
    text = re.sub(r" *\b[0-9a-f]{10,16}\b", " X", text)
    text = re.sub(r'(took = |"took":"|"Took" : )[^",\s]+', r"\1T", text)
    text = re.sub(r"AuthRevision: \d+|progress notify: \d+", "N", text)
    return re.sub(r'"(etcdctl|oarlockctl)"', '"PROGRAM"', text)
