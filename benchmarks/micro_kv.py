"""The key-value machine alone: cost of apply, of reads, of checkpoints, and memory, with both stores.

    python benchmarks/micro_kv.py [--keys 1000000] [--store memory|disk|both] [--path DIRECTORY]

Each store runs in a process of its own, so that its memory can be told. CPU times are of the applying thread.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Compact, Put, Range, encode
from oarlock.machines.kv.machine import KvMachine

VALUE_BYTES = 256
BATCH = 100
CHECKPOINT_BYTES = 16 << 20


def memory_mib() -> tuple[float, float]:
    """Private (anonymous and dirty) and shared resident memory of this process."""
    fields = {"Private": 0, "Shared": 0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        for name in fields:
            if line.startswith(name):
                fields[name] += int(line.split()[1])
    anonymous = next(
        int(line.split()[1])
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("Anonymous:")
    )
    return anonymous / 1024, (fields["Private"] + fields["Shared"] - anonymous) / 1024


class Run:
    def __init__(self, machine: KvMachine) -> None:
        self.machine = machine
        self.index = machine.applied_index
        self.checkpoint_s = 0.0
        self.checkpoints = 0
        self.stall_s = 0.0

    def apply(self, batch: list[bytes]) -> None:
        self.index += 1
        self.machine.apply(Context(self.index, 1, 0), batch)

    def checkpoint(self) -> None:
        begin = time.perf_counter()
        checkpoint = self.machine.checkpoint()
        frozen = time.perf_counter()
        checkpoint.write()
        written = time.perf_counter()
        self.machine.checkpointed(checkpoint)
        self.checkpoint_s += written - frozen
        self.stall_s = max(self.stall_s, frozen - begin, time.perf_counter() - written)
        self.checkpoints += 1

    def puts(self, label: str, keys: Callable[[], bytes], number: int) -> None:
        """Apply puts in batches; checkpoints happen between and are told apart."""
        spent = 0.0
        self.checkpoint_s = self.stall_s = 0.0
        self.checkpoints = 0
        value = random.randbytes(VALUE_BYTES - 8)
        for at in range(0, number, BATCH):
            batch = [encode(Put(keys(), value + n.to_bytes(8))) for n in range(at, at + BATCH)]
            begin = time.thread_time()
            self.apply(batch)
            spent += time.thread_time() - begin
            if self.machine.durable and self.machine.dirty_bytes() > CHECKPOINT_BYTES:
                self.checkpoint()
        line = f"{label:34} {spent / number * 1e6:6.2f} us/put"
        if self.checkpoints:
            line += f"; {self.checkpoints} checkpoints of {self.checkpoint_s / self.checkpoints * 1e3:.0f} ms"
            line += f", longest freeze or release {self.stall_s * 1e3:.1f} ms"
        print(line, flush=True)

    def reads(self, label: str, requests: list[Range]) -> None:
        begin = time.thread_time()
        for request in requests:
            self.machine.range(request)
        print(f"{label:34} {(time.thread_time() - begin) / len(requests) * 1e6:6.1f} us", flush=True)

    def memory(self, label: str) -> None:
        gc.collect()
        private, mapped = memory_mib()
        in_use, size = self.machine.size_in_use() >> 20, self.machine.size() >> 20
        print(
            f"{label:34} {private:6.0f} MiB private, {mapped:.0f} MiB mapped; in use {in_use} of {size} MiB", flush=True
        )


def measure(store: str, count: int, path: Path) -> None:
    random.seed(1)
    print(f"-- {store}, {count} keys of 16 B, values of {VALUE_BYTES} B", flush=True)
    machine = KvMachine.in_memory() if store == "memory" else KvMachine.on_disk(path / "state")
    run = Run(machine)
    keys = [n.to_bytes(4) + random.Random(n).randbytes(12) for n in random.sample(range(count), count)]
    fresh = iter(keys)
    run.puts("new keys, random order", lambda: next(fresh), count)
    run.memory("after loading")
    some = count // 5
    run.puts("overwrites, random", lambda: random.choice(keys), some)
    ordered = sorted(keys)
    singles = [Range(random.choice(keys)) for _ in range(20000)]
    run.reads("one key (range)", singles)
    begin = time.thread_time()
    for request in singles:
        machine.range_one(request.key)
    print(f"{'one key (range_one)':34} {(time.thread_time() - begin) / len(singles) * 1e6:6.1f} us")
    hundreds = [Range(ordered[at], ordered[at + 100]) for at in random.sample(range(count - 101), 1000)]
    run.reads("range of 100 keys", hundreds)
    run.reads("one key, 1000 revisions ago", [Range(k.key, revision=machine.revision - 1000) for k in singles[:5000]])
    run.reads("count of everything", [Range(b"\0", b"\0", count_only=True)])
    run.reads("first 500 of everything", [Range(b"\0", b"\0", limit=500)] * 3)
    run.apply([encode(Compact(machine.revision))])
    run.puts("overwrites while compacting", lambda: random.choice(keys), some)
    begin = time.perf_counter()
    while machine.compact_some(1000):
        if machine.durable and machine.dirty_bytes() > CHECKPOINT_BYTES:
            run.checkpoint()
    print(f"{'rest of the compaction':34} {time.perf_counter() - begin:6.1f} s")
    if machine.durable:
        run.checkpoint()
        concurrent_checkpoint(run, keys)
    run.memory("after compaction")
    begin = time.perf_counter()
    capture = machine.capture()
    view = time.perf_counter() - begin
    size = sum(map(len, capture.chunks()))
    capture.close()
    print(f"{'capture':34} {view * 1e3:6.1f} ms to take, {time.perf_counter() - begin:.1f} s to read {size >> 20} MiB")
    if machine.durable:
        machine.close()
        begin = time.perf_counter()
        machine = KvMachine.on_disk(path / "state")
        print(f"{'opening again':34} {(time.perf_counter() - begin) * 1e3:6.1f} ms")
    machine.close()


def concurrent_checkpoint(run: Run, keys: list[bytes]) -> None:
    """How long a checkpoint of 20,000 puts takes while the machine applies without a pause, and what it costs them."""
    value = random.randbytes(VALUE_BYTES)
    batches = [[encode(Put(random.choice(keys), value)) for _ in range(BATCH)] for _ in range(200)]
    for batch in batches:
        run.apply(batch)
    checkpoint = run.machine.checkpoint()
    thread = threading.Thread(target=checkpoint.write)
    begin = time.perf_counter()
    thread.start()
    applied, longest = 0, 0.0
    while thread.is_alive():
        start = time.perf_counter()
        run.apply(batches[applied % len(batches)])
        longest = max(longest, time.perf_counter() - start)
        applied += 1
    took = time.perf_counter() - begin
    run.machine.checkpointed(checkpoint)
    rate = applied * BATCH / took
    print(
        f"{'checkpoint beside a busy apply':34} {took * 1e3:6.0f} ms for 20000 puts; meanwhile {rate:.0f} puts/s, "
        f"longest batch {longest * 1e3:.1f} ms"
    )
    run.checkpoint()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--store", choices=["memory", "disk", "both"], default="both")
    parser.add_argument("--path", type=Path, help="where the store on disk is made (default: a temporary directory)")
    options = parser.parse_args()
    if options.store == "both":
        for store in ("memory", "disk"):
            command = [sys.executable, __file__, "--keys", str(options.keys), "--store", store]
            subprocess.run(command + (["--path", str(options.path)] if options.path else []), check=True)
        return
    path = Path(tempfile.mkdtemp(prefix="oarlock-micro-kv-", dir=options.path))
    try:
        measure(options.store, options.keys, path)
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
