"""What a guest's hanging up means, which it never does of its own accord: how its container ended says it. Pure."""

from __future__ import annotations

from orchestrator.errors import LossCause
from orchestrator.sandbox.engine import ContainerExit

_SIGKILLED = 137


def why_it_hung_up(ended: ContainerExit | None) -> tuple[LossCause, str]:
    """The cause, and the detail of it for people; None: the container has not ended."""
    match ended:
        case None:
            return LossCause.PROTOCOL, "the guest ended its stream while its container ran on"
        case ContainerExit(exit_code=code, out_of_memory=True) if code == _SIGKILLED:
            return LossCause.OUT_OF_MEMORY, "the container hit its memory limit. Raise RLM_MEMORY_MIB"
        case ContainerExit(exit_code=code) if code == _SIGKILLED:
            # Under gVisor, the limit ends the container's kernel as a whole, and the engine does not see of what.
            return LossCause.EXITED, (
                f"the container was killed (status {code}): by its memory limit, or by somebody on this host"
            )
        case ContainerExit(exit_code=code):
            return LossCause.EXITED, f"the container ended with status {code}"
