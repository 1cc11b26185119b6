"""gRPC status codes, and how a status travels in trailers."""

from __future__ import annotations

from enum import IntEnum

MESSAGE_CHARACTERS_MAX = 4096  # of a status text; some clients refuse trailers over 8 KiB


class Code(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """Raised by a handler to end its call with a status."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def encode_message(text: str) -> bytes:
    """A status text as the `grpc-message` trailer carries it: printable ASCII but "%" as it is, every other byte of the
    UTF-8 encoding as %XX.

    >>> encode_message("50% of caf\\u00e9")
    b'50%25 of caf%C3%A9'
    """
    raw = text[:MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace")
    if raw.isascii() and b"%" not in raw and raw.decode("ascii").isprintable():
        return raw
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x25 else f"%{b:02X}" for b in raw).encode("ascii")


def status_trailers(code: Code, text: str) -> tuple[tuple[bytes, bytes], ...]:
    """The trailers of a call that ended with `code`."""
    return ((b"grpc-status", str(int(code)).encode("ascii")), (b"grpc-message", encode_message(text)))
