"""Ids of clusters and members: 64-bit hashes, alike wherever they are computed, and never 0."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def member_id_of(token: str, peer_urls: Sequence[str]) -> int:
    """The id of a first member: the one with these peer URLs in the cluster that begins with this token."""
    return _hash64("member", token, *sorted(peer_urls))


def added_member_id(cluster_id: int, peer_urls: Sequence[str], moment: int) -> int:
    """The id of a member that is added at `moment` (wall clock, ns). It has the moment in it, so that a member that
    comes back under the same URLs is another one: ids of removed members are never used again."""
    return _hash64("added", f"{cluster_id:016x}", str(moment), *sorted(peer_urls))


def cluster_id_of(token: str, member_ids: Sequence[int], origin: str = "") -> int:
    """The id of the cluster that begins with these members. `origin` is empty for a new one; for one that begins with
    an older one's data it says which, so that the two are never taken for each other."""
    ids = (f"{node:016x}" for node in sorted(member_ids))
    return _hash64("cluster", token, *ids, *((origin,) if origin else ()))


def _hash64(*parts: str) -> int:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return int.from_bytes(digest.digest()[:8], "big") or 1
