"""Many connections at a time: all calls are answered, over no more connections than were asked for."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.events import EventLog
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import open_client
from orchestrator.testing.scripted import ChatRequest, Reply, ScriptedServer
from orchestrator.values import Message, Role

CONNECTIONS = 40


async def test_forty_calls_are_answered_at_the_same_time() -> None:
    all_here = asyncio.Barrier(CONNECTIONS)

    async def script(request: ChatRequest) -> Reply:
        await all_here.wait()  # nobody is answered before all have come
        return Reply(request.last_user)

    async with (
        ScriptedServer({"model": script}) as server,
        open_client("sk-test", server.base_url, 30.0, CONNECTIONS) as client,
    ):
        chat = OpenAIChat(client, "model")
        for _ in range(2):  # the second time over connections that are open already
            asks = [chat.chat((Message(Role.USER, f"call {n}"),), EventLog().root(), None) for n in range(CONNECTIONS)]
            replies = await asyncio.gather(*asks)
            assert [reply.text for reply in replies] == [f"call {n}" for n in range(CONNECTIONS)]


async def test_a_proxy_of_the_environment_is_used_by_many_connections_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer({"model": lambda request: Reply("through the proxy")}) as proxy:
        # Nobody listens there: only a proxy can answer for it. A proxy is given the whole address as the path.
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        async with open_client("sk-test", "http://model.invalid/v1", 30.0, CONNECTIONS) as client:
            reply = await OpenAIChat(client, "model").chat((Message(Role.USER, "hello"),), EventLog().root(), None)
    assert reply.text == "through the proxy"
