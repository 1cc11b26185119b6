"""etcd's JSON gateway: RPCs as POST requests with JSON bodies, on the port of gRPC.

`paths` is the table of paths, `convert` JSON and messages, `application` the calls, `browsers` what pages may do,
`openapi` the description that is made from the table.
"""

from oarlock.api.gateway.application import Gateway
from oarlock.api.gateway.browsers import CrossOrigin
from oarlock.api.gateway.openapi import description
from oarlock.api.gateway.paths import bindings, stream_paths

__all__ = ["CrossOrigin", "Gateway", "bindings", "description", "stream_paths"]
