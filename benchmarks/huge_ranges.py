"""What a huge read does to everybody else: how long the event loop works on it at a stretch, and what a get beside it
takes.

    python -m benchmarks.huge_ranges --keys 1000000

One process serves the API over an on-disk key-value machine with so many keys of 16 bytes and values of 32 (no peers,
no log: they would only add to it). A timer of 1 ms in its loop measures how late it is, and how much CPU time the
loop's thread has used since the timer last ran: on a busy machine the first says more about the others. A client in
another process does one huge read after the other while a second one gets single keys. Not a comparison with another
server: run it on two versions of this one, with PYTHONPATH.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.raw_grpc import BlockingClient
from tests.support.single_backend import SingleBackend

from oarlock.api import proto
from oarlock.api.metrics import Metrics
from oarlock.api.server import start_api
from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Put, encode
from oarlock.machines.kv.machine import KvMachine

BATCH = 1000
CHECKPOINT_BATCHES = 100
VALUE = b"v" * 32
RANGE = "/etcdserverpb.KV/Range"
_Range = proto.message("etcdserverpb.RangeRequest")
_Response = proto.message("etcdserverpb.RangeResponse")


def requests(keys: int) -> dict[str, Any]:
    everything = {"key": b"\0", "range_end": b"\0"}
    most = {"key": b"k", "range_end": b"l"}
    return {
        "count of a prefix, first": _Range(**most, count_only=True),
        "count of a prefix, again": _Range(**most, count_only=True),
        "prefix with limit 10": _Range(**most, limit=10),
        "min_mod_revision, 10 pass": _Range(**everything, min_mod_revision=keys - 8),
        "last 10 by revision": _Range(**everything, limit=10, sort_order=2, sort_target=3),
        "sorted by value, keys only": _Range(**everything, sort_order=2, sort_target=4, keys_only=True),
        "count at half of the history": _Range(**everything, revision=keys // 2, count_only=True),
        "everything": _Range(**everything),
    }


def fill(directory: Path, keys: int) -> tuple[KvMachine, int]:
    machine = KvMachine.on_disk(directory / "state")
    index = 0
    order = [(n * 7919) % keys for n in range(keys)]
    for at in range(0, keys, BATCH):
        index += 1
        machine.apply(Context(index, 1, 0), [encode(Put(b"k%015d" % n, VALUE)) for n in order[at : at + BATCH]])
        if index % CHECKPOINT_BATCHES == 0:
            checkpoint = machine.checkpoint()
            checkpoint.write()
            machine.checkpointed(checkpoint)
    return machine, index


def ask(url: str, keys: int, results: Any) -> None:
    """Each read with a getter beside it; sent back are its seconds, what was found, and the longest get."""
    endpoint = url.removeprefix("http://")
    for name, request in requests(keys).items():
        with BlockingClient(endpoint, RANGE, timeout=600) as client:
            results.send(("begin", name))
            began = time.perf_counter()
            found = _Response.FromString(client.call(request.SerializeToString()))
            results.send(("end", name, time.perf_counter() - began, len(found.kvs), found.count))
        time.sleep(0.2)
    results.send(None)


def get(url: str, keys: int, stop: Any, results: Any) -> None:
    latencies: list[tuple[float, float]] = []
    with BlockingClient(url.removeprefix("http://"), RANGE, timeout=600) as client:
        number = 0
        while not stop.is_set():
            number += 1
            began = time.perf_counter()
            client.call(_Range(key=b"k%015d" % (number * 31 % keys)).SerializeToString())
            latencies.append((began, time.perf_counter()))
            time.sleep(0.002)
    results.send(latencies)


async def measure(machine: KvMachine, index: int, keys: int) -> None:
    loop = asyncio.get_running_loop()
    backend = SingleBackend(machine)
    backend.index = index
    server = await start_api(backend, ["http://127.0.0.1:0"], Metrics())
    late = work = 0.0
    expected = loop.time()
    used = time.thread_time()

    def tick() -> None:
        nonlocal late, expected, work, used
        now, cpu = loop.time(), time.thread_time()
        late = max(late, now - expected)
        work = max(work, cpu - used)
        expected, used = now + 0.001, cpu
        loop.call_later(0.001, tick)

    tick()
    spawn = multiprocessing.get_context("spawn")
    asked, ask_end = spawn.Pipe(duplex=False)
    got, get_end = spawn.Pipe(duplex=False)
    stop = spawn.Event()
    getter = spawn.Process(target=get, args=(server.addresses[0], keys, stop, get_end))
    asker = spawn.Process(target=ask, args=(server.addresses[0], keys, ask_end))
    getter.start()
    asker.start()
    rows: list[tuple[str, float, float, float, float, float]] = []
    begun = 0.0
    while True:
        while not asked.poll():  # noqa: ASYNC110 (a pipe of another process)
            await asyncio.sleep(0.005)
        news = asked.recv()
        if news is None:
            break
        if news[0] == "begin":
            begun = time.perf_counter()
        else:  # what the loop did since the last one ended: the news of a beginning may come late
            rows.append((news[1], news[2], work, late, begun, time.perf_counter()))
            late = work = 0.0
    stop.set()
    while not got.poll():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    latencies: list[tuple[float, float]] = got.recv()
    getter.join()
    asker.join()
    await server.close(0)
    print(
        f"| {keys:,} keys | took s | longest work of the loop at a stretch, CPU ms | longest pause, ms | "
        f"longest get beside it, ms | median get, ms |"
    )
    print("| --- " * 6 + "|")
    for name, took, cpu, pause, began, ended in rows:
        beside = [end - start for start, end in latencies if end >= began and start <= ended] or [0.0]
        print(
            f"| {name} | {took:.2f} | {cpu * 1e3:.0f} | {pause * 1e3:.0f} | {max(beside) * 1e3:.0f} | "
            f"{statistics.median(beside) * 1e3:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="oarlock-huge-"))
    try:
        machine, index = fill(directory, options.keys)
        gc.freeze()
        asyncio.run(measure(machine, index, options.keys))
        machine.close()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
