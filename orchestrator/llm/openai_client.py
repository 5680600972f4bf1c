"""The process's one connection pool to an OpenAI-compatible API. Importing this does not import the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.errors import InvalidInput

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from orchestrator.llm.openai_plain import PlainRequests

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_CONNECT_TIMEOUT_S = 15.0


@dataclass(slots=True)
class Dialect:
    """What this server turned out to understand; learned from its first rejection, then kept."""

    output_limit_field: str  # "max_completion_tokens", or "max_tokens" on most servers other than OpenAI's
    stream_usage: bool = True  # takes `stream_options: {"include_usage": true}`
    # By model: an output limit that it refused as more than it can give. Not sent any more, it still holds.
    refused_limits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenAIClient:
    """One long-lived SDK client, shared by all models, depths and runs of a process.

    It belongs to the event loop that opened it: its connections cannot be used from another one.
    """

    sdk: AsyncOpenAI = field(repr=False)
    plain: PlainRequests = field(repr=False)
    base_url: str
    timeout_s: float  # of one request, streaming included
    secret: str = field(repr=False)  # kept to be cut out of messages
    loop: asyncio.AbstractEventLoop = field(repr=False)
    dialect: Dialect

    def check_loop(self) -> None:
        """Raises `InvalidInput` in any other event loop than the client's own."""
        if asyncio.get_running_loop() is not self.loop:
            raise InvalidInput(
                "model client",
                "belongs to the event loop that opened it, and was called from another one.",
                "Open a client in each loop, or hand the call over with asyncio.run_coroutine_threadsafe.",
            )


@asynccontextmanager
async def open_client(
    api_key: str | None,
    base_url: str | None = None,
    timeout: float = 600.0,
    max_connections: int = 32,
    *,
    output_limit_field: str | None = None,
) -> AsyncIterator[OpenAIClient]:
    """Opens the client for the block. `timeout` is of one request, in seconds, streaming included.

    Without `base_url` the API is OpenAI's and a key is needed; other servers may do without. `output_limit_field` is
    the request's field for the output limit, when the server's differs from the guess by its address.

    Raises `InvalidInput` for a missing or mutilated key, or a bad address.
    """
    address = base_url or DEFAULT_BASE_URL
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("base_url", f"must be an http(s) address; it is {address!r}.", "Check OPENAI_BASE_URL.")
    if not api_key and base_url is None:
        raise InvalidInput("api_key", "is not set.", "Set OPENAI_API_KEY, or OPENAI_BASE_URL of a server without keys.")
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidInput(
            "api_key",
            "holds a character that no key has.",
            "Look for a line end or a typographic sign in OPENAI_API_KEY.",
        )
    # The SDK takes over a second to import: only a process that asks a model pays for it.
    from orchestrator.llm.openai_sdk import new_sdk_client

    sdk, plain = new_sdk_client(api_key or "none", address, timeout, _CONNECT_TIMEOUT_S, max_connections)
    limit_field = output_limit_field or _output_limit_field(parts.hostname)
    try:
        yield OpenAIClient(
            sdk, plain, address, timeout, api_key or "", asyncio.get_running_loop(), Dialect(limit_field)
        )
    finally:
        try:
            await plain.close()
        finally:
            await sdk.close()


def _output_limit_field(host: str) -> str:
    # Reasoning models reject max_tokens at OpenAI and Azure; most compatible servers know nothing else.
    if host == "api.openai.com" or host.endswith((".openai.com", ".openai.azure.com")):
        return "max_completion_tokens"
    return "max_tokens"
