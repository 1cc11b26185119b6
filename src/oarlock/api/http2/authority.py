"""Lets in clients that put a URL where HTTP/2 wants an authority.

etcdctl 3.4 with `--endpoints http://host:port` sends `:authority: http://host:port`, and etcd takes it. libnghttp2
refuses the whole request, and cannot be told otherwise. So the first header block of a connection is looked at before
the engine sees it: where its authority is fine, which is everywhere else, the bytes go by untouched from then on.
Where it is not, every header block of that connection is decoded, mended and encoded again, for header compression is
one state from the first block to the last.
"""

from __future__ import annotations

import hpack

from oarlock.api.http2.engine import ConnectionFailed

PREFACE_BYTES = 24
FRAME_HEAD_BYTES = 9
FRAME_BYTES_MAX = 16_384  # we never announce more, so no peer may send more (RFC 9113 4.2)
HEADER_BLOCK_BYTES_MAX = 64 * 1024  # compressed, over all its CONTINUATION frames
HEADERS, CONTINUATION = 0x1, 0x9
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
_ILLEGAL = b"/?#"  # they end an authority in a URL (RFC 3986 3.2), so none can hold them


class AuthorityMender:
    """Stands before an engine and sees all that it is fed. Once `idle`, it need not be asked any more."""

    __slots__ = ("_block", "_block_flags", "_block_stream", "_decoder", "_encoder", "_held", "_preface", "_raw", "idle")

    def __init__(self, header_list_bytes_max: int) -> None:
        self.idle = False
        self._preface = PREFACE_BYTES  # bytes of it that are still to come
        self._held = b""  # an incomplete frame
        self._block = b""  # header block fragments until END_HEADERS
        self._block_flags = 0
        self._block_stream = 0  # 0: no header block is open
        self._raw: list[bytes] = []  # the frames that `_block` came in, for passing on as they were
        self._decoder = hpack.Decoder(max_header_list_size=header_list_bytes_max)
        self._encoder: hpack.Encoder | None = None  # there once an authority had to be mended

    def feed(self, data: bytes) -> bytes:
        """What the engine is to be fed in place of `data`. Raises `ConnectionFailed` for a header block that is not
        one."""
        out: list[bytes] = []
        if self._preface:
            head, data = data[: self._preface], data[self._preface :]
            self._preface -= len(head)
            out.append(head)
        held = self._held + data
        at = 0
        while not self.idle and len(held) - at >= FRAME_HEAD_BYTES:
            size = int.from_bytes(held[at : at + 3], "big")
            if size > FRAME_BYTES_MAX:
                self.idle = True  # the engine knows what to say to that
                break
            end = at + FRAME_HEAD_BYTES + size
            if len(held) < end:
                break
            self._frame(held[at:end], out)
            at = end
        if self.idle:
            out.extend(self._raw)
            self._raw = []
            out.append(held[at:])
            self._held = b""
        else:
            self._held = held[at:]
        return b"".join(out)

    def _frame(self, frame: bytes, out: list[bytes]) -> None:
        kind, flags = frame[3], frame[4]
        stream = int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF
        if kind == HEADERS and not self._block_stream:
            payload = _unpadded(frame[FRAME_HEAD_BYTES:], flags)
            if payload is None or not stream:
                self.idle = True  # malformed: the engine's business
                self._raw.append(frame)
                return
            self._block, self._block_flags, self._block_stream = payload, flags, stream
        elif kind == CONTINUATION and stream == self._block_stream:
            self._block += frame[FRAME_HEAD_BYTES:]
        elif self._block_stream:
            self.idle = True  # nothing may come between the frames of a header block
            self._raw.append(frame)
            return
        else:
            out.append(frame)
            return
        self._raw.append(frame)
        if len(self._block) > HEADER_BLOCK_BYTES_MAX:
            raise ConnectionFailed(f"a header block over {HEADER_BLOCK_BYTES_MAX} bytes")
        if flags & END_HEADERS:
            self._block_complete(out)

    def _block_complete(self, out: list[bytes]) -> None:
        raw, self._raw = self._raw, []
        block, self._block = self._block, b""
        stream, self._block_stream = self._block_stream, 0
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.HPACKError as error:
            if self._encoder is not None:
                raise ConnectionFailed(f"header compression: {error}") from error
            self.idle = True
            out.extend(raw)
            return
        mended = [(name, _mended(value) if name == b":authority" else value) for name, value in fields]
        if self._encoder is None:
            if mended == [(name, value) for name, value in fields]:
                self.idle = True
                out.extend(raw)
                return
            self._encoder = hpack.Encoder()
        payload = self._encoder.encode(mended)
        keep = self._block_flags & ~(PADDED | PRIORITY | END_HEADERS)
        for at in range(0, len(payload), FRAME_BYTES_MAX):
            part = payload[at : at + FRAME_BYTES_MAX]
            last = END_HEADERS if at + FRAME_BYTES_MAX >= len(payload) else 0
            kind, flags = (HEADERS, keep | last) if at == 0 else (CONTINUATION, last)
            out.append(len(part).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + part)


def _unpadded(payload: bytes, flags: int) -> bytes | None:
    """The header block fragment of a HEADERS frame; None if its padding or priority do not fit."""
    padding = 0
    if flags & PADDED:
        if not payload:
            return None
        padding, payload = payload[0], payload[1:]
    if flags & PRIORITY:
        if len(payload) < 5:
            return None
        payload = payload[5:]
    if padding > len(payload):
        return None
    return payload[: len(payload) - padding]


def _mended(authority: bytes) -> bytes:
    """`host:port` out of `scheme://host:port/path`; what has none of these comes back as it is.

    >>> _mended(b"http://127.0.0.1:2379"), _mended(b"127.0.0.1:2379")
    (b'127.0.0.1:2379', b'127.0.0.1:2379')
    """
    _, scheme_end, rest = authority.partition(b"://")
    host = rest if scheme_end else authority
    for position, byte in enumerate(host):
        if byte in _ILLEGAL:
            return host[:position]
    return host
