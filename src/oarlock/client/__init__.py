"""A client for Oarlock's server and for any etcd v3: for asyncio (`Client`) and for threads (`client.sync.Client`).

Needs `pip install "oarlock[client]"`. Nothing is registered with protobuf globally: it lives beside any other client.
(docs/how-to/use-the-client.md)
"""

from oarlock.client.client import Client, Transaction
from oarlock.client.errors import (
    Compacted,
    DeadlineExceeded,
    EtcdError,
    FutureRevision,
    LeaseExpired,
    NotFound,
    PermissionDenied,
    TransactionConflict,
    Unauthenticated,
    Unavailable,
)
from oarlock.client.lease import Lease
from oarlock.client.model import Condition, Delete, Deleted, Event, Get, Key, KeyValue, Page, Put, Txn, TxnResult
from oarlock.client.recipes import Election, Leadership, Lock
from oarlock.client.watch import Watch
from oarlock.errors import Outcome

__all__ = [
    "Client", "Compacted", "Condition", "DeadlineExceeded", "Delete", "Deleted", "Election", "EtcdError", "Event",
    "FutureRevision", "Get", "Key", "KeyValue", "Leadership", "Lease", "LeaseExpired", "Lock", "NotFound", "Outcome",
    "Page", "PermissionDenied", "Put", "Transaction", "TransactionConflict", "Txn", "TxnResult", "Unauthenticated",
    "Unavailable", "Watch",
]  # fmt: skip
