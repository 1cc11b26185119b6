"""etcd's messages: our own .proto text with etcd's public names and numbers, in a descriptor pool of our own.

`message("etcdserverpb.PutRequest")` is a message class; `messages` is a namespace of the ones the server uses most.
Nothing is registered globally, so any other etcd client can live in the same process.
"""

from oarlock.api.proto.pool import SCHEMA_FILES, message, pool, rpcs, services

__all__ = ["SCHEMA_FILES", "message", "pool", "rpcs", "services"]
