"""Loads the compiled schema (`schema.bin`, made by `tools/build_protos.py`) into a private descriptor pool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory

SCHEMA_FILES = (
    "kv.proto",
    "auth.proto",
    "version.proto",
    "rpc.proto",
    "v3lock.proto",
    "v3election.proto",
    "health.proto",
)


COMPILED = os.path.join(os.path.dirname(__file__), "schema.bin")


def _files(compiled: bytes) -> Iterator[bytes]:
    """The files of a FileDescriptorSet, still compiled: its one field is number 1, repeated.

    Split by hand, because the library's own class for it takes longer to load than a short-lived program has.
    """
    at = 0
    while at < len(compiled):
        assert compiled[at] == 0x0A, f"byte {at} of {COMPILED} does not begin a file: build it again"
        at += 1
        size = shift = 0
        while True:
            byte = compiled[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield compiled[at : at + size]
        at += size


def _load() -> Any:
    with open(COMPILED, "rb") as file:
        compiled = file.read()
    private = descriptor_pool.DescriptorPool()
    for one in _files(compiled):
        private.AddSerializedFile(one)
    return private


def _parsed() -> Any:
    from google.protobuf import descriptor_pb2

    with open(COMPILED, "rb") as file:
        return descriptor_pb2.FileDescriptorSet.FromString(file.read())


pool = _load()


@cache
def message(full_name: str) -> Any:
    """The class of the message called `full_name`. Raises `KeyError` for an unknown name."""
    descriptor = pool.FindMessageTypeByName(full_name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


def services() -> dict[str, dict[str, tuple[bool, bool]]]:
    """Every service by full name: its methods, each with (the client streams, the server streams)."""
    found: dict[str, dict[str, tuple[bool, bool]]] = {}
    for file in _parsed().file:
        for service in file.service:
            found[f"{file.package}.{service.name}"] = {
                m.name: (m.client_streaming, m.server_streaming) for m in service.method
            }
    return found


def rpcs() -> dict[tuple[str, str], tuple[str, str, bool, bool]]:
    """Every RPC by service and name: its request and response by full name, (the client streams, the server
    streams)."""
    found: dict[tuple[str, str], tuple[str, str, bool, bool]] = {}
    for file in _parsed().file:
        for service in file.service:
            for m in service.method:
                found[f"{file.package}.{service.name}", m.name] = (
                    m.input_type.lstrip("."), m.output_type.lstrip("."), m.client_streaming, m.server_streaming,
                )  # fmt: skip
    return found
