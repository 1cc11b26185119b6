"""The program that runs seeds on whatever `oarlock` is on its path: one line of JSON for each seed, on stdout.

    python -O -m benchmarks.zoo.arena --start 0 --seeds 200
    python -O -m benchmarks.zoo.arena --scope

It stops at the first seed in which an invariant fires. With asserts off (`-O`) what fires is the simulator's own. A
seed that ends in an exception is reported and proves nothing: the hunt goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import time
from types import FrameType

from oarlock.sim.scopes.wal import explore_crashes
from oarlock.sim.world import run_seed

SEED_SECONDS_MAX = 120
NO_PROOF = ("ASSERT", "CRASH", "error", "hang")
"""How a seed may end without proving anything: the defect's own exceptions, and a process that does not come back."""


class Hang(BaseException):
    """A seed takes too long. Not an `Exception`, so that nothing on the way takes it for one."""


def _hang(signum: int, frame: FrameType | None) -> None:
    raise Hang


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scope", action="store_true", help="the scope of the log instead of seeds")
    parser.add_argument("--all", action="store_true", help="go on after a violation")
    arguments = parser.parse_args()
    if arguments.scope:
        report = explore_crashes(second=False)
        print(json.dumps({"seed": 0, "invariant": report.invariant, "what": report.violation[:400], "digest": ""}))
        return
    signal.signal(signal.SIGALRM, _hang)
    gc.freeze()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        began = time.monotonic()
        signal.alarm(SEED_SECONDS_MAX)
        digest = ""
        try:
            outcome = run_seed(seed)
            invariant, what, digest = outcome.invariant, outcome.what, outcome.digest
        except Hang:
            invariant, what = "hang", f"not done after {SEED_SECONDS_MAX} s"
        except Exception as error:  # whatever the planted defect does to the simulator itself
            invariant, what = "error", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        line = {"seed": seed, "invariant": invariant, "what": what[:400], "digest": digest}
        try:
            print(json.dumps({**line, "seconds": round(time.monotonic() - began, 3)}), flush=True)
        except BrokenPipeError:  # whoever asked knows enough
            os._exit(0)
        if invariant and invariant not in NO_PROOF and not arguments.all:
            break


if __name__ == "__main__":
    main()
