"""The prices that come with a library: what we rely on of them."""

from __future__ import annotations

from orchestrator.llm.prices import Prices
from orchestrator.values import Usage


def test_a_bundled_price_is_of_openais_address_only() -> None:
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert 0 < price(Usage(1_000_000, 0)) < price(Usage(1_000_000, 1_000_000))
    assert price(Usage(1_000_000, 0, 1_000_000)) < price(Usage(1_000_000, 0))
    assert Prices().of("gpt-4o-mini", "http://127.0.0.1:8000/v1") is None
    assert Prices().of("no-such-model") is None
