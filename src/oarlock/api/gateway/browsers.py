"""What pages in a browser may do here: cross-origin requests (CORS), as etcd's `--cors` has them.

Stands before the whole HTTP/1.1 side. The Host check against DNS rebinding stands beside it (CVE-2018-1098, -1099).
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from oarlock.api.gateway.application import Application, Receive, Scope, Send

_METHODS: Final = (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE")
_HEADERS: Final = (b"access-control-allow-headers", b"accept, content-type, authorization")


class CrossOrigin:
    """`origins` may read answers, `*` stands for all, none for nobody. Unless it is all, a request that a page of
    another origin sends is refused: that the page does not see the answer would not undo a write."""

    def __init__(self, application: Application, origins: Iterable[str]) -> None:
        self._application = application
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._any = b"*" in self._origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        allowed: tuple[tuple[bytes, bytes], ...] = ()
        if self._any:
            allowed = ((b"access-control-allow-origin", b"*"), _METHODS, _HEADERS)
        elif origin is not None:
            if origin in self._origins:
                allowed = (
                    (b"access-control-allow-origin", origin), (b"vary", b"Origin"), _METHODS, _HEADERS,
                )  # fmt: skip
            elif not _is_of(origin, headers.get(b"host", b"")):
                await _short(send, 403, b"this origin is not in --cors\n")
                return
        if scope["method"] == "OPTIONS":
            await _short(send, 200, b"", allowed)
            return

        async def send_with_headers(event: MutableMapping[str, Any]) -> None:
            if allowed and event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", []), *allowed]
            await send(event)

        await self._application(scope, receive, send_with_headers)


def _is_of(origin: bytes, host: bytes) -> bool:
    """Whether a page of `origin` came from the host that it asks.

    >>> _is_of(b"http://a:1", b"a:1"), _is_of(b"null", b""), _is_of(b"http://[", b"[")
    (True, False, False)
    """
    try:
        netloc = urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return False
    return netloc != "" and netloc.encode("latin-1") == host


async def _short(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body})
