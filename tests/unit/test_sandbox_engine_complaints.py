"""What an engine says beside its answers is heard."""

from __future__ import annotations

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.engine_complaints import check_warnings, refusal


@pytest.mark.parametrize(
    "warning",
    [
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
    ],
)
def test_a_limit_that_is_not_in_force_is_no_sandbox(warning: str) -> None:
    with pytest.raises(SandboxUnavailable, match="cannot hold a limit") as refused:
        check_warnings(["The requested image's platform is another", warning])
    assert warning in str(refused.value)
    assert "cgroup v2" in refused.value.remedy


def test_what_leaves_the_limits_in_force_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    check_warnings(["Your kernel does not support swap limit capabilities. Memory limited without swap."])
    assert "without swap" in caplog.text


def test_a_refusal_says_what_to_do() -> None:
    assert "make gvisor" in refusal("start", "Unknown runtime specified runsc").remedy
