"""Releases of what runs containers that fixed known ways out of one. Looked up last in November 2026: see the
advisories of github.com/opencontainers/runc, containerd/containerd and moby/moby. The one place where such versions
stand.
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
    # A hostile image's labels run commands on the host, where Kubernetes shares this containerd, and its users become
    # root; before 1.7.29, 2.0.7 and 2.1.5, directories of the host are open.
    Fixed(
        "containerd",
        {(1, 7): (1, 7, 33), (2, 0): (2, 0, 10), (2, 1): (2, 1, 9), (2, 2): (2, 2, 5), (2, 3): (2, 3, 2)},
        "CVE-2026-53488, CVE-2026-46680, CVE-2024-25621",
        "trusts images too far, or leaves directories open to the host's other users",
    ),
    # Calls that an authorization plugin does not see whole; the fix of 2024 was not all. Older branches have none.
    Fixed(
        "engine",
        {(29, 3): (29, 3, 1)},
        "CVE-2026-34040, CVE-2024-41110",
        "lets calls past authorization plugins, where there are any",
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
