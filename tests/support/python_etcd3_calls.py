"""The calls of python-etcd3 0.12, asked of a server: `python python_etcd3_calls.py PORT`.

Runs in an environment of its own, without pytest: every expectation is an assert.
"""

from __future__ import annotations

import io
import queue
import sys

import etcd3


def keys(client: etcd3.Etcd3Client) -> None:
    assert client.get("nothing") == (None, None)
    client.put("a/1", "one")
    client.put("a/2", "two")
    value, metadata = client.get("a/1")
    assert (value, metadata.key, metadata.version) == (b"one", b"a/1", 1)
    assert [value for value, _ in client.get_prefix("a/", sort_order="descend")] == [b"two", b"one"]
    assert [value for value, _ in client.get_range("a/1", "a/2")] == [b"one"]
    assert len(list(client.get_all(sort_order="ascend", sort_target="mod"))) == 2
    assert client.put_if_not_exists("a/3", "x") and not client.put_if_not_exists("a/3", "y")
    assert client.replace("a/3", "x", "z") and not client.replace("a/3", "x", "w")
    assert client.delete("a/3") and not client.delete("a/3")
    assert client.delete_prefix("a/").deleted == 2


def transactions(client: etcd3.Etcd3Client) -> None:
    t = client.transactions
    client.put("doot", "hat")
    done, answers = client.transaction(
        compare=[t.value("doot") == "hat", t.version("doot") > 0, t.create("new") == 0, t.mod("doot") > 0],
        success=[t.put("doot", "racoon"), t.get("doot"), t.delete("other"), t.txn([], [t.put("new", "1")], [])],
        failure=[t.get("doot")],
    )
    assert done and answers[1][0][0] == b"racoon"
    assert client.get("new")[0] == b"1"
    client.delete("new")


def watches(client: etcd3.Etcd3Client) -> None:
    seen: queue.Queue[object] = queue.Queue()
    number = client.add_watch_prefix_callback("w/", seen.put)
    events, cancel = client.watch("w/1")
    client.put("w/1", "x")
    client.delete("w/1")
    assert [type(next(events)).__name__ for _ in range(2)] == ["PutEvent", "DeleteEvent"]
    assert seen.get(timeout=60) is not None
    cancel()
    client.cancel_watch(number)
    try:
        client.watch_once("w/2", timeout=0.2)
    except etcd3.exceptions.WatchTimedOut:
        pass
    else:
        raise AssertionError("nothing happened to w/2")


def leases_and_locks(client: etcd3.Etcd3Client) -> None:
    lease = client.lease(60)
    client.put("leased", "x", lease=lease)
    assert lease.granted_ttl == 60 and 0 < lease.remaining_ttl <= 60 and lease.keys == [b"leased"]
    lease.refresh()
    lease.revoke()
    assert client.get("leased") == (None, None)
    with client.lock("one", ttl=60) as held:
        assert held.is_acquired()  # waiting for a lock that is held fails in 0.12, whatever the server
    assert client.lock("one", ttl=60).acquire(timeout=60)


def cluster(client: etcd3.Etcd3Client) -> None:
    assert len(list(client.members)) == 1
    status = client.status()
    assert status.leader is not None and status.db_size > 0
    client.compact(client.put("c", "1").header.revision)
    assert client.hash() is not None
    assert list(client.list_alarms()) == []
    client.defragment()
    file = io.BytesIO()
    client.snapshot(file)
    assert file.tell() > 0


if __name__ == "__main__":
    with etcd3.client(port=int(sys.argv[1]), timeout=60) as connected:
        for part in (keys, transactions, watches, leases_and_locks, cluster):
            part(connected)
            print(part.__name__, "work")
