"""lease grant, revoke, timetolive, list and keep-alive."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any, Final

from oarlock.ctl import failures, kv, text
from oarlock.ctl.app import Run
from oarlock.ctl.client import hint_for
from oarlock.ctl.failures import CallError, Failure, bad_arguments
from oarlock.ctl.show import plain, with_header

NOT_FOUND: Final = "etcdserver: requested lease not found"


def lease_grant(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("lease grant command needs TTL argument")
    try:
        ttl = text.integer(run.args[0])
    except ValueError as error:
        raise bad_arguments(f"bad TTL ({error})", "it is a number of seconds") from None
    answer = _asked("grant", run, "Lease/LeaseGrant", TTL=ttl)
    line = f"lease {answer.ID:016x} granted with TTL({answer.TTL}s)".encode()
    run.printer(answer, lambda: [line], with_header(answer, ID=answer.ID, TTL=answer.TTL, Error=answer.error))


def lease_revoke(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("lease revoke command needs 1 argument")
    lease = _id(run)
    answer = _asked("revoke", run, "Lease/LeaseRevoke", ID=lease)
    run.printer(answer, lambda: [f"lease {lease:016x} revoked".encode()])


def lease_timetolive(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("lease timetolive command needs lease ID as argument")
    lease = _id(run)
    answer = run.client("Lease/LeaseTimeToLive", repeat=True, ID=lease, keys=run.keys)
    keys = [base64.b64encode(key).decode("ascii") for key in answer.keys] or None
    json = with_header(answer, id=answer.ID, ttl=answer.TTL, keys=keys)
    json["granted-ttl"] = answer.grantedTTL
    json["keys"] = json.pop("keys")
    run.printer(answer, lambda: _remaining(run, answer), json)


def _remaining(run: Run, answer: Any) -> Iterator[bytes]:
    if answer.grantedTTL == 0 and answer.TTL == -1:
        yield f"lease {answer.ID:016x} already expired".encode()
        return
    line = f"lease {answer.ID:016x} granted with TTL({answer.grantedTTL}s), remaining({answer.TTL}s)".encode()
    yield line + (b", attached keys([" + b" ".join(answer.keys) + b"])" if run.keys else b"")


def lease_list(run: Run) -> None:
    answer = run.client("Lease/LeaseLeases", repeat=True)
    lines = [f"found {len(answer.leases)} leases", *(f"{lease.ID:016x}" for lease in answer.leases)]
    json = with_header(answer, leases=[{"id": lease.ID} for lease in answer.leases])
    run.printer(answer, lambda: (line.encode() for line in lines), json)


def lease_keep_alive(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("lease keep-alive command needs lease ID as argument")
    lease = _id(run)
    lasts_until = time.monotonic() + run.client.timeout_s
    while True:
        try:
            answer = run.client("Lease/LeaseKeepAlive", repeat=True, ID=lease)
        except CallError as error:
            if run.once:
                raise Failure(error.text, failures.BAD_CONNECTION, error.hint) from None
            if time.monotonic() >= lasts_until:
                raise
            continue  # the lease may live on until a member is back
        if answer.TTL <= 0:
            if run.once:
                raise Failure(NOT_FOUND, failures.BAD_CONNECTION, hint_for(NOT_FOUND))
            run.printer.write(f"lease {lease:016x} expired or revoked.\n".encode())
            return
        line = f"lease {answer.ID:016x} keepalived with TTL({answer.TTL})".encode()
        json = {**plain(answer.header), "ID": answer.ID, "TTL": answer.TTL}
        run.printer(answer, lambda line=line: [line], json)
        if run.once:
            return
        lasts_until = time.monotonic() + answer.TTL
        time.sleep(max(answer.TTL / 3, 0.1))


def _id(run: Run) -> int:
    return kv.lease_id(run.args[0], "bad lease ID arg ({}), expecting ID in Hex")


def _asked(verb: str, run: Run, rpc: str, **fields: Any) -> Any:
    try:
        return run.client(rpc, **fields)
    except CallError as error:
        raise Failure(f"failed to {verb} lease ({error.text})", hint=error.hint or hint_for(error.text)) from None
