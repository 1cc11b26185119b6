"""Workers that know each other and agree on one of them, by OpenStack's tooz, unchanged, over its etcd3gw driver.

    python tooz_workers.py w1        python tooz_workers.py w2        python tooz_workers.py w3

Needs `pip install tooz etcd3gw`. The driver knows one endpoint: give each worker the member of its own machine.
"""

from __future__ import annotations

import sys
import time

from tooz import ToozError, coordination

GROUP = b"workers"
TIMEOUT_S = 6  # a worker that is silent for so long has left, and what it had locked is free


def main(name: str, endpoint: str) -> None:
    def say(text: str) -> None:
        print(f"{name} {text}", flush=True)

    url = f"etcd3+http://{endpoint}?membership_timeout={TIMEOUT_S}&lock_timeout={TIMEOUT_S}"
    coordinator = coordination.get_coordinator(url, name.encode())
    coordinator.start(start_heart=True)  # a thread keeps membership and locks alive
    try:
        coordinator.create_group(GROUP).get()
    except coordination.GroupAlreadyExist:
        pass
    coordinator.join_group(GROUP, capabilities={"queue": "mail"}).get()
    coordinator.watch_join_group(GROUP, lambda event: say(f"sees {event.member_id.decode()} join"))
    coordinator.watch_leave_group(GROUP, lambda event: say(f"sees {event.member_id.decode()} leave"))
    members = coordinator.get_members(GROUP).get()
    say("joined " + " ".join(sorted(member.decode() for member in members)))
    first = coordinator.get_lock(b"first")  # the driver has no elections: who holds this lock leads
    while True:
        try:
            coordinator.run_watchers()
            if not first.acquired and first.acquire(blocking=False):
                say("leads")
        except ToozError as error:  # no answer in time, say: the next turn asks again
            say(f"tries again: {type(error).__name__}")
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "w1", sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:2379")
    except KeyboardInterrupt:
        pass
