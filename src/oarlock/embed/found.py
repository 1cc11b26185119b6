"""The members that DNS gave a node when its directory was new: asked once, and remembered beside the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from oarlock.discovery import find_members, own_among
from oarlock.embed.options import Options
from oarlock.errors import StorageError
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import WriteAheadLog

FILE: Final = "discovered.json"
"""In the data directory: `{"own": address, "members": [addresses]}`, written before the log begins."""


async def discovered(options: Options) -> Options:
    """The options with `peers`: found now, or as they were found when the directory was new. Raises
    `ConfigurationError`, or `StorageError` if they cannot be written down."""
    return await asyncio.to_thread(_discovered, options)


def _discovered(options: Options) -> Options:
    path = Path(options.data_dir) / FILE
    told = options.listen[0] if options.listen else ""
    if WriteAheadLog.exists(RealDisk(), f"{options.data_dir}/wal") and path.exists():
        own, members = _read(path)
    else:
        members = find_members(options.discover)
        own = own_among(members, options.name, told)
        _write(path, own, members)
    peers: Mapping[str, str] = {address: address for address in members if address != own}
    return replace(options, peers={**peers, options.name: own}, listen=options.listen or (own,))


def _read(path: Path) -> tuple[str, Sequence[str]]:
    try:
        content = json.loads(path.read_text())
        return str(content["own"]), [str(each) for each in content["members"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}): remove it, and the members are looked up again", path=str(path)
        ) from error


def _write(path: Path, own: str, members: Sequence[str]) -> None:
    disk = RealDisk()
    disk.mkdir(str(path.parent))
    draft = f"{path}.new"
    file = disk.create(draft)
    try:
        file.pwrite(0, json.dumps({"own": own, "members": list(members)}).encode())
        file.datasync()
    finally:
        file.close()
    disk.rename(draft, str(path))
    disk.sync_dir(str(path.parent))
