"""What a simulation fails with. Apart from the rest because these two are assertions for whoever catches them, and a
compiled class cannot be one."""

from __future__ import annotations


class Violation(AssertionError):
    """An invariant does not hold. `name` is its short name."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


class DoesNotSettle(AssertionError):
    """Messages and completions did not run out within `PUMP_STEPS_MAX` steps."""
