"""Oarlock: Raft for Python, as a library and as a server that speaks etcd's API."""

__version__ = "0.1.0"
