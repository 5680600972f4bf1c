"""What the sandboxes of one process are made with; `build.py` fills it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """Times in seconds, sizes in MiB. `None` for a limit is the policy's own value."""

    state_dir: Path
    engine_state_dir: Path | None = None  # the same as the engine's host calls it; None: found out
    image: str = "rlm-sandbox:latest"  # a tag, resolved to an ID once, or an ID
    runtime: str | None = None
    memory_mib: int | None = None
    cpus: float | None = None
    pids: int | None = None
    tmp_mib: int | None = None
    capacity: int = 32  # sandboxes in use at a time; idle ones of the pool are beside them
    queue_timeout_s: float = 3600.0
    start_timeout_s: float = 60.0
    cell_timeout_s: float = 120.0
    cell_grace_s: float = 5.0
    pool_min: int = 0
    pool_max: int = 4
    refill_delay_s: float = 0.25  # so that a start does not compete with the first cell of the sandbox just taken
    removal_delay_s: float = 0.25  # nor a removal with what its owner does next
    max_lifetime_s: float = 86_400.0
    silence_timeout_s: float = 30.0  # without a word from a guest that sends a heartbeat every few seconds
    sweep_interval_s: float = 300.0
    starts_at_a_time: int = 4  # more than the processors only makes each start slower
    output_head_bytes: int = 32_768
    output_tail_bytes: int = 32_768
