"""What our paths are called where the engine runs, when that is not where this process does.

An orchestrator in a container sees its state directory at the end of a mount; the engine mounts directories by the
host's paths. So the mounts of our own container, as the engine tells them, translate one into the other. A named volume
is a directory of the host too: this way each sandbox still gets its own directory of it, and nothing of its neighbors',
on engines that cannot mount a part of a volume (those before Engine API 1.45).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_MARKERS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_MOUNTS = Path("/proc/self/mountinfo")
# Docker and Podman lay a file of theirs over these, from a folder that has the container's ID in its name.
_LAID_OVER = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class HostPath:
    """A directory of this process, and what the engine's host calls it."""

    here: PurePosixPath
    there: PurePosixPath
    of_volume: bool = False

    def translate(self, path: Path) -> str | None:
        """`path` as the engine's host calls it; None when it is not below `here`."""
        if not path.is_relative_to(self.here):
            return None
        return str(self.there / path.relative_to(self.here))


def own_container(markers: Iterable[Path] = _MARKERS, mounts: Path = _MOUNTS) -> str | None:
    """The ID of the container that this process runs in, as far as it can be seen from inside; else None.

    Source: proc(5), mountinfo: field 4 is the root of the mount within its file system, field 5 the mount point.
    """
    if not any(marker.exists() for marker in markers):
        return None
    for line in mounts.read_text("utf-8", "replace").splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _LAID_OVER and (found := _ID.search(fields[3])):
            return found.group()
    return None


def host_paths(mounts: Iterable[Mapping[str, Any]]) -> list[HostPath]:
    """The `Mounts` of an inspected container (Engine API, ContainerInspect), the deepest first."""
    found = [
        HostPath(PurePosixPath(mount["Destination"]), PurePosixPath(mount["Source"]), mount["Type"] == "volume")
        for mount in mounts
        if mount.get("Type") in ("bind", "volume") and mount.get("Source") and mount.get("Destination")
    ]
    return sorted(found, key=lambda path: len(path.here.parts), reverse=True)
