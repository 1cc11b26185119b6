"""For people's own tests: a state machine of yours in the simulated world, and real members for one test.

- `Workload`, `simulated`: say what clients ask of a machine, and run it through seeds of a world that fails;
- `ObjectWorkload`, `calling`: the same for a class with `@command` methods;
- `lease_granted`, `lease_renewed`, `lease_revoked`, `time_passes`: what befalls the leases that locks hang on;
- `Choose`: what a workload draws its commands with;
- `run`, `Report`: the same without pytest;
- `Cluster`: members in this process, on real sockets and disks (the pytest fixture `cluster` makes them).

docs/tutorial/test-your-machine.md is the way in; docs/reference/testing.md has every name.
"""

from oarlock.testing.cluster import Cluster, ClusterFailed
from oarlock.testing.objects import (
    Call,
    HolderEvent,
    ObjectWorkload,
    calling,
    lease_granted,
    lease_renewed,
    lease_revoked,
    time_passes,
)
from oarlock.testing.runner import FAULTS, Report, run, simulated
from oarlock.testing.workload import Choose, Workload

__all__ = [
    "Call",
    "Choose",
    "Cluster",
    "ClusterFailed",
    "FAULTS",
    "HolderEvent",
    "ObjectWorkload",
    "Report",
    "Workload",
    "calling",
    "lease_granted",
    "lease_renewed",
    "lease_revoked",
    "run",
    "simulated",
    "time_passes",
]
