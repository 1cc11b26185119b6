"""Our three-member cluster beside etcd's, in one run on one machine, measured in turns.

    python -m benchmarks.compare_etcd              about fifteen minutes
    python -m benchmarks.compare_etcd --quick      about two minutes

Both clusters run all the time; the one that is not measured idles. Every round measures each load on one and then on
the other, so that whatever else the machine does falls on both alike. A figure is the median over the rounds; a ratio
is the ratio of the medians. CPU time is what the kernel's scheduler counted for each thread of a member.

Writes `bench-out/compare-etcd.json`, prints a table, and with `--write-docs` puts it into docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks.load import KEY_BYTES, KEY_SPACE, VALUE_BYTES, key_of, value_of
from benchmarks.raw_grpc import (
    PUT,
    RANGE,
    TXN,
    BlockingClient,
    CallFailed,
    decode,
    put_request,
    range_request,
    status,
    txn_of_puts,
)

from oarlock.cli.local_cluster import (
    ClusterError,
    LocalCluster,
    MemberProcess,
    Program,
    ProgramMissing,
    etcd_program,
    oarlock_program,
    wait_until,
)

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / "bench-out"
DOCS: Final = ROOT / "docs" / "reference" / "benchmarks.md"
DOCS_BEGIN: Final = "<!-- compare_etcd: begin -->"
DOCS_END: Final = "<!-- compare_etcd: end -->"

TXN_PUTS: Final = 128
FAILOVER_CLIENTS: Final = 8
FAILOVER_ATTEMPT_SECONDS: Final = 0.25
FAILOVER_LIMIT_SECONDS: Final = 30.0
MILLION: Final = 1_000_000


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    clients: tuple[int, ...] = (1, 16, 64, 256)
    rounds: int = 5
    seconds: float = 3.0
    warm_up: float = 0.5
    kills: int = 10
    big_keys: int = MILLION
    h2load: bool = True


QUICK: Final = Plan(clients=(1, 64), rounds=1, seconds=1.0, warm_up=0.3, kills=2, big_keys=100_000)


@dataclass
class Contender:
    """One cluster and what was measured of it."""

    cluster: LocalCluster
    loads: dict[tuple[str, int], list[dict[str, float]]] = field(default_factory=dict)
    h2load: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failovers: list[float] = field(default_factory=list)
    lost: int = 0
    acknowledged: int = 0
    big: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.cluster.program.name


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def leader_of(cluster: LocalCluster, *, seconds: float = 30.0) -> MemberProcess:
    """The member that calls itself the leader. Raises `ClusterError`."""
    found: list[MemberProcess] = []

    def look() -> bool:
        for member in cluster.members:
            answer = status(member.endpoint) if member.running else None
            if answer is not None and answer[0] == answer[1]:
                found.append(member)
                return True
        return False

    wait_until(look, seconds, "a member that leads")
    return found[-1]


def wait_level(cluster: LocalCluster, *, seconds: float = 120.0) -> None:
    """Wait until every member has applied what any has committed."""

    def level() -> bool:
        answers = [answer for member in cluster.members if (answer := status(member.endpoint)) is not None]
        return len(answers) == len(cluster.members) and min(a[3] for a in answers) >= max(a[2] for a in answers)

    wait_until(level, seconds, "all members level", poll=0.05)


def cpu_seconds(pid: int) -> float:
    """CPU time of all present threads of a process, as the scheduler counts it (nanoseconds)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while we look
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory_mb(pid: int) -> dict[str, float]:
    """Resident, private (including pages of mapped files that nobody else maps) and anonymous memory, in MB of 10^6."""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return {
        "resident": sizes["Rss"] / 1e6,
        "private": (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1e6,
        "anonymous": sizes["Anonymous"] / 1e6,
    }


def preload(cluster: LocalCluster, first: int, count: int) -> float:
    """Put keys number `first` and on through transactions, four in flight; returns the seconds it took."""
    began = time.monotonic()
    with BlockingClient(leader_of(cluster).endpoint, TXN, timeout=60) as client:
        batch: list[bytes] = []
        for start in range(first, first + count, TXN_PUTS):
            numbers = range(start, min(start + TXN_PUTS, first + count))
            batch.append(txn_of_puts([(key_of(number), value_of(number)) for number in numbers]))
            if len(batch) == 4:
                client.call_many(batch)
                batch.clear()
        client.call_many(batch)
    wait_level(cluster)
    return time.monotonic() - began


def measure_load(contender: Contender, method: str, clients: int, plan: Plan) -> dict[str, float]:
    """One turn of the load generator against the leader, with the CPU time of leader and followers."""
    leader = leader_of(contender.cluster)
    followers = [member for member in contender.cluster.members if member is not leader]
    command = [
        sys.executable, "-m", "benchmarks.load", f"--endpoint={leader.endpoint}", f"--method={method}",
        f"--clients={clients}", f"--seconds={plan.seconds}", f"--warm-up={plan.warm_up}",
    ]  # fmt: skip
    before = {member.name: cpu_seconds(member.pid) for member in contender.cluster.members}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment(), check=False)
    after = {member.name: cpu_seconds(member.pid) for member in contender.cluster.members}
    if done.returncode:
        raise CallFailed(f"{contender.name}, {method} with {clients} clients: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    if result["errors"]:
        raise CallFailed(
            f"{contender.name}, {method} with {clients} clients: {result['errors']:.0f} calls were refused"
        )
    # The generator's warm-up is in the members' CPU time too: count its requests at the measured rate.
    requests = result["per_second"] * (plan.seconds + plan.warm_up)
    used = {name: 1e6 * (after[name] - before[name]) / requests for name in before}
    result["leader_cpu_us"] = used[leader.name]
    result["follower_cpu_us"] = statistics.mean(used[member.name] for member in followers)
    return result


def measure_h2load(contender: Contender, method: str, plan: Plan) -> dict[str, float]:
    """The same with nghttp2's h2load, whose own cost is small, on one fixed key over 64 connections."""
    leader = leader_of(contender.cluster)
    path = PUT if method == "put" else RANGE
    message = put_request(key_of(1), value_of(1)) if method == "put" else range_request(key_of(1))
    body = OUT / f"h2load-{method}.bin"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    command = [
        "h2load", f"--duration={max(1, round(plan.seconds))}", "-c64", "-m1", "-H", "content-type: application/grpc",
        "-H", "te: trailers", "-d", str(body), f"{leader.client_url}{path}",
    ]  # fmt: skip
    before = cpu_seconds(leader.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = cpu_seconds(leader.pid) - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("requests:"))
    count = int(line.split("done,")[1].split("succeeded")[0])
    rate = next(line for line in done.stdout.splitlines() if line.startswith("finished in"))
    return {"per_second": float(rate.split(",")[1].split("req/s")[0]), "leader_cpu_us": 1e6 * used / max(1, count)}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


class FailoverClients:
    """Clients that put keys of their own, one after the other, and turn to the next member on any failure."""

    def __init__(self, endpoints: Sequence[str], label: str) -> None:
        self._endpoints = list(endpoints)
        self._label = label
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: list[tuple[float, float]] = []  # when the attempt began and when it was acknowledged
        self.keys: list[bytes] = []
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(FAILOVER_CLIENTS)]

    def __enter__(self) -> FailoverClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def first_after(self, moment: float) -> float | None:
        with self._lock:
            return min((answered for began, answered in self.answers if began >= moment), default=None)

    def _client(self, number: int) -> None:
        at = number
        count = 0
        client: BlockingClient | None = None
        while not self._stop.is_set():
            key = f"{self._label}/{number}/{count}".encode()
            began = time.monotonic()
            try:
                if client is None:
                    client = BlockingClient(
                        self._endpoints[at % len(self._endpoints)], PUT, timeout=FAILOVER_ATTEMPT_SECONDS
                    )
                client.call(put_request(key, value_of(number)))
            except CallFailed:
                if client is not None:
                    client.close()
                client = None
                at += 1
                self._stop.wait(0.005)
                continue
            answered = time.monotonic()
            with self._lock:
                self.answers.append((began, answered))
                self.keys.append(key)
            count += 1
        if client is not None:
            client.close()


