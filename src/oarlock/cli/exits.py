"""Exit codes of all commands. (docs/reference/cli.md)"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    CLEAN = 0
    CONFIGURATION = 1  # the command line, the environment, a configuration file, or an optional package is wrong
    STORAGE = 2  # the disk failed, is full, or holds what it must not hold
    ADDRESS = 3  # an address could not be listened on
    HALTED = 4  # the member had to stop: it was removed, or found a state that must not be
    UNCLEAN = 5  # stopping took longer than --shutdown-timeout, or was cut short by a second signal
    INTERNAL = 70  # a bug; the traceback is on stderr
    INTERRUPTED = 130  # Ctrl-C in a command other than serve


MEANINGS: dict[Exit, str] = {
    Exit.CLEAN: "done; `serve` was stopped by a signal and closed everything",
    Exit.CONFIGURATION: "the command line, the environment, a configuration file or a missing optional package",
    Exit.STORAGE: "the disk failed, is full, is in use by another process, or holds what it must not hold",
    Exit.ADDRESS: "an address could not be listened on",
    Exit.HALTED: "the member had to stop: it was removed from the cluster, or found a state that must not be",
    Exit.UNCLEAN: "stopping took longer than `--shutdown-timeout`, or a second signal cut it short; no data is lost",
    Exit.INTERNAL: "an internal error; the traceback is on stderr",
    Exit.INTERRUPTED: "interrupted by Ctrl-C (commands other than `serve`)",
}
