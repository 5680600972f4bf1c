"""What an orchestrator in a container makes of its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.sandbox.host_paths import host_paths, own_container

ID = "4f5e" * 16

DOCKER = f"""\
611 480 0:74 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/AAAA
640 611 254:1 /var/lib/docker/volumes/state/_data /var/lib/rlm rw,relatime - ext4 /dev/vda1 rw
641 611 254:1 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda1 rw
642 611 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw
"""
PODMAN = f"""\
700 650 0:25 /containers/storage/overlay-containers/{ID}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw
"""
NO_CONTAINER = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 254:0 /srv/names /etc/hostname rw,relatime - ext4 /dev/vda rw
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / ".dockerenv"
    path.touch()
    return path


@pytest.mark.parametrize("mounts", [DOCKER, PODMAN])
def test_the_own_container_is_read_from_what_the_engine_lays_over_its_files(
    mounts: str, marker: Path, tmp_path: Path
) -> None:
    (tmp_path / "mountinfo").write_text(mounts)
    assert own_container([marker], tmp_path / "mountinfo") == ID


def test_without_the_mark_of_a_container_nothing_is_read(tmp_path: Path) -> None:
    assert own_container([tmp_path / "absent"], tmp_path / "absent too") is None


def test_a_mount_that_names_no_container_is_none(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(NO_CONTAINER)
    assert own_container([marker], tmp_path / "mountinfo") is None


def test_the_deepest_mount_wins_and_the_rest_of_the_path_is_kept() -> None:
    paths = host_paths(
        [
            {"Type": "bind", "Source": "/srv/all", "Destination": "/var/lib"},
            {"Type": "volume", "Source": "/docker/volumes/state/_data", "Destination": "/var/lib/rlm"},
            {"Type": "tmpfs", "Source": "", "Destination": "/var/lib/rlm/s/abc-1"},
        ]
    )
    found = [translated for path in paths if (translated := path.translate(Path("/var/lib/rlm/s/abc-1")))]
    assert found[0] == "/docker/volumes/state/_data/s/abc-1"
    # Below its own root, the engine mounts with "rslave" only.
    assert [path.of_volume for path in paths] == [True, False]


def test_a_name_that_only_begins_alike_is_not_below_a_mount() -> None:
    (path,) = host_paths([{"Type": "bind", "Source": "/srv/rlm", "Destination": "/var/lib/rlm"}])
    assert path.translate(Path("/var/lib/rlm-other/s")) is None
    assert path.translate(Path("/var/lib/rlm")) == "/srv/rlm"
