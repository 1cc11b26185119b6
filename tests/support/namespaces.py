"""Hosts in network namespaces of their own, joined by a bridge, between which single directions can be cut.

A cut loses packets in silence, as a broken switch does: the sender's neighbour table points to an address that nobody
has. Nothing else of the machine is touched, and `close` removes everything. Needs root and `ip` (iproute2).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

NOBODY: Final = "02:00:00:00:00:01"
OUTSIDE: Final = ""
"""The name of the machine itself, where the clients are."""


def not_permitted(directory: Path) -> str:
    """Why namespaces and a small file system in `directory` cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: iproute2, util-linux)"
    probe = f"oarprobe{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("link", "add", f"obp{os.getpid() % 10**9}", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"network namespaces and bridges cannot be made here: {error.stderr.strip()}"
    finally:
        for command in (["netns", "del", probe], ["link", "del", f"obp{os.getpid() % 10**9}"]):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*command)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        return f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}"
    subprocess.run(["umount", str(directory)], check=True)
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """One host for each of `names`, numbered from 1 within a /24 of its own."""

    def __init__(self, names: Sequence[str]) -> None:
        tag = os.getpid() % 100_000
        self.names = list(names)
        self._bridge = f"ob{tag}"
        self._spaces = {name: f"oar{tag}-{name}" for name in names}
        self._links = {name: f"ov{tag}n{number}" for number, name in enumerate(names)}
        self._subnet = f"10.{213 + tag % 10}.{tag % 250}"
        self._addresses = {name: f"{self._subnet}.{number}" for number, name in enumerate(names, 1)}
        self._addresses[OUTSIDE] = f"{self._subnet}.254"
        self.cuts: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._addresses[OUTSIDE]}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for name in self.names:
                space, link = self._spaces[name], self._links[name]
                _ip("netns", "add", space)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", link, "master", self._bridge, "up")
                _ip("-n", space, "addr", "add", f"{self._addresses[name]}/24", "dev", "eth0")
                _ip("-n", space, "link", "set", "eth0", "up")
                _ip("-n", space, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for command in (
            *(["link", "del", link] for link in self._links.values()),
            *(["netns", "del", space] for space in self._spaces.values()),
            ["link", "del", self._bridge],
        ):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*command)

    def address(self, name: str) -> str:
        return self._addresses[name]

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command that is to run on that host."""
        return (shutil.which("nsenter") or "nsenter", f"--net=/run/netns/{self._spaces[name]}", "--")

    def cut(self, sender: str, receivers: Iterable[str]) -> None:
        """Lose what `sender` sends to `receivers` from now on; the other direction stays as it is."""
        for receiver in receivers:
            if receiver != sender:
                self._neighbour(sender, "replace", receiver, "lladdr", NOBODY, "nud", "permanent")
                self.cuts.add((sender, receiver))

    def part(self, ones: Sequence[str], others: Sequence[str]) -> None:
        """Cut both directions between every one of `ones` and every one of `others`."""
        for one in ones:
            self.cut(one, others)
        for other in others:
            self.cut(other, ones)

    def heal(self) -> None:
        """No direction is cut any more."""
        for sender, receiver in self.cuts:
            self._neighbour(sender, "del", receiver)
        self.cuts = set()

    def _neighbour(self, sender: str, verb: str, receiver: str, *more: str) -> None:
        where = ["-n", self._spaces[sender]] if sender else []
        device = "eth0" if sender else self._bridge
        _ip(*where, "neigh", verb, self._addresses[receiver], "dev", device, *more)
