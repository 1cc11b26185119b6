"""Bytes to messages of etcd's schema."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from oarlock.api.grpc import Code, RpcError


def parse(message_class: Any, data: bytes) -> Any:
    """The message in `data`. Raises `RpcError` as grpc-go would."""
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error
