"""Requests of the KV service: checked in etcd's order, with etcd's errors, and made into commands of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oarlock.api.etcd import errors
from oarlock.api.etcd.errors import refusal
from oarlock.machines.kv.commands import Compare, CompareTarget, DeleteRange, Op, Put, Range, Txn

_ORDER_MAX, _TARGET_MAX = 2, 4
_OPERANDS = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE: "create_revision",
    CompareTarget.MOD: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}


def range_command(request: Any) -> Range:
    """From an `etcdserverpb.RangeRequest`. Raises `RpcError`, as all functions here."""
    key = request.key
    if not key:
        raise refusal(errors.EMPTY_KEY)
    order, target = request.sort_order, request.sort_target
    if not (0 <= order <= _ORDER_MAX and 0 <= target <= _TARGET_MAX):
        raise refusal(errors.INVALID_SORT_OPTION)
    return Range(
        key,
        request.range_end,
        request.limit,
        request.revision,
        order,
        target,
        request.keys_only,
        request.count_only,
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    )


def put_command(request: Any) -> Put:
    """From an `etcdserverpb.PutRequest`."""
    put = Put(request.key, request.value, request.lease, request.prev_kv, request.ignore_value, request.ignore_lease)
    if not put.key:
        raise refusal(errors.EMPTY_KEY)
    if put.ignore_value and put.value:
        raise refusal(errors.VALUE_PROVIDED)
    if put.ignore_lease and put.lease:
        raise refusal(errors.LEASE_PROVIDED)
    return put


def delete_command(request: Any) -> DeleteRange:
    """From an `etcdserverpb.DeleteRangeRequest`."""
    if not request.key:
        raise refusal(errors.EMPTY_KEY)
    return DeleteRange(request.key, request.range_end, request.prev_kv)


def txn_command(request: Any, ops_max: int, depth_max: int) -> Txn:
    """From an `etcdserverpb.TxnRequest`, wholly checked. At most `ops_max` operations as etcd counts them: the
    longest of the three lists, and what a level uses is taken from what the levels below it may use. At most
    `depth_max` levels."""
    txn = _txn(request, ops_max, depth_max)
    _check_intervals(txn.success)
    _check_intervals(txn.failure)
    return txn


def _txn(request: Any, ops_max: int, depth_max: int) -> Txn:
    used = max(len(request.compare), len(request.success), len(request.failure))
    if used > ops_max or not depth_max:
        raise refusal(errors.TOO_MANY_OPS)
    compare = [_compare(c) for c in request.compare]
    left = ops_max - used
    deeper = depth_max - 1
    success = [_op(op, left, deeper) for op in request.success]
    return Txn(compare, success, [_op(op, left, deeper) for op in request.failure])


def _op(op: Any, ops_max: int, depth_max: int) -> Op:
    match op.WhichOneof("request"):
        case "request_range":
            return range_command(op.request_range)
        case "request_put":
            return put_command(op.request_put)
        case "request_delete_range":
            return delete_command(op.request_delete_range)
        case "request_txn":
            return _txn(op.request_txn, ops_max, depth_max)
        case _:
            raise refusal(errors.KEY_NOT_FOUND)  # etcd's odd answer to an operation without a body


def _compare(compare: Any) -> Compare:
    if not compare.key:
        raise refusal(errors.EMPTY_KEY)
    target, result = compare.target, compare.result
    field = _OPERANDS.get(target)
    if field is None or not 0 <= result <= 3:
        raise refusal(errors.INVALID_COMPARE)
    # An operand of another target than the one named reads as its default, as in etcd.
    return Compare(target, result, compare.key, getattr(compare, field), compare.range_end)


_Puts = set[bytes]
_Deletes = list[tuple[bytes, bytes]]


def _check_intervals(ops: Sequence[Op]) -> tuple[_Puts, _Deletes]:
    """In one branch a key may be put once, and not be in a deleted range as well. Both branches of one nested
    transaction may put the same key, as only one of them runs. Returns what the branch puts and deletes."""
    keys = {op.key for op in ops if type(op) is Put}
    if len(keys) == len(ops):  # as nearly always
        return keys, []
    deletes: _Deletes = [(op.key, op.range_end or op.key + b"\0") for op in ops if isinstance(op, DeleteRange)]
    puts: _Puts = set()
    for op in ops:
        if not isinstance(op, Txn):
            continue
        then_puts, then_deletes = _check_intervals(op.success)
        else_puts, else_deletes = _check_intervals(op.failure)
        if then_puts & puts or (else_puts - then_puts) & puts:
            raise refusal(errors.DUPLICATE_KEY)
        puts |= then_puts | else_puts
        if any(_deleted(key, deletes) for key in then_puts | else_puts):
            raise refusal(errors.DUPLICATE_KEY)
        deletes += then_deletes
        deletes += else_deletes
    for op in ops:
        if isinstance(op, Put):
            if op.key in puts or _deleted(op.key, deletes):
                raise refusal(errors.DUPLICATE_KEY)
            puts.add(op.key)
    return puts, deletes


def _deleted(key: bytes, deletes: _Deletes) -> bool:
    # Differs from what a delete does only for range_end "\0" (everything from the key on): etcd takes it literally
    # here.
    return any(start <= key < end for start, end in deletes)


def is_read_only(txn: Txn) -> bool:
    """Whether neither branch writes anything, at any depth."""
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            if not is_read_only(op):
                return False
        elif not isinstance(op, Range):
            return False
    return True


def is_serializable(request: Any) -> bool:
    """Whether all ranges of a read-only `TxnRequest` may be answered from this member's present state."""
    for op in (*request.success, *request.failure):
        if op.HasField("request_txn"):
            if not is_serializable(op.request_txn):
                return False
        elif not op.request_range.serializable:
            return False
    return True
