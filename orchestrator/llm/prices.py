"""What a call costs. An unknown price is None, never zero.

Prices come from the `genai-prices` package's bundled data (no network), for the provider whose address it is. The price
of a model behind any other address is not guessed from its name: it is what the user says, or unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from orchestrator.errors import InvalidInput
from orchestrator.llm.openai_client import DEFAULT_BASE_URL
from orchestrator.values import Usage

logger = logging.getLogger(__name__)

Price: TypeAlias = Callable[[Usage], float]  # USD
_FIELDS = frozenset({"input", "output", "cached_input"})


class Prices:
    """Prices by model name.

    `overrides` are USD per million tokens: `{"my-model": {"input": 1.0, "output": 4.0, "cached_input": 0.1}}`;
    `cached_input` is that of `input` when it is left out.

    Raises `InvalidInput` for an override with other fields, or without "input" and "output".
    """

    def __init__(self, overrides: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._overrides = {model: _override(model, fields) for model, fields in (overrides or {}).items()}

    def of(self, model: str, base_url: str | None = None) -> Price | None:
        """The price of a model as served at an address (OpenAI's when None), or None when it is not known."""
        if model in self._overrides:
            return self._overrides[model]
        return _bundled(model, base_url or DEFAULT_BASE_URL)


def _override(model: str, fields: Mapping[str, float]) -> Price:
    missing = {"input", "output"} - fields.keys()
    if missing or fields.keys() - _FIELDS or any(not value >= 0 for value in fields.values()):
        raise InvalidInput(
            f"prices[{model!r}]",
            'must give "input" and "output", and may give "cached_input", in USD per million tokens, 0 or more.',
            f"It is {dict(fields)!r}.",
        )
    input_usd, output_usd = fields["input"], fields["output"]
    cached_usd = fields.get("cached_input", input_usd)

    def price(usage: Usage) -> float:
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        fresh = usage.input_tokens - cached
        return (fresh * input_usd + cached * cached_usd + usage.output_tokens * output_usd) / 1_000_000

    return price


def _bundled(model: str, base_url: str) -> Price | None:
    # Half a second to import: only a process that prices a call pays for it.
    import genai_prices

    def price(usage: Usage) -> float:
        tokens = genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=min(usage.cached_input_tokens, usage.input_tokens),
        )
        return float(genai_prices.calc_price(tokens, model_ref=model, provider_api_url=base_url).total_price)

    try:
        price(Usage(1, 1))
    except LookupError:
        return None
    except Exception:
        # The bundled data is not ours; a fault in it must not fail a run that only wants to know its cost.
        logger.warning("the bundled price of %r cannot be read; its cost is unknown", model, exc_info=True)
        return None
    return price
