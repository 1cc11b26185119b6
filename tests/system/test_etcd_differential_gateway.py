"""The same JSON requests to a real etcd 3.5 and to ours: status and answer must agree, on every path and stream.

Ids of clusters and members, terms, tokens, sizes and hashes are each server's own and not compared; of a body that is
no request, only status and code are.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.system.test_etcd_differential import Target, ours, real

from oarlock.api.gateway import paths

__all__ = ["ours", "real"]  # fixtures

SEED = int(os.environ.get("OARLOCK_DIFFERENTIAL_SEED", "20261124"))
COUNT = int(os.environ.get("OARLOCK_DIFFERENTIAL_COUNT", "1000"))
OWN = {
    "cluster_id", "member_id", "raft_term", "token", "hash", "members", "member", "version", "dbSize", "dbSizeInUse",
    "dbSizeQuota", "leader", "raftIndex", "raftTerm", "raftAppliedIndex", "storageVersion", "blob", "remaining_bytes",
}  # fmt: skip


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def settled(value: Any) -> Any:
    """Without what is each server's own: `OWN` fields say only that they are there."""
    if isinstance(value, dict):
        return {
            name: "(own)" if (name in OWN and not isinstance(value[name], dict)) or name == "member" else settled(item)
            for name, item in value.items()
            if name not in ("storageVersion", "dbSizeQuota")  # of later releases
        }
    if isinstance(value, list):
        return [settled(item) for item in value]
    return value


