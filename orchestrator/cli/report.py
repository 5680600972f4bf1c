"""A run's end as JSON: the stable form that `--json` promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.cli.exit_codes import exit_code_of
from orchestrator.cli.services import Result
from orchestrator.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    RLMError,
    SandboxLost,
    SandboxUnavailable,
)
from orchestrator.folds.totals import Totals
from orchestrator.values import BatchSpent, Spent


def spent_json(spent: Spent) -> dict[str, Any]:
    return {
        "calls": spent.calls,
        "cached_calls": spent.cached_calls,
        "failed_calls": spent.failed_calls,
        "input_tokens": spent.usage.input_tokens,
        "output_tokens": spent.usage.output_tokens,
        "cached_input_tokens": spent.usage.cached_input_tokens,
        "cost_usd": spent.cost_usd,
        "unpriced_calls": spent.unpriced_calls,
        "estimated_calls": spent.estimated_calls,
        "sandboxes": spent.sandboxes,
    }


def error_json(error: RLMError) -> dict[str, Any]:
    """Type and message, and what a program may want to decide by."""
    details: dict[str, Any] = {}
    match error:
        case ModelFailed():
            details = {"kind": error.kind, "model": error.model, "status": error.status, "attempts": error.attempts}
        case SandboxLost():
            details = {"cause": error.cause, "sandbox": error.name}
        case SandboxUnavailable():
            details = {"remedy": error.remedy}
        case BudgetExceeded():
            details = {"limit": error.limit, "allowed": error.allowed, "used": error.used, "wanted": error.wanted}
        case DeadlineExceeded():
            details = {"limit": error.limit, "seconds": error.seconds}
        case InvalidInput():
            details = {"name": error.name, "rule": error.rule, "remedy": error.remedy}
        case _:
            pass
    return {
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": int(exit_code_of(error)),
        "details": details,
    }


def batches_json(batches: Iterable[BatchSpent]) -> list[dict[str, Any]]:
    return [
        {
            "depth": each.depth,
            "size": each.size,
            "failed": each.failed,
            "seconds": round(each.seconds, 3),
            "spent": spent_json(each.spent),
        }
        for each in batches
    ]


def answered_json(result: Result, totals: Totals) -> dict[str, Any]:
    return {
        "answer": result.answer,
        "ending": result.ending,
        "run_id": result.run_id,
        "seconds": round(result.seconds, 3),
        "spent": spent_json(result.spent),
        "by_model": _each(result.by_model),
        "by_depth": _each(result.by_depth),
        "by_batch": batches_json(totals.finished_batches),
        "error": None,
    }


def unanswered_json(
    error: Mapping[str, Any], run_id: str, seconds: float, spent: Spent, totals: Totals
) -> dict[str, Any]:
    """A run without an answer. Its parts by model and depth are as events told them."""
    return {
        "answer": None,
        "ending": None,
        "run_id": run_id or None,
        "seconds": round(seconds, 3),
        "spent": spent_json(spent),
        "by_model": _each(totals.by_model),
        "by_depth": _each(totals.by_depth),
        "by_batch": batches_json(totals.finished_batches),
        "error": dict(error),
    }


def _each(parts: Mapping[Any, Spent]) -> dict[str, Any]:
    return {str(name): spent_json(spent) for name, spent in sorted(parts.items())}
