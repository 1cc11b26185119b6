"""What tooz promises, asked of a server through its etcd3gw driver: `python tooz_contract.py HOST:PORT`.

Runs in an environment of its own, without pytest: every promise is an assert, and the exit code says whether all hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tooz import NotImplemented as Missing
from tooz import coordination

LEFT_S = 3
PATIENCE_S = 60.0


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def raises(expected: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was to be raised")


def connect(endpoint: str, name: str, *, membership: int = 30, lock: int = 30) -> Any:
    url = f"etcd3+http://{endpoint}?membership_timeout={membership}&lock_timeout={lock}"
    made = coordination.get_coordinator(url, name.encode())
    made.start()
    return made


def groups(endpoint: str) -> None:
    one, two = connect(endpoint, "one"), connect(endpoint, "two")
    assert one.get_groups().get() == []
    raises(coordination.GroupNotCreated, lambda: one.join_group(b"crew").get())
    raises(coordination.GroupNotCreated, lambda: one.get_members(b"crew").get())
    one.create_group(b"crew").get()
    raises(coordination.GroupAlreadyExist, lambda: two.create_group(b"crew").get())
    assert one.get_groups().get() == [b"crew"]
    seen: list[tuple[str, bytes]] = []
    one.watch_join_group(b"crew", lambda event: seen.append(("join", event.member_id)))
    one.watch_leave_group(b"crew", lambda event: seen.append(("leave", event.member_id)))
    one.join_group(b"crew", capabilities={"oar": 1}).get()
    two.join_group(b"crew", capabilities={"oar": 2}).get()
    raises(coordination.MemberAlreadyExist, lambda: two.join_group(b"crew").get())
    assert one.get_members(b"crew").get() == {b"one", b"two"}
    assert one.get_member_capabilities(b"crew", b"two").get() == {"oar": 2}
    two.update_capabilities(b"crew", {"oar": 3}).get()
    assert one.get_member_capabilities(b"crew", b"two").get() == {"oar": 3}
    one.run_watchers()
    assert sorted(seen) == [("join", b"one"), ("join", b"two")]
    two.leave_group(b"crew").get()
    raises(coordination.MemberNotJoined, lambda: two.leave_group(b"crew").get())
    one.run_watchers()
    assert seen[2:] == [("leave", b"two")]
    two.join_group(b"crew").get()
    raises(coordination.GroupNotEmpty, lambda: one.delete_group(b"crew").get())
    for each in (one, two):
        each.leave_group(b"crew").get()
    one.delete_group(b"crew").get()
    raises(coordination.GroupNotCreated, lambda: one.delete_group(b"crew").get())
    one.stop()
    two.stop()


def silent_members_leave(endpoint: str) -> None:
    one, silent = connect(endpoint, "one"), connect(endpoint, "silent", membership=LEFT_S, lock=LEFT_S)
    one.create_group(b"watch").get()
    one.join_group(b"watch").get()
    silent.join_group(b"watch").get()
    held, wanted = silent.get_lock(b"bell"), one.get_lock(b"bell")
    assert held.acquire(blocking=False)
    assert not wanted.acquire(blocking=False)
    for _ in range(2 * LEFT_S):  # it lives longer than its leases as long as it has a heartbeat
        time.sleep(1)
        silent.heartbeat()
    assert one.get_members(b"watch").get() == {b"one", b"silent"}
    assert not wanted.acquire(blocking=False)
    until("the silent member has left", lambda: one.get_members(b"watch").get() == {b"one"})
    until("its lock is free", lambda: bool(wanted.acquire(blocking=False)))
    silent.heartbeat()  # gets a new lease, and no membership by it
    assert one.get_members(b"watch").get() == {b"one"}
    assert not held.release(), "it is another's by now"
    assert wanted.release()
    one.leave_group(b"watch").get()
    one.delete_group(b"watch").get()
    one.stop()
    silent.stop()


def locks(endpoint: str) -> None:
    one, two = connect(endpoint, "one"), connect(endpoint, "two")
    mine, theirs = one.get_lock(b"tiller"), two.get_lock(b"tiller")
    with mine:
        assert mine.acquired
        assert not theirs.acquire(blocking=False)
        assert not theirs.release()
    assert theirs.acquire(blocking=True)
    assert mine.break_()
    assert mine.acquire(blocking=False)
    assert mine.release()
    raises(Missing, lambda: one.watch_elected_as_leader(b"crew", print))
    one.stop()
    two.stop()


if __name__ == "__main__":
    for part in (groups, locks, silent_members_leave):
        part(sys.argv[1])
        print(part.__name__, "holds")
