"""What all tests share: everything under tests/system starts real processes, so it is marked and runs on one worker."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from oarlock.cli.local_cluster import share_ports
from oarlock.cli.version import compiled

TESTS = Path(__file__).parent

# A shell that runs something in the background has it ignore SIGINT, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The workers of a parallel run choose ports at the same time.
share_ports(
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)
PATCHES = pytest.mark.skip(reason="replaces what a compiled module does not look up again")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup` one worker runs the system tests, one after the other and from the beginning, while the
    others run the rest: members of two tests at once would make each other slow, and many tests know nothing better to
    do than wait for them.

    xdist groups by a mark, which it writes into a test's id; pytest 9 lets nobody change that. So it is done by name.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class SystemTestsApart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            """Tests of one scope go to one worker together; the scope with the most tests goes first."""
            if nodeid.startswith("tests/system/"):
                return "system"
            file, *classes, name = nodeid.split("::")
            return "::".join([file, *classes]) if classes else f"{file}::{name}"  # a class shares what it has set up

    return SystemTestsApart(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark system tests."""
    for item in items:
        if item.path.is_relative_to(TESTS / "system"):
            item.add_marker(pytest.mark.system)
        if compiled() and item.get_closest_marker("interpreted") is not None:
            item.add_marker(PATCHES)
