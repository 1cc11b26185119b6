"""--discovery-srv: the endpoints that a domain's SRV records name.

The standard library has no resolver for these records, and one question with its answer is all that is needed.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Final

from oarlock.ctl.failures import Failure

RESOLV_CONF: Final = "/etc/resolv.conf"
SECONDS: Final = 3.0
ANSWER_BYTES_MAX: Final = 65535
SRV: Final = 33
TRUNCATED: Final = 0x0200
LABELS_MAX: Final = 128


class NoRecords(Exception):
    """The name has no SRV records, or nobody could be asked."""


def endpoints_of(domain: str, suffix: str, *, insecure: bool, resolv_conf: str = RESOLV_CONF) -> list[str]:
    """The URLs that the records name: secure ones first. Raises `Failure`."""
    found, wrong = [], []
    for scheme, service in (("https", "etcd-client-ssl"), ("http", "etcd-client")):
        if scheme == "http" and not insecure:
            continue
        name = f"_{service}{'-' + suffix if suffix else ''}._tcp.{domain}"
        try:
            found += [f"{scheme}://{host}:{port}" for _, _, port, host in sorted(records(name, resolv_conf))]
        except NoRecords as error:
            wrong.append(f"lookup {name}: {error}")
    if not found:
        raise Failure(f"dns lookup errors: {' and '.join(wrong)}", hint="or give --endpoints")
    return found


def records(name: str, resolv_conf: str) -> list[tuple[int, int, int, str]]:
    """Priority, weight, port and host of every record. Raises `NoRecords`."""
    reason = f"{resolv_conf} names no server"
    for server in _servers(resolv_conf):
        try:
            return list(_ask(server, name))
        except OSError as error:
            reason = f"{server[0]} does not answer: {error}"
        except (struct.error, IndexError, UnicodeError, ValueError) as error:
            reason = f"the answer of {server[0]} makes no sense: {error}"
    raise NoRecords(reason)


def _servers(resolv_conf: str) -> Iterator[tuple[str, int]]:
    try:
        with open(resolv_conf) as file:
            lines = file.readlines()
    except OSError as error:
        raise NoRecords(f"{resolv_conf}: {error.strerror}") from None
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address, _, port = words[1].partition("#")  # as some resolvers write another port
            yield address, int(port or 53)


def _ask(server: tuple[str, int], name: str) -> Iterator[tuple[int, int, int, str]]:
    number = secrets.randbelow(1 << 16)
    labels = name.rstrip(".").encode("idna" if not name.isascii() else "ascii").split(b".")
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name} is no domain name")
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack("!HH", SRV, 1)
    query = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + question
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(server)
        sock.send(query)
        answer = sock.recv(ANSWER_BYTES_MAX)
    if struct.unpack_from("!HH", answer)[1] & TRUNCATED:
        with socket.create_connection(server, SECONDS) as stream:
            stream.sendall(struct.pack("!H", len(query)) + query)
            (length,) = struct.unpack("!H", _exactly(stream, 2))
            answer = _exactly(stream, length)
    yield from _parse(answer, number)


def _exactly(stream: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = stream.recv(length - len(data))
        if not piece:
            raise ConnectionError("the connection was closed")
        data += piece
    return data


def _parse(answer: bytes, number: int) -> Iterator[tuple[int, int, int, str]]:
    got, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", answer)
    if got != number or not flags & 0x8000:
        raise ValueError("it is not the answer to our question")
    if flags & 0x000F:
        raise NoRecords("no such host" if flags & 0x000F == 3 else f"refused with code {flags & 0x000F}")
    at = 12
    for _ in range(questions):
        at = _name(answer, at)[1] + 4
    count = 0
    for _ in range(answers):
        at = _name(answer, at)[1]
        kind, _, _, length = struct.unpack_from("!HHIH", answer, at)
        at += 10
        if kind == SRV:
            priority, weight, port = struct.unpack_from("!HHH", answer, at)
            count += 1
            yield priority, weight, port, _name(answer, at + 6)[0]
        at += length
    if not count:
        raise NoRecords("no such host")


def _name(answer: bytes, at: int) -> tuple[str, int]:
    """A name that begins at `at`, and where what follows it begins."""
    labels: list[str] = []
    end = 0
    for _ in range(LABELS_MAX):
        length = answer[at]
        if length >= 0xC0:  # the rest stands elsewhere
            end = end or at + 2
            at = struct.unpack_from("!H", answer, at)[0] & 0x3FFF
        elif length:
            labels.append(answer[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
        else:
            return ".".join(labels), end or at + 1
    raise ValueError("a name has no end")
