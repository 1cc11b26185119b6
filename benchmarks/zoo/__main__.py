"""`python -m benchmarks.zoo`, which `make zoo` runs: hunt entries, print the table, write it into the docs."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.zoo import report
from benchmarks.zoo.catalogue import chosen
from benchmarks.zoo.hunt import baseline, hunt_all

BUDGET = 400


def main() -> None:
    parser = argparse.ArgumentParser(prog="make zoo ARGS=...", description=__doc__)
    parser.add_argument("--budget", type=int, default=BUDGET, help="seeds for each entry (%(default)s)")
    parser.add_argument("--only", nargs="*", default=[], metavar="ID", help="these entries only (BZ-44 BZ-65 ...)")
    parser.add_argument("--jobs", type=int, default=2, help="entries at the same time (%(default)s)")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the seeds on the unchanged source")
    parser.add_argument("--no-write", action="store_true", help="leave the recorded results and the page alone")
    arguments = parser.parse_args()
    entries = chosen(arguments.only)
    results = report.load()
    began = time.monotonic()
    fresh = {}
    for result in hunt_all(entries, arguments.budget, arguments.jobs):
        fresh[result.id] = results.results[result.id] = result
        print(report.line(result), flush=True)
        if not arguments.no_write:
            report.save(results)  # what was found so far outlives whatever stops this
    print()
    bad = [result.id for result in fresh.values() if not report.as_it_should(result)]
    if not arguments.no_baseline:
        clean = baseline(max(result.seeds for result in fresh.values()))
        results.baseline = clean
        print(f"unchanged source, {clean.seeds} seeds: {clean.what or 'every invariant held'} ({clean.seconds} s)")
        if clean.invariant or clean.unproven:
            bad.append("the unchanged source")
    print(report.summary(results))
    print(f"{time.monotonic() - began:.0f} s")
    if not arguments.no_write:
        report.save(results)
    if bad:
        sys.exit(f"not as it should be: {', '.join(bad)}")


if __name__ == "__main__":
    main()