def measure_failover(contender: Contender, number: int) -> None:
    """Kill the leader under load; note the first write begun and acknowledged after it, and look every write up."""
    cluster = contender.cluster
    leader = leader_of(cluster)
    with FailoverClients(cluster.endpoints, f"failover-{number}") as clients:
        wait_until(lambda: len(clients.answers) > 200, 60, "load before the kill")
        killed_at = time.monotonic()
        leader.kill()
        gone_at = time.monotonic()  # what began before may have been acknowledged by the leader in its last moment
        wait_until(
            lambda: clients.first_after(gone_at) is not None,
            FAILOVER_LIMIT_SECONDS,
            "a write after the kill",
            poll=0.005,
        )
        answered = clients.first_after(gone_at)
        assert answered is not None, "wait_until saw it"
        contender.failovers.append(answered - killed_at)
        leader.start()
        leader.wait_ready()
    wait_level(cluster)
    contender.acknowledged += len(clients.keys)
    with BlockingClient(leader_of(cluster).endpoint, RANGE) as reader:
        for key in clients.keys:
            if not decode(reader.call(range_request(key))).get(2):
                contender.lost += 1


def measure_big(program: Program, keys: int) -> dict[str, float]:
    """A fresh cluster with many keys: load, memory of each member, and the time to serve after SIGKILL of all."""
    with LocalCluster(program) as cluster:
        cluster.start()
        load_seconds = preload(cluster, 0, keys)
        memory = [memory_mb(member.pid) for member in cluster.members]
        disk = sum(file.stat().st_blocks * 512 for file in cluster.directory.rglob("*") if file.is_file())
        cluster.kill_all()
        began = time.monotonic()
        for member in cluster.members:
            member.start()
        serving: dict[str, float] = {}

        def all_serve() -> bool:
            for member in cluster.members:
                if member.name not in serving and _reads(member, keys - 1):
                    serving[member.name] = time.monotonic() - began
            return len(serving) == len(cluster.members)

        wait_until(all_serve, 120, "all members serving after the restart", poll=0.02)
        after = [memory_mb(member.pid) for member in cluster.members]
    result = {
        "keys": float(keys),
        "load_keys_per_second": keys / load_seconds,
        "restart_first_seconds": min(serving.values()),
        "restart_all_seconds": max(serving.values()),
        "disk_mb": disk / 3 / 1e6,
    }
    for kind in ("private", "anonymous", "resident"):
        result[f"{kind}_mb"] = statistics.mean(one[kind] for one in memory)
        result[f"{kind}_after_restart_mb"] = statistics.mean(one[kind] for one in after)
    return result


