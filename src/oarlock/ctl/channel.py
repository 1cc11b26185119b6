"""One unary gRPC call over a blocking socket: what a program needs that asks once and ends.

h2 does the framing; the socket's timeout bounds every wait, and the deadline the whole call.
"""

from __future__ import annotations

import socket
import time
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from oarlock.api import proto

RESPONSE_BYTES_MAX = 1 << 31  # etcdctl accepts answers up to 2 GiB
READ_BYTES = 65536


class CallError(Exception):
    """The call failed; the text is the server's, or says what happened to the connection."""


def unary(endpoint: str, rpc: str, request: Any, timeout: float, dial_timeout: float) -> Any:
    """The answer of `rpc` ("KV/Range") from "host:port"; both timeouts in seconds. Raises `CallError`."""
    host, _, port = endpoint.rpartition(":")
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection((host.strip("[]"), int(port)), min(dial_timeout, timeout)) as sock:
            body, trailers = _exchange(sock, endpoint, rpc, request.SerializeToString(), deadline)
    except TimeoutError:
        raise CallError("context deadline exceeded") from None
    except (OSError, ValueError, h2.exceptions.ProtocolError) as error:
        raise CallError(f"{endpoint}: {error}") from None
    if trailers.get("grpc-status") != "0":
        raise CallError(unquote(trailers.get("grpc-message", "")) or f"{endpoint}: the call ended without a status")
    if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise CallError(f"{endpoint}: the answer is not one gRPC message")
    answer = proto.message(request.DESCRIPTOR.full_name.removesuffix("Request") + "Response")
    return answer.FromString(bytes(body[5:]))


def _exchange(
    sock: socket.socket, endpoint: str, rpc: str, message: bytes, deadline: float
) -> tuple[bytearray, dict[str, str]]:
    """Send one request, collect the body and every header of the answer."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", f"/etcdserverpb.{rpc}"), (":authority", endpoint)]
    connection.send_headers(1, [*headers, ("content-type", "application/grpc"), ("te", "trailers")])
    rest = b"\0" + len(message).to_bytes(4, "big") + message
    body, seen, ended, sent = bytearray(), dict[str, str](), False, False
    while not ended:
        while not sent and (room := min(connection.local_flow_control_window(1), connection.max_outbound_frame_size)):
            part, rest = rest[:room], rest[room:]
            sent = not rest
            connection.send_data(1, part, end_stream=sent)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        sock.sendall(connection.data_to_send())
        received = sock.recv(READ_BYTES)
        if not received:
            raise ConnectionError("the server closed the connection")
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                seen.update((str(name), str(value)) for name, value in event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                body += event.data or b""
                connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                if len(body) > RESPONSE_BYTES_MAX:
                    raise ConnectionError("the answer is too long")
            elif isinstance(event, h2.events.StreamEnded):
                ended = True
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise ConnectionError("the server ended the call")
    return body, seen
