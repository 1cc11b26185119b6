"""What all tests share: everything under tests/system starts real processes, so it is marked and runs on one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark system tests and put them into one group: `--dist loadgroup` then runs them one after the other."""
    for item in items:
        if item.path.is_relative_to(TESTS / "system"):
            item.add_marker(pytest.mark.system)
        if item.get_closest_marker("system") is not None:
            item.add_marker(pytest.mark.xdist_group("system"))
