"""Decide from the outside whether what clients saw could have come from one machine that answers one request at a time.

A history (what each client asked, when, and what it was told) goes in, a verdict comes out: linearizable or not, and if
not, the operations that have no place. Nothing here knows Raft, reads a clock or opens a socket, so the checker shares
no code with what it checks and works for any store. Public names:

- `Operation`, `UNKNOWN`, `Recorder`: a history, and a thread-safe way to write one down while clients run;
- `Register`, `KeyValue`: models of a register with compare-and-set and of a store with append; `Model` to write
  another;
- `check_linearizable`, `Verdict`, `Violation`: the decision;
- `parse_jsonl`, `dump_jsonl`: histories as JSON Lines; `parse_jepsen_register`, `parse_kv_history`: two text formats in
  which histories are published;
- `explain`, `Explanation`, `violation_page`: why there is no order, in sentences and as a picture (HTML).
"""

from oarlock.check.explain import Explanation, explain
from oarlock.check.history import UNKNOWN, Operation, Recorder, Unknown
from oarlock.check.jsonl import dump_jsonl, parse_jsonl
from oarlock.check.linearizability import (
    CONFIGURATIONS_MAX,
    CheckTooLarge,
    Verdict,
    Violation,
    check_linearizable,
)
from oarlock.check.models import (
    IMPOSSIBLE,
    Append,
    Cas,
    Get,
    Impossible,
    KeyValue,
    Model,
    Put,
    Read,
    Register,
    Swap,
    Write,
)
from oarlock.check.parse import MalformedHistory, parse_jepsen_register, parse_kv_history
from oarlock.check.picture import violation_page
from oarlock.check.watch import (
    EventHistory,
    WatchAnswer,
    WatchChecker,
    WatchedEvent,
    WatchRequest,
    WatchViolation,
    check_watch,
)

__all__ = [
    "CONFIGURATIONS_MAX",
    "IMPOSSIBLE",
    "UNKNOWN",
    "Append",
    "Cas",
    "CheckTooLarge",
    "Get",
    "Impossible",
    "KeyValue",
    "MalformedHistory",
    "Model",
    "Operation",
    "Put",
    "Read",
    "Recorder",
    "Register",
    "Swap",
    "Unknown",
    "Verdict",
    "Violation",
    "Write",
    "EventHistory",
    "WatchAnswer",
    "WatchChecker",
    "WatchRequest",
    "WatchViolation",
    "WatchedEvent",
    "check_linearizable",
    "check_watch",
    "Explanation",
    "dump_jsonl",
    "explain",
    "parse_jsonl",
    "violation_page",
    "parse_jepsen_register",
    "parse_kv_history",
]
