"""A Python program with plain grpcio: put, get, and an atomic counter by compare-and-swap.

    python examples/python_client.py 127.0.0.1:2379

It works against Oarlock and etcd alike. The message classes are those that Oarlock ships in its `server` extra; classes
generated from etcd's own .proto files do as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import grpc

from oarlock.api.proto import message

COUNTER = b"counter"


class KV:
    """The calls of etcd's KV service that this program makes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.range = self._call(channel, "Range", "RangeRequest", "RangeResponse")
        self.put = self._call(channel, "Put", "PutRequest", "PutResponse")
        self.txn = self._call(channel, "Txn", "TxnRequest", "TxnResponse")

    @staticmethod
    def _call(channel: grpc.Channel, name: str, request: str, response: str) -> Callable[..., Any]:
        made = message(f"etcdserverpb.{request}")
        call = channel.unary_unary(
            f"/etcdserverpb.KV/{name}",
            request_serializer=made.SerializeToString,
            response_deserializer=message(f"etcdserverpb.{response}").FromString,
        )
        # a member that just started may still be looking for the leader: wait for it instead of failing
        return lambda **fields: call(made(**fields), timeout=10, wait_for_ready=True)


def add_one(kv: KV) -> int:
    """Increment the counter; try again as often as somebody else was faster."""
    while True:
        found = kv.range(key=COUNTER).kvs
        old = int(found[0].value) if found else 0
        unchanged = message("etcdserverpb.Compare")(
            key=COUNTER, target="MOD", result="EQUAL", mod_revision=found[0].mod_revision if found else 0
        )
        write = message("etcdserverpb.RequestOp")(request_put={"key": COUNTER, "value": str(old + 1).encode()})
        if kv.txn(compare=[unchanged], success=[write]).succeeded:
            return old + 1


def main() -> None:
    endpoint = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2379"
    with grpc.insecure_channel(endpoint) as channel:
        kv = KV(channel)
        print("revision", kv.put(key=b"greeting", value=b"hello").header.revision)
        for pair in kv.range(key=b"greeting").kvs:
            print(pair.key.decode(), "=", pair.value.decode())
        print("counter", [add_one(kv) for _ in range(3)])


if __name__ == "__main__":
    main()
