"""What a service allows, beside its orchestrator's `Config`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from orchestrator.store.rows import RetentionLimits

MIB = 1024 * 1024


class HostingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Checked when the desks are opened. Sizes are in bytes, times in seconds."""

    max_depth: Annotated[int, Meta(ge=1, le=16, description="most max_depth that a run may choose")] = 4
    max_inline_bytes: Annotated[int, Meta(ge=1, description="a context within a request")] = 16 * MIB
    max_upload_bytes: Annotated[int, Meta(ge=1, description="an uploaded context")] = 8 * 1024 * MIB
    max_running: Annotated[int, Meta(ge=1, description="runs at a time, over all principals")] = 256
    max_session_s: Annotated[float, Meta(gt=0, description="longest that a session may be kept between turns")] = 3600.0
    idle_timeout_s: Annotated[float, Meta(gt=0, description="a kept sandbox without a cell, unless it asks")] = 600.0
    max_idle_timeout_s: Annotated[float, Meta(gt=0, description="longest idle time that may be asked for")] = 3600.0
    watcher_queue: Annotated[int, Meta(ge=1, description="records that a slow watcher may be behind")] = 1024
    retention_interval_s: Annotated[float, Meta(gt=0, description="between two looks for what may go")] = 300.0
    max_age_s: float | None = None  # of runs that have ended
    max_runs: int | None = None  # that have ended and are kept
    max_bytes: int | None = None  # of runs, events and contexts together

    @property
    def retention(self) -> RetentionLimits:
        return RetentionLimits(max_age_s=self.max_age_s, max_runs=self.max_runs, max_bytes=self.max_bytes)
