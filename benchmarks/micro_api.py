"""CPU of the API alone: microseconds of server CPU per Put and per linearizable Range through gRPC, by h2load.

    python benchmarks/micro_api.py [--engine ngh2|h2] [--uvloop] [--requests 40000] [--rounds 5] [--profile OUT]

The server is one process with an in-memory machine that applies at once (tests/support/single_backend.py): no log,
no peers, no disk. CPU is what the kernel's scheduler counted for the server (user and system, all threads), so it
includes the socket calls. Rounds of the different loads are interleaved; the median is shown. `--profile` also
writes a py-spy profile of the last round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY, VALUE = b"k" * 16, b"v" * 256
PUT = b"\x0a\x10" + KEY + b"\x12\x80\x02" + VALUE
GET = b"\x0a\x10" + KEY
LOADS = {"1 connection x 64 streams": ("1", "64"), "64 connections x 1 stream": ("64", "1")}
CALLS = {"Put": PUT, "Range": GET}


def cpu_us(pid: int) -> float:
    """CPU time of all threads of a process so far, in microseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["ngh2", "h2"])
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", metavar="OUT")
    options = parser.parse_args()
    h2load = shutil.which("h2load")
    if h2load is None:
        print("h2load is not installed: it comes with nghttp2 (Debian: nghttp2-client)", file=sys.stderr)
        return 1
    command = [sys.executable, str(ROOT / "tests" / "support" / "single_backend.py")]
    command += ["--engine", options.engine] if options.engine else []
    command += ["--uvloop"] if options.uvloop else []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            cores = sorted(os.sched_getaffinity(0))
            if len(cores) > 1:
                os.sched_setaffinity(server.pid, cores[:1])
                os.sched_setaffinity(0, cores[1:])
            results: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for number in range(options.rounds + 1):
                for call, message in CALLS.items():
                    body = Path(directory) / call
                    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
                    for load, (connections, streams) in LOADS.items():
                        spy = None
                        if options.profile and number == options.rounds:
                            spy = subprocess.Popen(
                                [
                                    str(Path(sys.executable).with_name("py-spy")),
                                    "record",
                                    "-p",
                                    str(server.pid),
                                    "-r",
                                    "500",
                                    "-f",
                                    "raw",
                                    "-o",
                                    f"{options.profile}.{call}.{connections}x{streams}",
                                    "-d",
                                    "60",
                                ],
                                stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL,
                            )
                        before = cpu_us(server.pid)
                        done = subprocess.run(
                            [
                                h2load,
                                "-n",
                                str(options.requests),
                                "-c",
                                connections,
                                "-m",
                                streams,
                                "-d",
                                str(body),
                                "-H",
                                "content-type: application/grpc",
                                "-H",
                                "te: trailers",
                                f"{url}/etcdserverpb.KV/{call}",
                            ],
                            capture_output=True,
                            text=True,
                            check=True,
                            timeout=300,
                        )
                        spent = (cpu_us(server.pid) - before) / options.requests
                        if spy is not None:
                            spy.send_signal(signal.SIGINT)
                            spy.wait(20)
                        if f"{options.requests} succeeded" not in done.stdout:
                            print(done.stdout, file=sys.stderr)
                            return 1
                        rate = float(done.stdout.partition("finished in ")[2].partition(", ")[2].partition(" req/s")[0])
                        if number:  # the first round warms up
                            results.setdefault((call, load), []).append((spent, rate))
            print(f"{'call':6} {'load':28} {'CPU us/request':>15} {'min':>6} {'requests/s':>11}")
            for (call, load), samples in results.items():
                spent = [s for s, _ in samples]
                print(
                    f"{call:6} {load:28} {statistics.median(spent):15.1f} {min(spent):6.1f} "
                    f"{statistics.median(r for _, r in samples):11.0f}"
                )
        finally:
            server.terminate()
            server.wait(10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
