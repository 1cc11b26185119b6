"""The etcd v3 services over a `Backend`: validation, translation to commands of the key-value machine, answers,
error texts.

Public: `EtcdService`, `ETCD_VERSION`, `CLUSTER_VERSION`.
"""

from oarlock.api.etcd.context import CLUSTER_VERSION, ETCD_VERSION
from oarlock.api.etcd.service import EtcdService

__all__ = ["CLUSTER_VERSION", "ETCD_VERSION", "EtcdService"]
