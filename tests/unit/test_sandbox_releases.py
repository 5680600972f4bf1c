"""Versions as components write them, judged by the table of fixed releases."""

from __future__ import annotations

import pytest

from orchestrator.sandbox.releases import outdated


@pytest.mark.parametrize(
    ("component", "version", "fixed"),
    [
        ("runc", "1.1.5+ds1-1+deb12u1", False),
        ("runc", "1.2.7", False),
        ("runc", "1.2.8", True),
        ("runc", "1.3.2", False),
        ("runc", "1.4.0", True),
        ("containerd", "1.6.20~ds1-1+deb12u3", False),
        ("containerd", "v1.7.32", False),
        ("containerd", "v1.7.33", True),
        ("containerd", "v2.0.9", False),
        ("containerd", "v2.3.1", False),
        ("containerd", "v2.3.2", True),
        ("containerd", "v2.4.0", True),
        ("engine", "20.10.24+dfsg1", False),
        ("engine", "24.0.9", False),
        ("engine", "28.5.2", False),
        ("engine", "29.3.0", False),
        ("engine", "29.3.1", True),
        ("engine", "29.5.3", True),
        ("engine", "dev", True),  # nothing is known of it
        ("crun", "0.1.0", True),
    ],
)
def test_known_holes(component: str, version: str, fixed: bool) -> None:
    assert (outdated(component, version) is None) is fixed
