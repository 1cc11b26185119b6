"""Joining a cluster that exists: which cluster it is, and which of its members we are. (docs/how-to/change-members.md)

The operator adds the member first (`etcdctl member add`), which gives it an id. The member then starts with
`--initial-cluster-state=existing` and `--initial-cluster`, asks the members named there over the peer port, finds
itself by its peer URLs, and checks that what it was told of the others is so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from oarlock.errors import ConfigurationError
from oarlock.transport.limits import TransportLimits
from oarlock.transport.roster import NoRoster, Roster, ask_anyone
from oarlock.transport.tls import PeerTls

log = logging.getLogger(__name__)

JOIN_S: Final = 15.0  # how long to go on asking: those that can be reached may not know of us yet
RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Joined:
    """What the cluster says: its id, and ours in it."""

    cluster_id: int
    member_id: int


async def join(
    name: str,
    peer_urls: Sequence[str],
    initial_cluster: Mapping[str, Sequence[str]],
    tls: PeerTls | None,
    limits: TransportLimits,
    *,
    cluster_id: int = 0,
    join_s: float = JOIN_S,
) -> Joined:
    """Ask the others in `initial_cluster`. Raises `ConfigurationError` that says what does not fit, and what to do.

    `cluster_id`, if not 0, is the one that it must be.
    """
    urls = [url for other, found in sorted(initial_cluster.items()) if other != name for url in found]
    if not urls:
        raise ConfigurationError(
            "initial-cluster-state is existing, and initial-cluster names no other member: give the members of the "
            "cluster as `etcdctl member add` printed them, or --cluster-id to wait for a call from the leader"
        )
    deadline = asyncio.get_running_loop().time() + join_s
    while True:
        try:
            rosters = await ask_anyone(urls, name, peer_urls, tls, limits)
        except NoRoster as error:
            refusal = ConfigurationError(f"no member of the cluster could be asked for its members: {error}")
        else:
            found = _judge(rosters, name, peer_urls, initial_cluster, cluster_id)
            if isinstance(found, Joined):
                return found
            refusal = ConfigurationError(found)
        if asyncio.get_running_loop().time() + RETRY_S > deadline:
            raise refusal
        log.warning('cannot join yet name=%r error="%s"', name, refusal)
        await asyncio.sleep(RETRY_S)


def _judge(
    rosters: Sequence[Roster],
    name: str,
    peer_urls: Sequence[str],
    initial_cluster: Mapping[str, Sequence[str]],
    cluster_id: int,
) -> Joined | str:
    """What the newest answer says; a text if it may be another in a moment. Raises `ConfigurationError`."""
    clusters = sorted({roster.cluster_id for roster in rosters})
    if len(clusters) > 1 or (cluster_id and clusters != [cluster_id]):
        raise ConfigurationError(
            f"the members named in initial-cluster are of cluster {', '.join(f'{c:x}' for c in clusters)}"
            + (f", and cluster-id says {cluster_id:x}" if cluster_id else ": they must be of one")
        )
    roster = rosters[0]
    wanted = sorted(peer_urls)
    own = [member for member in roster.members if sorted(member.peer_urls) == wanted]
    if not own:
        return (
            f"cluster {roster.cluster_id:x} has no member with the peer URLs {','.join(peer_urls)}: add it first "
            f"(etcdctl member add {name} --peer-urls={','.join(peer_urls)})"
        )
    me = own[0]
    if me.name:
        raise ConfigurationError(
            f"member {me.id:x} with the peer URLs {','.join(peer_urls)} has been started before, as {me.name!r}, and "
            "this data directory is empty: what it had promised is lost with it. Remove it (etcdctl member remove "
            f"{me.id:x}) and add it again, or put its data back"
        )
    theirs = {tuple(sorted(member.peer_urls)): member.name for member in roster.members if member.id != me.id}
    given = {tuple(sorted(urls)): other for other, urls in initial_cluster.items() if other != name}
    missing = sorted(set(theirs) - set(given))
    unknown = sorted(set(given) - set(theirs))
    if missing or unknown:
        texts = [f"lacks {theirs[urls] or 'a member'} at {','.join(urls)}" for urls in missing]
        texts += [f"has {given[urls]} at {','.join(urls)}, which is no member" for urls in unknown]
        raise ConfigurationError(
            f"initial-cluster does not fit the cluster {roster.cluster_id:x}: it {'; it '.join(texts)}. "
            "Give it as `etcdctl member add` printed it"
        )
    for urls, other in sorted(theirs.items()):
        if other and other != given[urls]:
            raise ConfigurationError(
                f"initial-cluster calls the member at {','.join(urls)} {given[urls]!r}, and its name is {other!r}"
            )
        if other == name:
            raise ConfigurationError(f"the name {name!r} is that of another member, at {','.join(urls)}: choose one")
    return Joined(roster.cluster_id, me.id)
