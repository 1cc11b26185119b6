"""etcd's Maintenance service."""

from __future__ import annotations

from functools import partial

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.context import ETCD_VERSION, ServiceContext, not_served
from oarlock.api.etcd.parsing import parse
from oarlock.api.grpc import Call, Method, RpcError
from oarlock.errors import NotLeader, RaftError, Rejected

_StatusRequest = proto.message("etcdserverpb.StatusRequest")
_StatusResponse = proto.message("etcdserverpb.StatusResponse")
_MoveLeaderRequest = proto.message("etcdserverpb.MoveLeaderRequest")
_AlarmRequest = proto.message("etcdserverpb.AlarmRequest")
_ALARM_GET = 0


class MaintenanceService:
    """Status, Alarm, MoveLeader."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._backend = context.backend
        self._kv = context.kv

    def methods(self) -> list[Method]:
        service = "etcdserverpb.Maintenance"
        return [
            Method(service, "Status", unary=self._status),
            Method(service, "Alarm", unary=self._alarm),
            Method(service, "MoveLeader", unary=self._move_leader),
        ]

    def _status(self, call: Call, message: bytes) -> None:
        parse(_StatusRequest, message)
        view = self._backend.status()
        response = _StatusResponse()
        self._context.fill(response.header, self._kv.revision)
        response.version = ETCD_VERSION
        response.dbSize = view.db_size
        response.dbSizeInUse = view.db_size_in_use
        response.leader = view.leader
        response.raftIndex = view.raft_index
        response.raftTerm = view.raft_term
        response.raftAppliedIndex = view.raft_applied_index
        response.isLearner = view.is_learner
        if not view.leader:
            response.errors.append(errors.NO_LEADER[1])
        response.errors.extend(view.errors)
        call.reply(response.SerializeToString())

    def _alarm(self, call: Call, message: bytes) -> None:
        """This version raises no alarms; clients ask for the list to judge a member's health."""
        if parse(_AlarmRequest, message).action != _ALARM_GET:
            not_served(call, message)
        self._context.may_serve(call)
        self._context.read(call, self._context.reply_header)

    def _move_leader(self, call: Call, message: bytes) -> None:
        request = parse(_MoveLeaderRequest, message)
        self._context.may_serve(call)
        if self._backend.status().leader != self._backend.member_id:
            raise RpcError(*errors.NOT_LEADER)
        try:
            self._backend.transfer_leadership(request.targetID, partial(self._move_leader_done, call))
        except RaftError as error:
            self._move_leader_done(call, error)

    def _move_leader_done(self, call: Call, error: RaftError | None) -> None:
        match error:
            case None:
                self._context.reply_header(call)
            case NotLeader():
                call.fail(*errors.NOT_LEADER)
            case Rejected():
                call.fail(*errors.BAD_TRANSFEREE)
            case _:
                call.fail(*errors.of_raft_error(error))
