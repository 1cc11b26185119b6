"""The pytest plug-in: options for `@simulated` tests, and the fixture `cluster`.

pytest imports it in every run, so it imports nothing of ours until it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from oarlock.testing.cluster import Cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oarlock", "simulated tests of state machines")
    group.addoption(
        "--oarlock-seeds",
        type=int,
        default=None,
        metavar="N",
        help="Try N seeds in each @simulated test, whatever it says.",
    )
    group.addoption(
        "--oarlock-seed", type=int, default=None, metavar="S", help="Run this one seed of @simulated tests."
    )
    group.addoption("--oarlock-replay", default=None, metavar="FILE", help="Run this replay file instead of seeds.")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """`cluster(machine, members=3)` starts real members of a machine of yours: sockets on free ports of this host,
    data in `tmp_path`. They are gone when the test ends. (oarlock.testing.Cluster)"""
    from oarlock.testing.cluster import Cluster

    with ExitStack() as stack:
        count = 0

        def start(machine: Callable[[], Any], members: int = 3, **options: Any) -> Cluster:
            nonlocal count
            count += 1
            return stack.enter_context(Cluster(machine, members, directory=tmp_path / f"cluster{count}", **options))

        yield start
