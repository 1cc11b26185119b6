"""How long oarlockctl takes, as a median of many runs: `python tools/time_oarlockctl.py [ENDPOINT] [RUNS]`.

A `get` of one key needs a member at ENDPOINT (127.0.0.1:2379); `version` asks nobody. For comparison, an interpreter
that does nothing.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

CALL = "import oarlock.ctl; oarlock.ctl.main()"


def measure(words: list[str], runs: int) -> str:
    wall, cpu = [], []
    for _ in range(runs):
        before, began = processor_seconds(), time.perf_counter()
        done = subprocess.run([sys.executable, "-c", *words], stdout=subprocess.DEVNULL, check=False)  # noqa: S603
        wall.append(time.perf_counter() - began)
        cpu.append(processor_seconds() - before)
        if done.returncode:
            sys.exit(f"{words[1:]} ended with {done.returncode}")
    shown = [f"{1000 * seconds:.0f} ms" for seconds in (statistics.median(wall), min(wall), statistics.median(cpu))]
    return "median {}, best {}, of the processor {}".format(*shown)


def processor_seconds() -> float:
    """What all children have taken so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    endpoint = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2379"
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    for name, words in (
        ("an interpreter", ["pass"]),
        ("oarlockctl version", [CALL, "version"]),
        ("oarlockctl get", [CALL, f"--endpoints={endpoint}", "get", "key"]),
    ):
        sys.stdout.write(f"{name}: {measure(words, runs)} ({runs} runs)\n")


if __name__ == "__main__":
    main()
