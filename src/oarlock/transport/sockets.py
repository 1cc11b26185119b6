"""Addresses and sockets: URLs of peers, their resolution, listening, and the options of a connection."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from oarlock.errors import ConfigurationError
from oarlock.transport.limits import TransportLimits

LISTEN_BACKLOG: Final = 128


def parse_url(url: str) -> tuple[str, int, bool]:
    """Host, port and whether it is TLS, of `http://host:port` or `https://host:port`. Raises `ConfigurationError`.

    >>> parse_url("https://[::1]:2380")
    ('::1', 2380, True)
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"peer URL {url!r}: {error}") from error
    if (
        parts.scheme not in ("http", "https")
        or not host
        or port is None
        or parts.path not in ("", "/")
        or parts.username
    ):
        raise ConfigurationError(f"peer URL {url!r} must look like http://host:port or https://host:port")
    return host, port, parts.scheme == "https"


async def resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """The `(family, address)` pairs of a host. Numbers need no thread and no resolver."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    if number.version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]


def bind(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def tune(sock: socket.socket, limits: TransportLimits) -> None:
    """No delay for small writes, a dead host noticed, and little unsent in the kernel, where nothing can overtake."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(limits.tcp_user_timeout_s * 1000)),
        ("TCP_NOTSENT_LOWAT", limits.bulk_mark_bytes),
    ):
        if hasattr(socket, option):  # Linux has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
