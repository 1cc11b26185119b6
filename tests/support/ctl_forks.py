"""Runs command lines of oarlockctl in forks of one process that has everything loaded: a test runs hundreds.

A job is a line of JSON on stdin: the words, files for stdin, stdout and stderr, further environment. Its answer is the
exit code on a line, minus a signal's number for one.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback
from typing import Any

import oarlock.ctl
from oarlock.ctl.app import main


def child(job: dict[str, Any]) -> int:
    for number, (name, flags) in enumerate((("in", os.O_RDONLY), ("out", os.O_WRONLY), ("err", os.O_WRONLY))):
        descriptor = os.open(job[name], flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
    os.environ.update(job["environment"])
    sys.argv = ["oarlockctl", *job["words"]]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    for module in pkgutil.iter_modules(oarlock.ctl.__path__):
        if module.name not in ("snapshot", "reference"):
            importlib.import_module(f"oarlock.ctl.{module.name}")
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(child(job))
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
