"""check perf and check datascale: put load on a cluster and judge it by etcdctl's measures."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.client import Client
from oarlock.ctl.failures import BAD_FEATURE, INVALID_INPUT, CallError, Failure


class Load(NamedTuple):
    """How much: writes a second for `check perf`, or keys for `check datascale`; and how many at the same time."""

    amount: int
    clients: int


PERF: Final = {"s": Load(150, 50), "m": Load(1000, 200), "l": Load(8000, 500), "xl": Load(15000, 1000)}
SCALE: Final = {"s": Load(10_000, 50), "m": Load(100_000, 200), "l": Load(1_000_000, 500), "xl": Load(3_000_000, 1000)}
ALIASES: Final = {"small": "s", "medium": "m", "large": "l", "xLarge": "xl"}
PERF_SECONDS: Final = 60
KEY_BYTES: Final = 256
VALUE_BYTES: Final = 1024
THREADS_MAX: Final = 64
"""More would only wait for each other in this process."""

RATE_MIN: Final = 0.9
SLOWEST_SECONDS_MAX: Final = 0.5
DEVIATION_SECONDS_MAX: Final = 0.1
BUSY: Final = 0.85
"""Share of one processor from which this process, not the cluster, may be what is slow."""


class Measured(NamedTuple):
    took: list[float]
    errors: list[str]
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return len(self.took) / self.wall_s

    @property
    def deviation_s(self) -> float:
        mean = sum(self.took) / len(self.took)
        return float((sum((one - mean) ** 2 for one in self.took) / len(self.took)) ** 0.5)


def check_perf(run: Run, seconds: float = PERF_SECONDS) -> int:
    load = _load(run, PERF)
    prefix = _empty(run)
    measured = _put(run.client, prefix, load, seconds=seconds)
    _clear(run, prefix)
    verdicts = list(_judge(load, measured))
    well = all(line.startswith("PASS") for line in verdicts)
    sys.stdout.write("\n".join([*verdicts, "PASS" if well else "FAIL"]) + "\n")
    return 0 if well else 1


def _judge(load: Load, measured: Measured) -> Iterator[str]:
    """One line for each measure; those that are good begin with PASS."""
    if measured.errors:
        yield "FAIL: too many errors"
        for error in sorted(set(measured.errors)):
            yield f"FAIL: ERROR({error}) -> {measured.errors.count(error)}"
        if not measured.took:
            return
    rate, slowest, deviation = measured.rate, max(measured.took), measured.deviation_s
    good = (rate >= RATE_MIN * load.amount, slowest <= SLOWEST_SECONDS_MAX, deviation <= DEVIATION_SECONDS_MAX)
    yield f"PASS: Throughput is {rate:.0f} writes/s" if good[0] else f"FAIL: Throughput too low: {rate:.0f} writes/s"
    yield f"PASS: Slowest request took {slowest:f}s" if good[1] else f"Slowest request took too long: {slowest:f}s"
    yield f"PASS: Stddev is {deviation:f}s" if good[2] else f"Stddev too high: {deviation:f}s"
    if not all(good) and measured.cpu_s / measured.wall_s > BUSY:
        sys.stderr.write("this client was busy all the time: the cluster may be faster than it can find out\n")


def check_datascale(run: Run) -> int:
    load = _load(run, SCALE)
    prefix = _empty(run)
    before = _resident_bytes(run)
    sys.stdout.write(
        f"Start data scale check for work load [{load.amount} key-value pairs, {VALUE_BYTES} bytes per key-value, "
        f"{load.clients} concurrent clients].\n"
    )
    sys.stdout.flush()
    measured = _put(run.client, prefix, load)
    used = (_resident_bytes(run) - before) / (1 << 20)
    _clear(run, prefix)
    if measured.errors:
        sys.stdout.write(f"FAIL: ERROR({measured.errors[0]}) -> {len(measured.errors)}\n")
        return 1
    sys.stdout.write(f"PASS: Approximate system memory used : {max(0.0, used):.2f} MB.\n")
    return 0


def _load(run: Run, loads: dict[str, Load]) -> Load:
    load = loads.get(ALIASES.get(run.load, run.load))
    if load is None:
        raise Failure(f"unknown load option {run.load}", BAD_FEATURE, "it is s, m, l or xl")
    return load


def _empty(run: Run) -> bytes:
    """The prefix, under which there must be nothing yet."""
    prefix = os.fsencode(run.prefix)
    found = run.client("KV/Range", repeat=True, limit=1, **_all(prefix))
    if found.kvs:
        raise Failure(f'prefix "{run.prefix}" has keys. Delete with \'etcdctl del --prefix {run.prefix}\' first',
                      INVALID_INPUT, "or give another --prefix")  # fmt: skip
    return prefix


def _all(prefix: bytes) -> dict[str, bytes]:
    return {"key": prefix or b"\0", "range_end": text.prefix_end(prefix)}


def _put(client: Client, prefix: bytes, load: Load, *, seconds: float = 0.0) -> Measured:
    """Put random keys from several connections: `load.amount` of them, or if `seconds` are given, as many in each."""
    took: list[float] = []
    errors: list[str] = []
    total = int(load.amount * (seconds or 1.0))
    numbers = iter(range(total))
    lock = threading.Lock()
    began = time.monotonic()
    cpu = time.process_time()
    value = os.urandom(VALUE_BYTES // 2).hex().encode()

    def work(mine: Client) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            if seconds:
                time.sleep(max(0.0, began + number / load.amount - time.monotonic()))
                if time.monotonic() > began + seconds:
                    return
            start = time.monotonic()
            try:
                mine("KV/Put", key=prefix + random.randbytes(KEY_BYTES // 2).hex().encode(), value=value)
            except (CallError, Failure) as error:
                with lock:
                    errors.append(str(error))
            else:
                with lock:
                    took.append(time.monotonic() - start)

    clients = min(load.clients, THREADS_MAX)
    threads = [threading.Thread(target=work, args=(client.again(),), daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    _follow(threads, lambda: len(took) + len(errors), total)
    return Measured(took, errors, time.monotonic() - began, time.process_time() - cpu)


def _follow(threads: list[threading.Thread], done: Callable[[], int], total: int) -> None:
    """Wait for the threads; on a terminal say how far they are."""
    shows = sys.stderr.isatty()
    while any(thread.is_alive() for thread in threads):
        if shows:
            sys.stderr.write(f"\r {done()} / {total} ")
            sys.stderr.flush()
        for thread in threads:
            thread.join(0.2)
            if thread.is_alive():
                break
    if shows:
        sys.stderr.write("\n")


def _clear(run: Run, prefix: bytes) -> None:
    client = run.client
    answer = client("KV/DeleteRange", timeout_s=max(client.timeout_s, PERF_SECONDS), **_all(prefix))
    if run.auto_compact:
        revision = answer.header.revision
        sys.stdout.write(f"Compacting with revision {revision}\n")
        client("KV/Compact", revision=revision, physical=True, timeout_s=max(client.timeout_s, PERF_SECONDS))
        sys.stdout.write(f"Compacted with revision {revision}\n")
    if run.auto_defrag:
        for endpoint in client.endpoints:
            quoted = text.quoted(endpoint.text.encode())
            sys.stdout.write(f"Defragmenting {quoted}\n")
            client.to(endpoint.text)("Maintenance/Defragment", timeout_s=max(client.timeout_s, 10 * PERF_SECONDS))
            sys.stdout.write(f"Defragmented {quoted}\n")


def _resident_bytes(run: Run) -> float:
    """The memory of the first endpoint's process, as its metrics tell."""
    import urllib.error
    import urllib.request

    endpoint = run.client.endpoints[0]
    secure = endpoint.text.startswith("https://") or ("://" not in endpoint.text and endpoint.tls.wanted)
    url = endpoint.text if "://" in endpoint.text else ("https://" if secure else "http://") + endpoint.text
    context: Any = endpoint.tls.context() if secure else None
    if context is not None:
        context.set_alpn_protocols(["http/1.1"])
    try:
        with urllib.request.urlopen(url + "/metrics", timeout=run.client.timeout_s, context=context) as answer:  # noqa: S310
            for line in answer.read(4 << 20).decode("utf-8", "replace").splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    return float(line.split()[1])
    except (OSError, ValueError) as error:
        raise Failure(f"the metrics of {url} cannot be read: {error}") from None
    raise Failure(f"{url}/metrics does not tell the memory of the process")
