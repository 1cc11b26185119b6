"""The etcd v3 services over a `Backend`: validation, translation to commands of the key-value machine, answers,
error texts.

Public: `EtcdService`, `ETCD_VERSION`, `CLUSTER_VERSION`.
"""

from oarlock.api.etcd.service import CLUSTER_VERSION, ETCD_VERSION, EtcdService

__all__ = ["CLUSTER_VERSION", "ETCD_VERSION", "EtcdService"]
