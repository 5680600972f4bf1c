"""What a process tells of its runs: metrics for Prometheus, traces for OpenTelemetry, structured logs.

::

    with telemetry.open(TelemetrySettings(metrics=Address.parse("9464"), log_format=LogFormat.JSON)) as told:
        rlm = RLM(sinks=told.sinks())

All three are consumers of events. None can fail or hold up a run: what they cannot pass on in time is dropped.
"""

from orchestrator.folds.redaction import Redactor
from orchestrator.telemetry.formats import RedactFilter
from orchestrator.telemetry.opening import Telemetry, open
from orchestrator.telemetry.settings import Address, LogFormat, TelemetrySettings

__all__ = ["Address", "LogFormat", "RedactFilter", "Redactor", "Telemetry", "TelemetrySettings", "open"]
