"""Telling systemd how the process does (`Type=notify`): one datagram to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Send `state` (such as `READY=1`); returns whether somebody was there to hear it.

    A service manager that does not listen is no reason to stop serving, so failures are logged and passed over.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1.0)
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("the service manager could not be told %s: %s", state.partition("\n")[0], error)
        return False
    return True