class Http:
    """One server, asked over one kept connection."""

    def __init__(self, target: Target) -> None:
        self.address = target.address
        self.token: str | None = None
        self._connection = http.client.HTTPConnection(self.address, timeout=120)

    def ask(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        text = body if isinstance(body, (bytes, str)) else json.dumps(body)
        if self.token is not None:
            headers.setdefault("Authorization", self.token)
        self._connection.request("POST", path, body=text, headers=headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.headers["content-type"].startswith("text/plain"):
            return answer.status, data.decode().strip()
        lines = [json.loads(line) for line in data.splitlines() if line]
        return answer.status, lines[0] if len(lines) == 1 else lines

    def lines(self, path: str, body: str) -> Iterator[Any]:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("POST", path, body=body, headers={"Authorization": self.token} if self.token else {})
        answer = connection.getresponse()
        try:
            while line := answer.readline():
                yield json.loads(line)
        finally:
            connection.close()

    def close(self) -> None:
        self._connection.close()

    def login(self, name: str, password: str) -> tuple[int, Any]:
        status, answer = self.ask("/v3/auth/authenticate", {"name": name, "password": password})
        self.token = answer.get("token")
        return status, answer


class Pair:
    def __init__(self, theirs: Target, own: Target, cluster: bool) -> None:
        self.cluster = cluster
        self.theirs, self.own = Http(theirs), Http(own)

    def same(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Ask both; their answers have to be alike. Gives ours."""
        theirs, own = self.theirs.ask(path, body, **headers), self.own.ask(path, body, **headers)
        left, right = (theirs[0], settled(theirs[1])), (own[0], settled(own[1]))
        assert right == left, f"{path} {body}\netcd: {theirs}\nours: {own}"
        return own

    def same_code(self, path: str, body: Any) -> None:
        """For bodies that are no requests: the texts are each server's own."""
        theirs, own = self.theirs.ask(path, body), self.own.ask(path, body)
        assert "code" in theirs[1] and "code" in own[1], f"{path} {body}\netcd: {theirs}\nours: {own}"
        left, right = (theirs[0], theirs[1]["code"]), (own[0], own[1]["code"])
        assert right == left, f"{path} {body}\netcd: {theirs}\nours: {own}"
        assert set(own[1]) == set(theirs[1])

    def same_lines(self, path: str, body: str, count: int) -> None:
        theirs, own = self.theirs.lines(path, body), self.own.lines(path, body)
        left = [settled(next(theirs)) for _ in range(count)]
        right = [settled(next(own)) for _ in range(count)]
        theirs.close()  # type: ignore[attr-defined]
        own.close()  # type: ignore[attr-defined]
        assert right == left, (path, body)


@pytest.fixture
def pair(ours: Callable[[], Target], real: Callable[[], Target], request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(real(), ours(), "[cluster" in request.node.name)
    yield made
    made.theirs.close()
    made.own.close()


K, V, Z = b64("key"), b64("value"), b64("\0")

SCRIPT: list[tuple[str, Any]] = [
    ("/v3/kv/put", {"key": K, "value": V}),
    ("/v3/kv/put", {"key": K, "value": V, "prev_kv": True}),
    ("/v3/kv/put", {"key": K, "value": V, "ignore_value": True}),
    ("/v3/kv/put", {"key": K, "value": V, "lease": "77"}),
    ("/v3/kv/range", {"key": K}),
    ("/v3/kv/range", {"key": Z, "rangeEnd": Z, "sortOrder": "DESCEND", "limit": 1, "serializable": True}),
    ("/v3/kv/range", {"key": K, "revision": "99"}),
    ("/v3/kv/range", {}),
    ("/v3/kv/txn", {"compare": [{"target": "VALUE", "result": "EQUAL", "key": K, "value": V}],
                    "success": [{"request_put": {"key": K}}, {"requestRange": {"key": K}},
                                {"request_txn": {"failure": [], "success": [{"request_delete_range": {"key": K}}]}}]}),
    ("/v3/kv/txn", {"success": [{}]}),
    ("/v3/kv/txn", {}),
    ("/v3/kv/deleterange", {"key": Z, "range_end": Z, "prev_kv": True}),
    ("/v3/kv/compaction", {"revision": "2", "physical": True}),
    ("/v3/kv/compaction", {"revision": "2"}),
    ("/v3/kv/range", {"key": K, "revision": 1}),
    ("/v3/lease/grant", {"TTL": "60", "ID": "5"}),
    ("/v3/lease/grant", {"TTL": 60, "ID": 5}),
    ("/v3/lease/grant", {"TTL": "9000000001"}),
    ("/v3/kv/put", {"key": K, "value": V, "lease": 5}),
    ("/v3/lease/leases", {}),
    ("/v3/kv/lease/leases", {}),
    ("/v3/lease/timetolive", {"ID": "4"}),
    ("/v3/kv/lease/timetolive", {"ID": "4", "keys": True}),
    ("/v3/lease/keepalive", {"ID": "5"}),
    ("/v3/lease/keepalive", '{"ID":5}{"ID":"6"} {"ID":5}'),
    ("/v3/lease/keepalive", ""),
    ("/v3/lock/lock", {"name": b64("lock"), "lease": "5"}),
    ("/v3/lock/unlock", {"key": b64("lock/5")}),
    ("/v3/election/campaign", {"name": b64("e"), "lease": "5", "value": V}),
    ("/v3/election/leader", {"name": b64("e")}),
    ("/v3/election/leader", {"name": b64("nobody's")}),
    ("/v3/election/proclaim", {}),
    ("/v3/election/resign", {}),
    ("/v3/kv/lease/revoke", {"ID": "5"}),
    ("/v3/lease/revoke", {"ID": "5"}),
    ("/v3/cluster/member/list", {}),
    ("/v3/cluster/member/add", {"peerURLs": []}),
    ("/v3/cluster/member/remove", {"ID": "1"}),
    ("/v3/cluster/member/update", {"ID": "1", "peerURLs": ["http://127.0.0.1:1"]}),
    ("/v3/cluster/member/promote", {"ID": "1"}),
    ("/v3/maintenance/alarm", {"action": "GET"}),
    ("/v3/maintenance/alarm", {"action": 0, "alarm": "NOSPACE"}),
    ("/v3/maintenance/status", {}),
    ("/v3/maintenance/defragment", {}),
    ("/v3/maintenance/hash", {}),
    ("/v3/maintenance/downgrade", {"action": "CANCEL"}),
    ("/v3/auth/status", {}),
    ("/v3/auth/authenticate", {"name": "a", "password": "b"}),
    ("/v3/auth/enable", {}),
    ("/v3/auth/disable", {}),
    ("/v3/auth/role/add", {"name": "r"}),
    ("/v3/auth/role/add", {"name": "r"}),
    ("/v3/auth/role/add", {}),
    ("/v3/auth/role/grant", {"name": "r", "perm": {"permType": "READWRITE", "key": b64("a"), "range_end": b64("c")}}),
    ("/v3/auth/role/grant", {"name": "r", "perm": {"permType": 1, "key": K}}),
    ("/v3/auth/role/get", {"role": "r"}),
    ("/v3/auth/role/list", {}),
    ("/v3/auth/role/revoke", {"role": "r", "key": K}),
    ("/v3/auth/user/add", {"name": "u", "password": "pw"}),
    ("/v3/auth/user/add", {"name": "n", "options": {"no_password": True}}),
    ("/v3/auth/user/add", {"name": "\ud800", "password": "pw"}),
    ("/v3/auth/user/list", {}),
    ("/v3/auth/user/changepw", {"name": "u", "password": "other"}),
    ("/v3/auth/user/grant", {"user": "u", "role": "r"}),
    ("/v3/auth/user/get", {"name": "u"}),
    ("/v3/auth/user/revoke", {"name": "u", "role": "nothing"}),
    ("/v3/auth/user/revoke", {"name": "u", "role": "r"}),
    ("/v3/auth/user/delete", {"name": "u"}),
    ("/v3/auth/user/delete", {"name": "u"}),
    ("/v3/auth/role/delete", {"role": "r"}),
]  # fmt: skip

NOT_HERE = {
    "/v3/maintenance/hashkv": "etcd 3.5.1 has no such path",
    "/v3/maintenance/transfer-leadership": "what it answers depends on who leads",
    "/v3/watch": "in a test of its own",
    "/v3/election/observe": "in a test of its own",
    "/v3/maintenance/snapshot": "in a test of its own",
}


def test_the_script_is_whole() -> None:
    every = {path for binding in paths.bindings() for path in binding.paths}
    assert {path for path, _ in SCRIPT} | set(NOT_HERE) == every


@pytest.mark.timeout(400)
def test_every_path(pair: Pair) -> None:
    for path, body in SCRIPT:
        if path == "/v3/cluster/member/list":
            assert pair.theirs.ask(path, body)[0] == pair.own.ask(path, body)[0] == 200  # no revision is etcd's slip
            continue
        if path.startswith("/v3/cluster/") and "ID" in body and not pair.cluster:
            continue  # the backend of one member has no changes
        pair.same(path, body)
        pair.same("/v3beta/" + path.removeprefix("/v3/"), body) if path == "/v3/kv/range" else None


TEXTS = [  # of requests for a range
    "", "null", "{}", "{", "[1]", '"x"', "5", "tru", "{'key':1}", '{"key":"YQ==",}', '{"key":"a2V5"} trailing',
    '{"key":"a2V5"}{"key":"YQ=="}',
    '{"key":"a2V5","nosuch":{"x":[1]}}', '{"KEY":"a2V5"}', '{"key":"a2V5","key":"YQ=="}',
    '{"key":"a2V5","range_end":"AA==","rangeEnd":"YQ=="}', '{"key":"a2V5","rangeEnd":"YQ==","range_end":"AA=="}',
    '{"key":"a2V5","limit":null}', '{"key":null}', '{"key":"a2\\nV5"}', '{"key":"a2V5\\u003d"}', '{"key":"!!"}',
    '{"key":"a2V"}',
    '{"key":"_-8="}', '{"key":1}', '{"key":["a2V5"]}', '{"key":{}}', '{"key":"a2V5","limit":"1"}',
    '{"key":"a2V5","limit":1}', '{"key":"a2V5","limit":1.0}', '{"key":"a2V5","limit":1e0}',
    '{"key":"a2V5","limit":"x"}',
    '{"key":"a2V5","limit":99999999999999999999}', '{"key":"a2V5","limit":true}', '{"key":"a2V5","limit":""}',
    '{"key":"a2V5","limit":[]}', '{"key":"a2V5","limit":{}}', '{"key":"a2V5","limit":-1}', '{"key":"a2V5","limit":01}',
    '{"key":"a2V5","serializable":"true"}', '{"key":"a2V5","serializable":1}', '{"key":"a2V5","serializable":true}',
    '{"key":"a2V5","sort_order":"2"}', '{"key":"a2V5","sort_order":"NOPE"}', '{"key":"a2V5","sort_order":2}',
    '{"key":"a2V5","sort_order":null}', '{"key":"a2V5","sort_order":true}', '{"key":"a2V5","sort_order":1.5}',
    '{"key":"a2V5","sort_target":"VERSION","sort_order":"ASCEND"}', '{"key":"\\ud800"}', "{}}", '{"a":NaN}', "\ufeff{}",
]  # fmt: skip


@pytest.mark.timeout(400)
def test_what_is_json(pair: Pair) -> None:
    pair.same("/v3/kv/put", {"key": K, "value": V})
    for text in TEXTS:
        body = text.encode()
        theirs = pair.theirs.ask("/v3/kv/range", body)
        if theirs[0] == 200 or "etcdserver:" in theirs[1]["error"]:
            pair.same("/v3/kv/range", body)
        else:
            pair.same_code("/v3/kv/range", body)
    for text in ("{", "[1]", '{"create_request":1}', '{"create_request":{"filters":["X"]}}'):
        pair.same_code("/v3/watch", text.encode())
        pair.same_code("/v3/maintenance/snapshot", text.encode()) if "create" not in text else None
    assert pair.same("/v3/kv/nothing", {})[0] == 404
    assert (
        pair.theirs.ask("/v3alpha/kv/range", {"key": K})[0] == pair.own.ask("/v3alpha/kv/range", {"key": K})[0] == 404
    )


@pytest.mark.timeout(400)
def test_random_key_values(pair: Pair) -> None:
    """Requests made at random over a few keys, some with wrong types."""
    draw = random.Random(SEED)
    keys = [b64(text) for text in ("a", "b", "b\0", "c", "")]
    for _ in range(COUNT):
        key = draw.choice(keys)
        body: dict[str, Any]
        match draw.choice(("put", "range", "range", "deleterange", "txn")):
            case "put":
                path, body = "/v3/kv/put", {"key": key, "value": draw.choice(keys), "prev_kv": draw.random() < 0.5}
            case "range":
                path = "/v3/kv/range"
                body = {"key": key, "range_end": draw.choice((*keys, Z)), "limit": draw.choice((0, "1", 2, "-1"))}
                body["sort_order"] = draw.choice(("NONE", 0, "ASCEND", "DESCEND", 2))
                body[draw.choice(("keys_only", "count_only", "nosuch"))] = True
                body["revision"] = draw.choice((0, "0", 1, 3, "5", 10_000))
            case "deleterange":
                path, body = "/v3/kv/deleterange", {"key": key, "range_end": draw.choice(keys), "prevKv": True}
            case _:
                path = "/v3/kv/txn"
                body = {
                    "compare": [{"key": key, "target": "VERSION", "result": draw.choice((0, "GREATER")), "version": 1}],
                    "success": [{"request_put": {"key": draw.choice(keys), "value": key}}],
                    "failure": [{"requestDeleteRange": {"key": key}}, {"request_range": {"key": draw.choice(keys)}}],
                }
        pair.same(path, body)


@pytest.mark.timeout(400)
def test_streams(pair: Pair) -> None:
    for value in ("1", "2"):
        pair.same("/v3/kv/put", {"key": K, "value": b64(value)})
    create = {"key": K, "start_revision": "1", "prev_kv": True}
    both = json.dumps({"create_request": create}) + json.dumps({"create_request": {"key": "YQ==", "watch_id": 7}})
    pair.same_lines("/v3/watch", json.dumps({"create_request": create}), 2)
    pair.same_lines("/v3/watch", both.replace('"start_revision": "1", ', ""), 2)
    pair.same_lines("/v3/watch", '{"create_request":{"key":"YQ=="}}{"cancel_request":{"watch_id":"0"}}', 2)
    pair.same_lines("/v3/watch", '{"create_request":{"key":"Yg==","rangeEnd":"YQ=="}}', 1)
    pair.same("/v3/kv/compaction", {"revision": "3", "physical": True})
    pair.same_lines("/v3/watch", json.dumps({"create_request": create}), 2)
    pair.same("/v3/lease/grant", {"ID": "5", "TTL": "60"})
    pair.same("/v3/election/campaign", {"name": b64("e"), "lease": "5", "value": V})
    pair.same_lines("/v3/election/observe", json.dumps({"name": b64("e")}), 1)
    for server in (pair.theirs, pair.own):
        lines = list(server.lines("/v3/maintenance/snapshot", "{}"))
        assert len(lines) >= 2
        assert all("blob" in line["result"] for line in lines)
        assert len(base64.b64decode(lines[-1]["result"]["blob"])) == 32, "a digest ends it"


@pytest.mark.timeout(400)
def test_authentication(pair: Pair) -> None:
    for user in ("root", "u"):
        pair.same("/v3/auth/user/add", {"name": user, "password": "pw"})
    pair.same("/v3/auth/role/add", {"name": "r"})
    pair.same(
        "/v3/auth/role/grant", {"name": "r", "perm": {"permType": "READ", "key": b64("a"), "range_end": b64("c")}}
    )
    pair.same("/v3/auth/user/grant", {"user": "u", "role": "r"})
    pair.theirs.ask("/v3/auth/role/add", {"name": "root"})
    pair.own.ask("/v3/auth/role/add", {"name": "root"})
    pair.same("/v3/auth/user/grant", {"user": "root", "role": "root"})
    pair.same("/v3/auth/enable", {})
    calls = [
        ("/v3/kv/range", {"key": b64("b")}), ("/v3/kv/range", {"key": b64("z")}), ("/v3/kv/put", {"key": b64("b")}),
        ("/v3/kv/txn", {"success": [{"request_put": {"key": b64("b")}}]}), ("/v3/auth/user/list", {}),
        ("/v3/auth/user/get", {"name": "u"}),
    ]  # fmt: skip
    for path, body in calls:
        pair.same(path, body)
        pair.same(path, body, Authorization="nonsense")
    assert pair.theirs.login("u", "wrong")[0] == pair.own.login("u", "wrong")[0] == 400
    for user in ("u", "root"):
        pair.theirs.token = pair.own.token = None
        assert pair.theirs.login(user, "pw")[0] == pair.own.login(user, "pw")[0] == 200
        for path, body in calls:
            pair.same(path, body)
    pair.same("/v3/auth/disable", {})
