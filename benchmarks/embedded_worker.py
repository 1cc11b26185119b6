"""One member of an embedded cluster, of ours or of PySyncObj's, driven over its standard input by `compare_pysyncobj`.

Each line on stdin is a JSON request, each line on stdout the JSON answer. The load is made inside the process, as a
program that embeds a library makes it: `load` keeps so many commands outstanding for so many seconds, `threads` has so
many threads call and wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def quantiles(latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    pick = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000 if ordered else float("nan")  # noqa: E731
    return {"p50_ms": pick(0.5), "p99_ms": pick(0.99)}


def usage() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/smaps_rollup") as file:
        private = sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
    return {"cpu_s": used.ru_utime + used.ru_stime, "private_mb": private / 1024}


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class OnceEach:
    """The outcome of one measurement: commands in its time, and how long each took."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failed = 0

    def report(self, began: float, ended: float) -> dict[str, Any]:
        count = len(self.latencies)
        rate = count / (ended - began)
        return {"count": count, "rate": rate, "failed": self.failed, **quantiles(self.latencies), **usage()}


def from_threads(request: dict[str, Any], add: Callable[[], object], refused: type[BaseException]) -> dict[str, Any]:
    """The load of `outstanding` threads that each call and wait, for `seconds`."""
    outcome = OnceEach()
    until = time.perf_counter() + request["seconds"]

    def work() -> None:
        while (sent := time.perf_counter()) < until:
            try:
                add()
            except refused:
                outcome.failed += 1
                continue
            outcome.latencies.append(time.perf_counter() - sent)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(request["outstanding"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome.report(began, time.perf_counter())


# ------------------------------------------------------------------ ours


async def oarlock_main(arguments: argparse.Namespace, peers: dict[str, str]) -> None:
    from oarlock import Node, RaftError, ReplicatedCounter

    node = Node(ReplicatedCounter(), arguments.name, peers=peers, data_dir=arguments.data_dir)
    async with node:
        counter = node.machine
        loop = asyncio.get_running_loop()
        requests: asyncio.Queue[str] = asyncio.Queue()

        def read() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(requests.put_nowait, line)
            loop.call_soon_threadsafe(requests.put_nowait, "")

        threading.Thread(target=read, daemon=True).start()
        say({"started": True})
        while line := await requests.get():
            request = json.loads(line)
            match request["do"]:
                case "status":
                    say({"leader": node.is_leader, "known_leader": node.leader, **usage()})
                case "value":
                    say({"value": await counter.value()})
                case "load":
                    outcome = OnceEach()
                    until = time.perf_counter() + request["seconds"]

                    async def one(outcome: OnceEach = outcome, until: float = until) -> None:
                        latencies = outcome.latencies
                        while (began := time.perf_counter()) < until:
                            try:
                                await counter.add(1)
                            except RaftError:
                                outcome.failed += 1
                                continue
                            latencies.append(time.perf_counter() - began)

                    began = time.perf_counter()
                    await asyncio.gather(*(one() for _ in range(request["outstanding"])))
                    say(outcome.report(began, time.perf_counter()))
                case "stop":
                    break


def oarlock_threads(arguments: argparse.Namespace, peers: dict[str, str]) -> None:
    from oarlock import RaftError, ReplicatedCounter
    from oarlock.sync import Node

    with Node(ReplicatedCounter(), arguments.name, peers=peers, data_dir=arguments.data_dir) as node:
        counter: Any = node.machine
        thread_loop(lambda: {"leader": node.is_leader, "known_leader": node.leader}, lambda: counter.add(1),
                    lambda: int(counter.value()), RaftError)  # fmt: skip


def thread_loop(
    status: Callable[[], dict[str, Any]],
    add: Callable[[], object],
    value: Callable[[], int],
    refused: type[BaseException],
) -> None:
    """Requests of a member that is called from threads."""
    say({"started": True})
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "status":
                say({**status(), **usage()})
            case "value":
                say({"value": value()})
            case "threads":
                say(from_threads(request, add, refused))
            case "stop":
                return


# ------------------------------------------------------------------ PySyncObj


def pysyncobj_main(arguments: argparse.Namespace, peers: dict[str, str]) -> None:
    from pysyncobj import SyncObj, SyncObjConf, SyncObjException, replicated

    class Counter(SyncObj):  # type: ignore[misc]
        def __init__(self) -> None:
            configuration = SyncObjConf(
                autoTickPeriod=arguments.tick,
                appendEntriesUseBatch=arguments.batch,
                commandsQueueSize=1_000_000,
                journalFile=f"{arguments.data_dir}/journal" if arguments.journal else None,
            )
            others = [address for name, address in peers.items() if name != arguments.name]
            super().__init__(peers[arguments.name], others, configuration)
            self.value = 0

        @replicated  # type: ignore[misc]
        def add(self, by: int) -> int:
            self.value += by
            return self.value

    counter = Counter()

    def status() -> dict[str, Any]:
        leader = counter._getLeader()
        names = {address: name for name, address in peers.items()}
        known = names.get(str(getattr(leader, "address", leader)), "") if leader is not None else ""
        return {"leader": bool(counter._isLeader()), "known_leader": known}

    def load(outstanding: int, seconds: float) -> dict[str, Any]:
        """Callbacks, as its documentation recommends for speed: each answer sends the next command."""
        outcome = OnceEach()
        until = time.perf_counter() + seconds
        left = outstanding
        ended = threading.Event()

        def send() -> None:
            began = time.perf_counter()

            def done(result: Any, error: Any) -> None:
                nonlocal left
                now = time.perf_counter()
                if error:
                    outcome.failed += 1
                else:
                    outcome.latencies.append(now - began)
                if now < until:
                    send()
                else:
                    left -= 1
                    if not left:
                        ended.set()

            counter.add(1, callback=done)

        began = time.perf_counter()
        for _ in range(outstanding):
            send()
        ended.wait(seconds + 30)
        return outcome.report(began, time.perf_counter())

    say({"started": True})
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "status":
                say({**status(), **usage()})
            case "value":
                say({"value": counter.value})
            case "load":
                if request["outstanding"] == 1:
                    outcome = OnceEach()
                    began = time.perf_counter()
                    while (sent := time.perf_counter()) < began + request["seconds"]:
                        try:
                            counter.add(1, sync=True, timeout=10)
                        except SyncObjException:
                            outcome.failed += 1
                            continue
                        outcome.latencies.append(time.perf_counter() - sent)
                    say(outcome.report(began, time.perf_counter()))
                else:
                    say(load(request["outstanding"], request["seconds"]))
            case "threads":
                say(from_threads(request, lambda: counter.add(1, sync=True, timeout=10), SyncObjException))
            case "stop":
                counter.destroy()
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("oarlock", "oarlock-threads", "pysyncobj"))
    parser.add_argument("--name", required=True)
    parser.add_argument("--peers", required=True, help="name=host:port,...")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tick", type=float, default=0.05)
    parser.add_argument("--batch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--journal", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    peers = dict(each.split("=", 1) for each in arguments.peers.split(","))
    if arguments.engine == "pysyncobj":
        pysyncobj_main(arguments, peers)
    elif arguments.engine == "oarlock-threads":
        oarlock_threads(arguments, peers)
    else:
        factory = None
        if arguments.uvloop:
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(oarlock_main(arguments, peers))


if __name__ == "__main__":
    main()
