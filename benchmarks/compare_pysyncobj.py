"""Our library beside PySyncObj, three member processes each, in one run on one machine, measured in turns.

    python -m benchmarks.compare_pysyncobj            about six minutes
    python -m benchmarks.compare_pysyncobj --quick    about two

Ours syncs every command to disk before it is acknowledged; PySyncObj never does, and by default keeps nothing on disk.
It is given the better of two configurations in every row: a tick of 0.5 ms with and without batching of messages. The
load is made inside the member, which is how such a library is used. Both clusters are started anew for every kind of
load; who begins changes from round to round. A figure is the median over the rounds.

Writes `bench-out/compare-pysyncobj.json`, prints tables, and with `--write-docs` puts them into the documentation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from oarlock.cli.local_cluster import free_ports

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "benchmarks.md"
BEGIN, END = "<!-- compare_pysyncobj: begin -->", "<!-- compare_pysyncobj: end -->"
NAMES: Final = ("n1", "n2", "n3")

ENGINES: Final[dict[str, list[str]]] = {
    "oarlock": ["oarlock", "--uvloop"],
    "oarlock asyncio": ["oarlock"],
    "pysyncobj": ["pysyncobj", "--tick", "0.0005"],
    "pysyncobj no batch": ["pysyncobj", "--tick", "0.0005", "--no-batch"],
}
THREAD_ENGINES: Final[dict[str, list[str]]] = {
    "oarlock": ["oarlock-threads"],
    "pysyncobj": ["pysyncobj", "--tick", "0.0005"],
    "pysyncobj no batch": ["pysyncobj", "--tick", "0.0005", "--no-batch"],
}


class Member:
    def __init__(self, engine: list[str], name: str, peers: str, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = name
        self.command = [
            sys.executable, "-m", "benchmarks.embedded_worker", *engine, "--name", name, "--peers", peers,
            "--data-dir", str(directory),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"member {self.name} has ended: {' '.join(self.command)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.send(do, **arguments)
        return self.answer()

    def send(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError, OSError):
            self.send("stop")
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def cluster(engine: list[str]) -> Iterator[list[Member]]:
    directory = Path(tempfile.mkdtemp(prefix="oarlock-bench-", dir=ROOT / "bench-out"))
    peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(NAMES, free_ports(3), strict=True))
    members: list[Member] = []
    try:
        members.extend(Member(engine, name, peers, directory / name) for name in NAMES)
        leader_of(members)
        yield members
    finally:
        for member in members:
            member.stop()
        shutil.rmtree(directory, ignore_errors=True)


def leader_of(members: list[Member], timeout_s: float = 30) -> Member:
    """The member that leads and that the others know of."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for member in members:
            if member.process.poll() is None and member.ask("status")["leader"]:
                return member
        time.sleep(0.02)
    raise RuntimeError("no leader")


def measure_load(engine: list[str], kind: str, outstanding: int, seconds: float, on: str) -> dict[str, Any]:
    with cluster(engine) as members:
        leader = leader_of(members)
        target = leader if on == "leader" else next(member for member in members if member is not leader)
        target.ask(kind, outstanding=outstanding, seconds=min(1.0, seconds / 3))  # warm
        before = [member.ask("status")["cpu_s"] for member in members]
        result = target.ask(kind, outstanding=outstanding, seconds=seconds)
        after = [member.ask("status")["cpu_s"] for member in members]
        cpu = sum(after) - sum(before)
        result["cpu_us"] = cpu / max(1, result["count"]) * 1e6
        return result


def measure_failover(engine: list[str]) -> float:
    """Seconds from SIGKILL of the leader to the first command acknowledged at another member."""
    with cluster(engine) as members:
        leader = leader_of(members)
        other = next(member for member in members if member is not leader)
        other.ask("load", outstanding=4, seconds=0.5)
        os.kill(leader.process.pid, signal.SIGKILL)
        began = time.monotonic()
        leader.process.wait()
        rest = [member for member in members if member is not leader]
        while time.monotonic() - began < 60:
            if other.ask("load", outstanding=1, seconds=0.001)["count"]:
                took = time.monotonic() - began
                if not any(member.ask("status")["leader"] for member in rest):
                    continue  # acknowledged by a leader that was not there: not an answer that counts
                return took
        return float("nan")


def measure_idle(engine: list[str], seconds: float) -> dict[str, float]:
    with cluster(engine) as members:
        time.sleep(1)
        before = [member.ask("status")["cpu_s"] for member in members]
        time.sleep(seconds)
        after = [member.ask("status") for member in members]
        return {
            "cpu_percent": 100 * (sum(each["cpu_s"] for each in after) - sum(before)) / seconds / len(members),
            "private_mb": max(each["private_mb"] for each in after),
        }