def _reads(member: MemberProcess, number: int) -> bool:
    """Whether the member answers a linearizable read of that key."""
    try:
        with BlockingClient(member.endpoint, RANGE, timeout=1.0) as client:
            return bool(decode(client.call(range_request(key_of(number)))).get(2))
    except CallFailed:
        return False


C = TypeVar("C")


def in_turns(contenders: Sequence[C], rounds: int, turn: Callable[[C, int], None]) -> None:
    """Call `turn` for every contender in every round; who begins changes from round to round."""
    for number in range(rounds):
        order = list(contenders)
        random.Random(number).shuffle(order)
        for contender in order:
            turn(contender, number)


@contextlib.contextmanager
def running(programs: Sequence[Program]) -> Iterator[list[Contender]]:
    """A started cluster for each program, filled with the key space."""
    with contextlib.ExitStack() as stack:
        contenders = [Contender(stack.enter_context(LocalCluster(program))) for program in programs]
        for contender in contenders:
            contender.cluster.start()
            seconds = preload(contender.cluster, 0, KEY_SPACE)
            say(f"{contender.name}: ready, {KEY_SPACE:,} keys in {seconds:.1f} s")
        try:
            yield contenders
        except (ClusterError, CallFailed):
            for contender in contenders:
                print(contender.cluster.logs(), file=sys.stderr)
            raise


def measure(programs: Sequence[Program], plan: Plan, parts: Sequence[str]) -> list[Contender]:
    """Everything that `parts` names: loads, failover, big."""
    with running(programs) as contenders:
        if "loads" in parts:
            for method in ("put", "range", "txn"):
                for clients in plan.clients:

                    def turn(contender: Contender, number: int, method: str = method, clients: int = clients) -> None:
                        result = measure_load(contender, method, clients, plan)
                        contender.loads.setdefault((method, clients), []).append(result)
                        say(
                            f"{contender.name:8} {method:5} {clients:4} clients  {result['per_second']:9,.0f}/s  "
                            f"p50 {result['p50_us']:8,.0f} us  leader {result['leader_cpu_us']:6.1f} us"
                        )

                    in_turns(contenders, plan.rounds, turn)
                if method != "txn" and plan.h2load and shutil.which("h2load"):

                    def turn_h2load(contender: Contender, number: int, method: str = method) -> None:
                        contender.h2load.setdefault(method, []).append(measure_h2load(contender, method, plan))

                    in_turns(contenders, plan.rounds, turn_h2load)
        if "failover" in parts:

            def kill(contender: Contender, number: int) -> None:
                measure_failover(contender, number)
                say(f"{contender.name:8} failover {contender.failovers[-1]:.2f} s, lost {contender.lost}")

            in_turns(contenders, plan.kills, kill)
    if "big" in parts:
        for contender in contenders:
            contender.big = measure_big(contender.cluster.program, plan.big_keys)
            say(f"{contender.name:8} {plan.big_keys:,} keys: {contender.big}")
    return contenders


