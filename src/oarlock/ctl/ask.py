"""Asking a person, on stdin, for what must not show."""

from __future__ import annotations

import os
import sys

from oarlock.ctl.failures import bad_arguments


def secret(prompt: str) -> str:
    """A line from stdin without its end; a terminal does not show it."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    if not sys.stdin.isatty():
        typed = line()
        sys.stdout.write("\n")
        return typed
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = before[:]
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
        return line()
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        sys.stdout.write("\n")


def line() -> str:
    """One line, byte by byte: what follows belongs to whoever reads next."""
    found = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        found += byte
    return os.fsdecode(bytes(found))


def new_password(user: str) -> str:
    """Asks twice. Raises `Failure` if the answers differ."""
    first = secret(f"Password of {user}: ")
    second = secret(f"Type password of {user} again for confirmation: ")
    if first != second:
        raise bad_arguments("given passwords are different")
    return first
