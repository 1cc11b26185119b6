"""etcd's Cluster service."""

from __future__ import annotations

from oarlock.api import proto
from oarlock.api.etcd.context import ServiceContext
from oarlock.api.etcd.parsing import parse
from oarlock.api.grpc import Call, Method

_MemberListRequest = proto.message("etcdserverpb.MemberListRequest")
_MemberListResponse = proto.message("etcdserverpb.MemberListResponse")


class ClusterService:
    """MemberList."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._backend = context.backend

    def methods(self) -> list[Method]:
        return [Method("etcdserverpb.Cluster", "MemberList", unary=self._member_list)]

    def _member_list(self, call: Call, message: bytes) -> None:
        request = parse(_MemberListRequest, message)
        if request.linearizable:
            self._context.may_serve(call)
            self._context.read(call, self._answer_member_list)
        else:
            self._answer_member_list(call)

    def _answer_member_list(self, call: Call) -> None:
        response = _MemberListResponse()
        self._context.fill(response.header, self._context.kv.revision)
        response.header.ClearField("revision")  # as etcd, whose membership is not in the store
        for view in self._backend.members():
            member = response.members.add()
            member.ID = view.id
            member.name = view.name
            member.peerURLs.extend(view.peer_urls)
            member.clientURLs.extend(view.client_urls)
            member.isLearner = view.is_learner
        call.reply(response.SerializeToString())