def medians(results: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for name in results[0] if name != "method"]
    return {name: statistics.median(result[name] for result in results) for name in names}


DESCRIBE: Final = """
import platform, sysconfig
from oarlock.cli.version import compiled
guided = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
print(f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})"
      + (", built with profile-guided optimisation" if guided else "")
      + f", our hot modules {'compiled' if compiled() else 'interpreted'}")
"""


def describe_server(program: Program) -> str:
    """The interpreter that runs our members, and whether it runs compiled modules. (Debian builds with profile-guided
    optimisation, too, but does not record it.)"""
    done = subprocess.run(
        [program.command[0], "-c", DESCRIBE],
        env={**os.environ, **program.environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def machine(programs: Sequence[Program]) -> dict[str, str]:
    ours = [program for program in programs if program.name == "oarlock"]
    model = "unknown processor"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": describe_server(ours[0]) if ours else "no server of ours",
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def as_json(contenders: Sequence[Contender], where: dict[str, str], command: str) -> dict[str, Any]:
    return {
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": where,
        "sizes": {"key_bytes": KEY_BYTES, "value_bytes": VALUE_BYTES, "key_space": KEY_SPACE},
        "contenders": {
            contender.name: {
                "loads": {f"{method} {clients}": rounds for (method, clients), rounds in contender.loads.items()},
                "h2load": contender.h2load,
                "failover_seconds": contender.failovers,
                "failover_acknowledged": contender.acknowledged,
                "failover_lost": contender.lost,
                "big": contender.big,
            }
            for contender in contenders
        },
    }


def as_markdown(contenders: Sequence[Contender], where: dict[str, str], command: str) -> str:
    """The tables for the documentation; ratios stand where two contenders ran, ours first."""
    names = [contender.name for contender in contenders]
    cores = f"{where['cores']} cores of {where['processor']}, Linux {where['kernel']}"
    lines = [
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{cores}, {where['python']}, load average at the start {where['load_average']}.",
        "",
    ]
    first = contenders[0]
    if first.loads:
        columns = ["rate", "p50 ms", "p99 ms", "leader CPU us", "follower CPU us", "client CPU us"]
        head = ["load", "clients", *(f"{column} {name}" for column in columns for name in names)]
        head += ["rate ratio", "p50 ratio"] if len(names) == 2 else []
        lines += _table_head(head)
        for method, clients in first.loads:
            values = [medians(contender.loads[method, clients]) for contender in contenders]
            cells = [
                *(f"{value['per_second']:,.0f}" for value in values),
                *(f"{value['p50_us'] / 1e3:.2f}" for value in values),
                *(f"{value['p99_us'] / 1e3:.2f}" for value in values),
                *(
                    f"{value[which]:.0f}"
                    for which in ("leader_cpu_us", "follower_cpu_us", "client_cpu_us")
                    for value in values
                ),
            ]
            if len(values) == 2:
                cells.append(f"{values[0]['per_second'] / values[1]['per_second']:.2f}")
                cells.append(f"{values[0]['p50_us'] / values[1]['p50_us']:.2f}")
            lines.append(_row([LOADS.get(method, method), str(clients), *cells]))
        lines.append("")
    if first.h2load:
        lines += _table_head(
            [
                "h2load, 64 connections, one key",
                *(f"rate {name}" for name in names),
                *(f"leader CPU us {name}" for name in names),
            ]
        )
        for method in first.h2load:
            values = [medians(contender.h2load[method]) for contender in contenders]
            cells = [f"{value['per_second']:,.0f}" for value in values] + [
                f"{value['leader_cpu_us']:.0f}" for value in values
            ]
            lines.append(_row([method, *cells]))
        lines.append("")
    if first.failovers:
        lines += _table_head(
            ["SIGKILL of the leader", "kills", "median s", "least s", "most s", "acknowledged writes", "lost"]
        )
        for contender in contenders:
            times = contender.failovers
            figures = [f"{value:.2f}" for value in (statistics.median(times), min(times), max(times))]
            lines.append(
                _row([contender.name, str(len(times)), *figures, f"{contender.acknowledged:,}", str(contender.lost)])
            )
        lines.append("")
    if first.big:
        lines += _table_head(
            [
                f"{first.big['keys']:,.0f} keys",
                "load keys/s",
                "first member serves s",
                "all serve s",
                "private MB",
                "anonymous MB",
                "private MB after restart",
                "disk MB",
            ]
        )
        for contender in contenders:
            big = contender.big
            lines.append(
                _row([
                    contender.name, f"{big['load_keys_per_second']:,.0f}", f"{big['restart_first_seconds']:.2f}",
                    f"{big['restart_all_seconds']:.2f}", f"{big['private_mb']:.0f}", f"{big['anonymous_mb']:.0f}",
                    f"{big['private_after_restart_mb']:.0f}", f"{big['disk_mb']:.0f}",
                ])
            )  # fmt: skip
        lines.append("")
    return "\n".join(lines)


LOADS: Final = {"txn": "put, 100 a transaction"}


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table_head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def write_docs(fragment: str) -> None:
    """Replace what stands between the two markers of the page."""
    text = DOCS.read_text()
    head, begin, rest = text.partition(DOCS_BEGIN)
    _, end, tail = rest.partition(DOCS_END)
    if not begin or not end:
        raise SystemExit(f"error: {DOCS} lacks the line {DOCS_BEGIN} or {DOCS_END}; put them where the tables belong")
    DOCS.write_text(f"{head}{begin}\n\n{fragment}\n{end}{tail}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_etcd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run: two loads, one round, two kills, 100,000 keys"
    )
    parser.add_argument(
        "--servers", default="oarlock,etcd", help="which to run: oarlock,etcd (default), oarlock or etcd"
    )
    parser.add_argument(
        "--parts", default="loads,failover,big", help="what to measure: loads,failover,big (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each load (default 5; with --quick 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each turn (default 3; with --quick 1)")
    parser.add_argument("--clients", help="numbers of clients, such as 1,64 (default 1,16,64,256)")
    parser.add_argument("--kills", type=int, help="kills of the leader (default 10; with --quick 2)")
    parser.add_argument("--keys", type=int, help="keys of the big cluster (default 1,000,000; with --quick 100,000)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs our server")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/reference/benchmarks.md")
    options = parser.parse_args(arguments)
    base = QUICK if options.quick else Plan()
    plan = Plan(
        clients=tuple(map(int, options.clients.split(","))) if options.clients else base.clients,
        rounds=options.rounds or base.rounds,
        seconds=options.seconds or base.seconds,
        warm_up=base.warm_up,
        kills=options.kills or base.kills,
        big_keys=options.keys or base.big_keys,
    )
    parts = options.parts.split(",")
    unknown = set(parts) - {"loads", "failover", "big"}
    if unknown:
        parser.error(f"--parts knows loads, failover and big, not {', '.join(sorted(unknown))}")
    make: dict[str, Callable[[], Program]] = {
        "oarlock": lambda: oarlock_program(python=options.python),
        "etcd": etcd_program,
    }
    try:
        programs = [make[name]() for name in options.servers.split(",")]
    except KeyError as error:
        parser.error(f"--servers knows oarlock and etcd, not {error}")
    except ProgramMissing as error:
        sys.exit(f"error: {error}")
    OUT.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # leave through the clean-up of the clusters
    where = machine(programs)
    command = shlex.join(
        ["python", "-m", "benchmarks.compare_etcd", *(arguments if arguments is not None else sys.argv[1:])]
    )
    contenders = measure(programs, plan, parts)
    (OUT / "compare-etcd.json").write_text(json.dumps(as_json(contenders, where, command), indent=1))
    fragment = as_markdown(contenders, where, command)
    (OUT / "compare-etcd.md").write_text(fragment)
    print(fragment)
    if options.write_docs:
        write_docs(fragment)


if __name__ == "__main__":
    main()