def import_ms(module: str) -> float:
    """Milliseconds that importing takes beyond asyncio's own, the least of ten."""
    code = f"import asyncio,time; t=time.perf_counter(); {module}; print((time.perf_counter()-t)*1e3)"
    return min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(10))


def best(rows: dict[str, dict[str, float]], prefix: str) -> tuple[str, dict[str, float]]:
    """The configuration of `prefix` with the highest rate."""
    return max(((name, row) for name, row in rows.items() if name.startswith(prefix)), key=lambda item: item[1]["rate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, one second, two kills")
    parser.add_argument("--parts", default="load,threads,failover,idle", help="what to measure")
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.kills = 1, 1.0, 2
    (ROOT / "bench-out").mkdir(exist_ok=True)
    parts = arguments.parts.split(",")
    lines: list[str] = []
    data: dict[str, Any] = {"date": datetime.now(UTC).isoformat(), "python": sys.version}

    def rounds(engines: dict[str, list[str]], kind: str, outstanding: int, on: str) -> dict[str, dict[str, float]]:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for number in range(arguments.rounds):
            order = list(engines.items())
            for name, engine in order if number % 2 == 0 else order[::-1]:
                found[name].append(measure_load(engine, kind, outstanding, arguments.seconds, on))
                print(f"  {kind} {outstanding} on {on}, {name}: {found[name][-1]['rate']:,.0f}/s", file=sys.stderr)
        return {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
        }

    rows: list[tuple[str, dict[str, dict[str, float]]]] = []
    if "load" in parts:
        for on in ("leader", "follower"):
            for outstanding in (1, 16, 64, 5000):
                rows.append((f"{outstanding} outstanding, {on}", rounds(ENGINES, "load", outstanding, on)))  # noqa: PERF401
    if "threads" in parts:
        rows.append(("64 threads, leader", rounds(THREAD_ENGINES, "threads", 64, "leader")))
        rows.append(("1 thread, leader", rounds(THREAD_ENGINES, "threads", 1, "leader")))
    data["loads"] = rows
    if rows:
        columns = (
            "commands", "a second, ours", "PySyncObj", "ratio", "p50 ms ours", "PySyncObj", "p99 ms ours", "PySyncObj",
            "CPU us, all three, ours", "PySyncObj",
        )  # fmt: skip
        lines += [
            f"| {' | '.join(columns)} |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for label, row in rows:
            _, ours = best(row, "oarlock")
            _, theirs = best(row, "pysyncobj")
            lines.append(
                f"| {label} | {ours['rate']:,.0f} | {theirs['rate']:,.0f} | {ours['rate'] / theirs['rate']:.2f} | "
                f"{ours['p50_ms']:.2f} | {theirs['p50_ms']:.2f} | {ours['p99_ms']:.2f} | {theirs['p99_ms']:.2f} | "
                f"{ours['cpu_us']:.0f} | {theirs['cpu_us']:.0f} |"
            )
        lines.append("")
    if "failover" in parts:
        kills: dict[str, list[float]] = {"oarlock": [], "pysyncobj": []}
        for _ in range(arguments.kills):
            for name, times in kills.items():
                times.append(measure_failover(ENGINES[name]))
                print(f"  failover {name}: {times[-1]:.2f} s", file=sys.stderr)
        data["failover"] = kills
        lines += ["| SIGKILL of the leader | kills | median s | most s |", "| --- | --- | --- | --- |"]
        for name, times in kills.items():
            lines.append(f"| {name} | {len(times)} | {statistics.median(times):.2f} | {max(times):.2f} |")
        lines.append("")
    if "idle" in parts:
        idle = {name: measure_idle(ENGINES[name], 3 * arguments.seconds) for name in ("oarlock", "pysyncobj")}
        idle["pysyncobj, its defaults"] = measure_idle(["pysyncobj"], 3 * arguments.seconds)
        imports = {"oarlock": import_ms("import oarlock; oarlock.Node"), "pysyncobj": import_ms("import pysyncobj")}
        data["idle"], data["imports"] = idle, imports
        lines += ["| idle member | CPU % | private MB | import ms |", "| --- | --- | --- | --- |"]
        for name, row in idle.items():
            shown = imports.get(name.partition(",")[0], float("nan"))
            lines.append(f"| {name} | {row['cpu_percent']:.1f} | {row['private_mb']:.0f} | {shown:.0f} |")
        lines.append("")
    head = [
        f"`python -m benchmarks.compare_pysyncobj {' '.join(sys.argv[1:])}`, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, CPython {platform.python_version()}.",
        "",
    ]
    text = "\n".join(head + lines)
    print(text)
    (ROOT / "bench-out" / "compare-pysyncobj.json").write_text(json.dumps(data, indent=1, default=str))
    if arguments.write_docs:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        _, after = rest.split(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
