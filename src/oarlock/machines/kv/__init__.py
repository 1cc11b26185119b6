"""The key-value machine: etcd's multi-version model. Public: `KvMachine`; its commands and results are in `commands`,
the stored form of a key-value in `encoding`."""

from oarlock.machines.kv.machine import KvMachine

__all__ = ["KvMachine"]
