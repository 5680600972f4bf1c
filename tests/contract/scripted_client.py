"""The real `openai` client at a scripted server, in the few calls that the tests make of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from orchestrator.testing.scripted import Policy, ScriptedServer, echo

TEXT = "a reply of several chunks"


@asynccontextmanager
async def served(**policies: Policy) -> AsyncIterator[tuple[ScriptedServer, AsyncOpenAI]]:
    async with ScriptedServer(policies or {"echo": echo}) as server, client_of(server.base_url) as client:
        yield server, client


def client_of(base_url: str, max_retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key="scripted", max_retries=max_retries)


async def ask_echo(client: AsyncOpenAI, faults: str = "", text: str = TEXT, **options: Any) -> Any:
    return await client.chat.completions.create(
        model=f"echo?{faults}" if faults else "echo", messages=[{"role": "user", "content": text}], **options
    )


async def streamed(client: AsyncOpenAI, faults: str = "", into: list[str] | None = None, **options: Any) -> list[str]:
    """The content chunks of a stream. `into` keeps those that came before an error."""
    contents = [] if into is None else into
    async for chunk in await ask_echo(client, faults, stream=True, **options):
        contents += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    return contents
