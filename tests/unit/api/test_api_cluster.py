"""The Cluster service's own checks: the form of peer URLs, and every refusal's text."""

from __future__ import annotations

import pytest

from oarlock.api.etcd import errors
from oarlock.api.etcd.cluster import PEER_URLS_MAX, peer_urls
from oarlock.api.grpc.status import Code, RpcError
from oarlock.errors import Rejected
from oarlock.machines.kv.commands import KvError
from oarlock.node.replica.reconfigure import REFUSALS


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "unix:///tmp/x", "ftp://a:1", "http://a", "http://:1", "http://a:x", "http://a:1/",
        "http://a:1/path", "http://a:1?q", "http://a:1#f", "http://u@a:1", "http://u:p@a:1", "http://a:99999",
        "http://[::1:1", "http://a\n:1", "a:1", "", "http://" + "a" * 1100 + ":1",
    ],
)  # fmt: skip
def test_a_peer_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(RpcError) as caught:
        peer_urls(["http://good:1", url])
    assert (caught.value.code, caught.value.text) == (
        Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"
    )  # fmt: skip


def test_peer_urls_are_sorted_and_given_once() -> None:
    assert peer_urls([" https://b:2", "http://a:1", "http://a:1"]) == ("http://a:1", "https://b:2")
    for many in ([], [f"http://h{n}:1" for n in range(PEER_URLS_MAX + 1)]):
        with pytest.raises(RpcError):
            peer_urls(many)


def test_every_refusal_has_a_status() -> None:
    for reason, text in REFUSALS.items():
        code, told = errors.of_raft_error(Rejected(reason, text))
        assert told.startswith("etcdserver: ")
        if reason not in ("no_user", "unknown_user", "not_permitted"):
            assert code in (Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.UNAVAILABLE, Code.UNKNOWN)
    for reason, error in (
        ("no_user", KvError.USER_EMPTY),
        ("unknown_user", KvError.USER_NOT_FOUND),
        ("not_permitted", KvError.PERMISSION_DENIED),
    ):
        assert errors.of_raft_error(Rejected(reason)) == errors.of_kv_error(error), "as where it is asked first"
