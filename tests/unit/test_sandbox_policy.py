"""The policy file is strict, complete, and what the engine is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import InvalidInput
from orchestrator.sandbox import policy as policy_module
from orchestrator.sandbox.container_config import adapt_to_podman, container_config
from orchestrator.sandbox.engine import ContainerSpec
from orchestrator.sandbox.policy import Policy, load_policy

TEXT = Path(policy_module.__file__).with_name("policy.toml").read_text()


def load(text: str, tmp_path: Path) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return load_policy(path)


def spec(policy: Policy) -> ContainerSpec:
    return ContainerSpec("rlm-x-1", "sha256:1", policy, Path("/state/s/x-1"), {"A": "b"}, {"l": "v"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[network]", "[networks]", "missing required field|unknown field"),
        ('value = "none"\nreason = "Nothing', 'value = "bridge"\nreason = "Nothing', "network"),
        ("read_only_root]\nvalue = true", "read_only_root]\nvalue = false", "read_only_root"),
        ("no_new_privileges]\nvalue = true", "no_new_privileges]\nvalue = false", "no_new_privileges"),
        ("privileged]\nvalue = false", "privileged]\nvalue = true", "privileged"),
        ("first = 1879048192", "first = 0", "users"),
        ("first = 1879048192", "first = 4294967296", "users"),
        ('["ALL"]', '["CHOWN"]', "capabilities_dropped"),
        ("oom_score_adj]\nvalue = 500", "oom_score_adj]\nvalue = -500", "oom_score_adj"),
        ("pids]\nvalue = 256", 'pids]\nvalue = "256"', "pids"),
        ("pids]\nvalue = 256", "pids]\nvalue = 256\nextra = 1", "extra"),
        ("[pids]", "[pids", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidInput, match=said):
        load(TEXT.replace(old, new, 1), tmp_path)


def test_every_rule_gives_its_reason(tmp_path: Path) -> None:
    for name in Policy.__struct_fields__:
        assert len(getattr(load_policy(), name).reason.split()) > 3, name


def test_a_persons_limits_are_checked_by_the_same_types() -> None:
    policy = load_policy().with_limits(memory_mib=512, cpus=0.5, pids=64, tmp_mib=16, runtime="runsc")
    host = container_config(spec(policy))["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (512 * 1024**2, 512 * 1024**2)
    assert (host["NanoCpus"], host["PidsLimit"], host["Runtime"]) == (500_000_000, 64, "runsc")
    assert "size=16m" in host["Tmpfs"]["/tmp"]
    with pytest.raises(InvalidInput, match="memory_mib"):
        load_policy().with_limits(memory_mib=1)


def test_without_a_persons_limits_the_policy_stays_as_it_is() -> None:
    policy = load_policy()
    assert msgspec.to_builtins(policy.with_limits()) == msgspec.to_builtins(policy)


def test_the_engine_is_told_all_of_it() -> None:
    config = container_config(spec(load_policy()))
    host = config["HostConfig"]
    assert config["User"] == "1879048192:1879048192"
    assert config["WorkingDir"] == "/"
    assert config["NetworkDisabled"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == host["GroupAdd"] == []
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["Memory"] == host["MemorySwap"]
    assert host["OomScoreAdj"] >= 0
    assert host["LogConfig"]["Type"] == "none"
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert {"nosuid", "nodev", "noexec"} <= set(host["Tmpfs"]["/tmp"].split(","))
    for path in ("/dev/mqueue", "/dev/pts"):
        assert "ro" in host["Tmpfs"][path].split(",")
    assert "/proc/kcore" in host["MaskedPaths"]
    assert "/proc/sys" in host["ReadonlyPaths"]
    assert {"Name": "msgqueue", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert "Binds" not in host
    [mount] = host["Mounts"]
    assert (mount["Target"], mount["ReadOnly"]) == ("/rlm", True)
    assert "Runtime" not in host
    assert "Devices" not in host


def test_podman_is_told_the_same_where_it_differs_in_how_it_is_told(tmp_path: Path) -> None:
    host = container_config(spec(load_policy()))["HostConfig"]
    before = {each["Name"]: each for each in host["Ulimits"]}
    adapt_to_podman({"HostConfig": host}, tmp_path, Path("/on/its/host"))
    after = {each["Name"]: each for each in host["Ulimits"]}
    # More than it may have itself would fail each start.
    assert after == before | {"nproc": {"Name": "nproc", "Soft": 32_768, "Hard": 32_768}}
    assert "nr_inodes" not in str(host["Tmpfs"])
    (file,) = tmp_path.iterdir()
    assert f"seccomp=/on/its/host/{file.name}" in host["SecurityOpt"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_sandboxes_that_follow_one_another_have_different_users_also_where_an_engine_has_few() -> None:
    policy = load_policy()
    for mapped in (False, True):
        users = (policy.users_of_a_mapped_engine if mapped else policy.users).value
        last = users.first + users.count - 1
        told = [
            container_config(replace(spec(policy), identity=identity, mapped_users=mapped))["User"]
            for identity in range(users.count - 2, users.count + 1)
        ]
        assert told == [f"{last - 1}:{last - 1}", f"{last}:{last}", f"{users.first}:{users.first}"]
        assert last < (65536 if mapped else 2**31), "the engine, or an int32, has no such user"


def test_a_profile_elsewhere_than_beside_the_policy_is_refused(tmp_path: Path) -> None:
    start = TEXT.index("[seccomp]")
    text = TEXT[:start] + '[seccomp]\nvalue = "../x"\n' + TEXT[TEXT.index("reason", start) :]
    with pytest.raises(InvalidInput, match="seccomp"):
        _ = load(text, tmp_path).seccomp_profile
