"""etcd's Cluster service. Any member may be asked: the leader decides, and its checks are etcd's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.context import ServiceContext
from oarlock.api.etcd.parsing import parse
from oarlock.api.grpc import Call, Method, RpcError
from oarlock.errors import RaftError

_MemberListRequest = proto.message("etcdserverpb.MemberListRequest")
_MemberListResponse = proto.message("etcdserverpb.MemberListResponse")
_MemberAddRequest = proto.message("etcdserverpb.MemberAddRequest")
_MemberAddResponse = proto.message("etcdserverpb.MemberAddResponse")
_MemberRemoveRequest = proto.message("etcdserverpb.MemberRemoveRequest")
_MemberRemoveResponse = proto.message("etcdserverpb.MemberRemoveResponse")
_MemberUpdateRequest = proto.message("etcdserverpb.MemberUpdateRequest")
_MemberUpdateResponse = proto.message("etcdserverpb.MemberUpdateResponse")
_MemberPromoteRequest = proto.message("etcdserverpb.MemberPromoteRequest")
_MemberPromoteResponse = proto.message("etcdserverpb.MemberPromoteResponse")

PEER_URLS_MAX = 16
PEER_URL_CHARS_MAX = 1024


def peer_urls(urls: list[str]) -> tuple[str, ...]:
    """Peer URLs as etcd takes them: http or https with host and port and nothing else; sorted.

    Raises `RpcError`. Nothing but the form is looked at here, and no other scheme is: a URL is dialled by every member.
    """
    if not urls or len(urls) > PEER_URLS_MAX:
        raise RpcError(*errors.MEMBER_BAD_URLS)
    found = []
    for url in urls:
        url = url.strip()
        try:
            parts = urlsplit(url)
            well = (
                len(url) <= PEER_URL_CHARS_MAX
                and url.isprintable()
                and parts.scheme in ("http", "https")
                and bool(parts.hostname)
                and parts.port is not None
                and not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
            )
        except ValueError:
            well = False
        if not well:
            raise RpcError(*errors.MEMBER_BAD_URLS)
        found.append(url)
    return tuple(sorted(dict.fromkeys(found)))


def _asker(call: Call) -> str:
    """Who wants the change. Whether they may is asked again where it is decided: here it may be out of date."""
    return call.identity[0] if call.identity is not None else ""


class ClusterService:
    """MemberList, MemberAdd, MemberRemove, MemberUpdate, MemberPromote."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._backend = context.backend

    def methods(self) -> list[Method]:
        service = "etcdserverpb.Cluster"
        return [
            Method(service, "MemberList", unary=self._member_list),
            Method(service, "MemberAdd", unary=self._member_add),
            Method(service, "MemberRemove", unary=self._member_remove),
            Method(service, "MemberUpdate", unary=self._member_update),
            Method(service, "MemberPromote", unary=self._member_promote),
        ]

    # -- reading
    def _member_list(self, call: Call, message: bytes) -> None:
        request = parse(_MemberListRequest, message)
        if request.linearizable:
            self._context.may_answer(call)
            self._context.read(call, self._answer_member_list)
        else:
            self._answer_member_list(call)

    def _answer_member_list(self, call: Call) -> None:
        call.reply(self._members_in(_MemberListResponse()).SerializeToString())

    def _members_in(self, response: Any) -> Any:
        """`response` with its header and the list of members."""
        self._context.fill(response.header, 0)
        response.header.ClearField("revision")  # as etcd, whose membership is not in the store
        for view in self._backend.members():
            self._describe(response.members.add(), view)
        return response

    @staticmethod
    def _describe(member: Any, view: Any) -> None:
        member.ID = view.id
        member.name = view.name
        member.peerURLs.extend(view.peer_urls)
        member.clientURLs.extend(view.client_urls)
        member.isLearner = view.is_learner

    # -- changing
    def _member_add(self, call: Call, message: bytes) -> None:
        request = parse(_MemberAddRequest, message)
        urls = peer_urls(list(request.peerURLs))
        self._context.may_answer(call)
        added = 0

        def done(error: RaftError | None) -> None:
            if error is not None:
                call.fail(*errors.of_raft_error(error))
                return
            response = self._members_in(_MemberAddResponse())
            for member in response.members:
                if added == member.ID:
                    response.member.CopyFrom(member)
            call.reply(response.SerializeToString())

        added = self._backend.add_member(urls, bool(request.isLearner), _asker(call), done)

    def _member_remove(self, call: Call, message: bytes) -> None:
        request = parse(_MemberRemoveRequest, message)
        self._context.may_answer(call)
        self._backend.remove_member(request.ID, _asker(call), self._done(call, _MemberRemoveResponse))

    def _member_update(self, call: Call, message: bytes) -> None:
        request = parse(_MemberUpdateRequest, message)
        urls = peer_urls(list(request.peerURLs))
        self._context.may_answer(call)
        self._backend.update_member(request.ID, urls, _asker(call), self._done(call, _MemberUpdateResponse))

    def _member_promote(self, call: Call, message: bytes) -> None:
        request = parse(_MemberPromoteRequest, message)
        self._context.may_answer(call)
        self._backend.promote_member(request.ID, _asker(call), self._done(call, _MemberPromoteResponse))

    def _done(self, call: Call, response_class: Any) -> Callable[[RaftError | None], None]:
        return partial(self._answer, call, response_class)

    def _answer(self, call: Call, response_class: Any, error: RaftError | None) -> None:
        if error is not None:
            call.fail(*errors.of_raft_error(error))
        else:
            call.reply(self._members_in(response_class()).SerializeToString())
