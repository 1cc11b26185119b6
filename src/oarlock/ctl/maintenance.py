"""alarm list and disarm, defrag, move-leader."""

from __future__ import annotations

import sys
from typing import Any, Final

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.client import method
from oarlock.ctl.endpoint import clients
from oarlock.ctl.failures import CallError, Failure, bad_arguments
from oarlock.ctl.show import alarm_name, plain

GET, DEACTIVATE = 0, 2
DEFRAG_SECONDS_MIN: Final = 600.0
"""A real etcd takes its time; the caller's --command-timeout counts if it is longer."""


def alarm_list(run: Run) -> None:
    if run.args:
        raise bad_arguments("alarm list command accepts no arguments")
    _alarms(run, run.client("Maintenance/Alarm", repeat=True, action=GET))


def alarm_disarm(run: Run) -> None:
    if run.args:
        raise bad_arguments("alarm disarm command accepts no arguments")
    disarmed = method("Maintenance/Alarm")[2]()
    for alarm in run.client("Maintenance/Alarm", repeat=True, action=GET).alarms:
        answer = run.client("Maintenance/Alarm", action=DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
        disarmed.alarms.extend(answer.alarms)
    _alarms(run, disarmed)


def _alarms(run: Run, answer: Any) -> None:
    lines = [f"memberID:{alarm.memberID} alarm:{alarm_name(alarm)} ".encode() for alarm in answer.alarms]
    run.printer(answer, lambda: lines, plain(answer))


def defrag(run: Run) -> int:
    if run.data_dir:
        raise Failure("--data-dir is etcd's: a store of Oarlock needs no defragmenting while it is stopped",
                      hint="`etcdutl defrag --data-dir` does it for a stopped etcd")  # fmt: skip
    failed = 0
    for client in clients(run):
        name = client.endpoints[0].text
        try:
            # dead members are noticed within the usual time, a member at work may take longer
            client.attempt(lambda connection: None, _soon(client.timeout_s))
            client("Maintenance/Defragment", timeout_s=max(client.timeout_s, DEFRAG_SECONDS_MIN))
        except CallError as error:
            failed = 1
            sys.stderr.write(f"Failed to defragment etcd member[{name}] ({error})\n")
            if error.hint:
                sys.stderr.write(f"{error.hint}\n")
        else:
            run.printer.lines([f"Finished defragmenting etcd member[{name}]".encode()])
    return failed


def _soon(seconds: float) -> float:
    import time

    return time.monotonic() + seconds


def move_leader(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("move-leader command needs 1 argument")
    try:
        target = text.integer(run.args[0], 16, signed=False)
    except ValueError as error:
        raise bad_arguments(str(error), "`member list` shows the IDs") from None
    client = run.client
    for one in (client.to(endpoint.text) for endpoint in client.endpoints):
        status = one("Maintenance/Status", repeat=True)
        if status.header.member_id == status.leader:
            one("Maintenance/MoveLeader", targetID=target)
            line = f"Leadership transferred from {status.leader:x} to {target:x}"
            run.printer.lines([line.encode()])
            return
    named = " ".join(endpoint.text for endpoint in client.endpoints)
    raise bad_arguments(f"no leader endpoint given at [{named}]",
                        "give the leader's endpoint; see `endpoint status --cluster`")  # fmt: skip
