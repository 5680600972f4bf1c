"""Releases of what runs containers that fixed known ways out of one. Looked up last in May 2026: see the advisories of
github.com/opencontainers/runc, containerd/containerd and moby/moby. The one place where such versions stand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Numbers = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Fixed:
    """The first release of each branch without what `cves` names; a branch older than all of them has none."""

    component: str
    branches: dict[tuple[int, int], Numbers]
    cves: str
    what: str

    @property
    def newest(self) -> Numbers:
        return max(self.branches.values())


FIXED = (
    # A container in the making can be led out of its root: by masked paths, /dev/console, redirected writes to /proc.
    Fixed(
        "runc",
        {(1, 2): (1, 2, 8), (1, 3): (1, 3, 3)},
        "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
        "has known container escapes",
    ),
    # Open directories on the host; and, before 1.6.38, 1.7.27 and 2.0.4, a user number over an int32 that becomes root.
    Fixed(
        "containerd",
        {(1, 7): (1, 7, 29), (2, 0): (2, 0, 7), (2, 1): (2, 1, 5)},
        "CVE-2024-25621, CVE-2024-40635, CVE-2025-64329",
        "leaves directories open to the host's other users",
    ),
    # Calls that an authorization plugin does not see whole. The branches before have no fix, or end before it.
    Fixed(
        "engine",
        {(23, 0): (23, 0, 15), (25, 0): (25, 0, 6), (26, 1): (26, 1, 5), (27, 1): (27, 1, 1)},
        "CVE-2024-41110",
        "lets calls past authorization plugins, and its branch may get no fixes",
    ),
)


def numbers_of(version: str) -> Numbers | None:
    """The first three numbers of a version as components write it (1.1.5+ds1-1, v1.7.27, 20.10.24+dfsg1)."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def outdated(component: str, version: str) -> Fixed | None:
    """What a component of this version lacks; None when that is nothing known, or the version tells nothing."""
    found = numbers_of(version)
    for fixed in FIXED:
        if found is not None and fixed.component == component:
            oldest_fixed = fixed.branches.get(found[:2])
            if found < oldest_fixed if oldest_fixed is not None else found < fixed.newest:
                return fixed
    return None
