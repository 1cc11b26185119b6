"""Loads the compiled schema (`schema.bin`, made by `tools/build_protos.py`) into a private descriptor pool."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SCHEMA_FILES = (
    "kv.proto",
    "auth.proto",
    "version.proto",
    "rpc.proto",
    "v3lock.proto",
    "v3election.proto",
    "health.proto",
)


def _load() -> Any:
    compiled = descriptor_pb2.FileDescriptorSet()
    compiled.ParseFromString(files("oarlock.api.proto").joinpath("schema.bin").read_bytes())
    private = descriptor_pool.DescriptorPool()
    for file in compiled.file:
        private.Add(file) if not hasattr(private, "AddSerializedFile") else private.AddSerializedFile(
            file.SerializeToString()
        )
    return private


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
    compiled = descriptor_pb2.FileDescriptorSet()
    compiled.ParseFromString(files("oarlock.api.proto").joinpath("schema.bin").read_bytes())
    for file in compiled.file:
        for service in file.service:
            found[f"{file.package}.{service.name}"] = {
                m.name: (m.client_streaming, m.server_streaming) for m in service.method
            }
    return found


def rpcs() -> dict[tuple[str, str], tuple[str, str, bool, bool]]:
    """Every RPC by service and name: its request and response by full name, (the client streams, the server
    streams)."""
    found: dict[tuple[str, str], tuple[str, str, bool, bool]] = {}
    compiled = descriptor_pb2.FileDescriptorSet()
    compiled.ParseFromString(files("oarlock.api.proto").joinpath("schema.bin").read_bytes())
    for file in compiled.file:
        for service in file.service:
            for m in service.method:
                found[f"{file.package}.{service.name}", m.name] = (
                    m.input_type.lstrip("."), m.output_type.lstrip("."), m.client_streaming, m.server_streaming,
                )  # fmt: skip
    return found
