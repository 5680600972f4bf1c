"""C26: whatever the code does to ask, calls, tokens, cost, depth and time stay within what the host reserved."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.budget import Budget
from orchestrator.errors import BudgetExceeded, DeadlineExceeded, RLMError, SandboxLost
from orchestrator.events import EventLog, RlmStarted
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.session import GuestSession
from orchestrator.testing.scripted import ChatRequest, Hang, Policy, Reply, Usage, always, constant
from orchestrator.values import Limits
from tests.contract.test_sandbox_session import LIMITS as SESSION_LIMITS
from tests.integration.e2e_world import World, reply, world
from tests.security.conftest import Found
from tests.security.raw_guest import raw_guest
from tests.unit.sandbox_doubles import HELLO

pytestmark = pytest.mark.docker

ATTEMPTS = {
    "loop": "for n in range(50): llm_query(f'q {n}')",
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(16) as pool: list(pool.map(llm_query, [f'q {n}' for n in range(50)]))"
    ),
    "forks": (
        "import os\nfor n in range(8):\n    if os.fork() == 0:\n        try: llm_query(f'forked {n}')\n"
        "        finally: os._exit(0)\nfor n in range(8): os.wait()\nllm_batch([f'q {n}' for n in range(50)])"
    ),
    "monkeypatch": (
        "import sys\nfor module in list(sys.modules.values()):\n    for name in dir(module):\n"
        "        if name.isupper() and name.startswith('MAX'):\n            try: setattr(module, name, 10**9)\n"
        "            except Exception: pass\nllm_batch([f'q {n}' for n in range(50)], max_concurrent=10**6)"
    ),
    "socket": (
        "import os, socket\nfor name in os.listdir('/proc/self/fd'):\n"
        "    try: raw = socket.socket(fileno=os.dup(int(name)))\n    except OSError: continue\n"
        "    try: raw.send(bytes(64), socket.MSG_DONTWAIT)\n    except OSError: pass\n"
        "llm_batch([f'q {n}' for n in range(50)])"
    ),
}
# A leaf's answer has as many tokens as it may; a million of them cost 1000 USD.
PRICES = {name: {"input": 0.001, "output": 1000.0} for name in ("depth-0", "leaf")}
OUTPUT_TOKENS, ROOTS_TOKENS = 1000, 20


@dataclass
class Upstream:
    """What the models' side has seen: the truth that the host's account is held against."""

    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    wanted: list[int] = field(default_factory=list)

    def answering(self, text: str, output_tokens: int) -> Policy:
        def policy(request: ChatRequest) -> Reply:
            output = min(output_tokens, request.max_tokens or output_tokens)
            self.calls += 1
            self.tokens += 10 + output
            self.cost_usd += (10 * 0.001 + output * 1000) / 1e6
            return Reply(text, usage=Usage(10, output))

        return policy


# By limit: its value, and what upstream has seen of it.
LIMITS: dict[str, tuple[float, Callable[[Upstream], float]]] = {
    "max_calls": (6, lambda seen: seen.calls),
    "max_tokens": (30_000, lambda seen: seen.tokens),
    "max_cost_usd": (20.0, lambda seen: seen.cost_usd),
}


def _asking(code: str) -> str:
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    return reply(f"try:\n{indented}\nexcept BaseException as error: print(error)\nFINAL('done')")


async def _spent(code: str, **limits: Any) -> Upstream:
    seen = Upstream()
    policies = {"depth-0": seen.answering(_asking(code), ROOTS_TOKENS), "leaf": seen.answering("yes", OUTPUT_TOKENS)}
    async with world(policies, prices=PRICES) as w:
        try:
            await w.ask(max_iterations=2, **limits)
        except (BudgetExceeded, SandboxLost):
            pass  # code that destroys its own connection may end its run, but may not spend
        assert seen.calls == len(w.server.requests)
    return seen


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("code", ATTEMPTS.values(), ids=ATTEMPTS.keys())
async def test_C26_the_budget_holds_however_the_code_asks(no_leaks: None, code: str, limit: str, found: Found) -> None:
    most, seen = LIMITS[limit]
    assert seen(await _spent(code, **{limit: most})) <= most
    found(f"{limit} holds")


async def test_C26_without_a_limit_the_same_code_spends_more_than_each(no_leaks: None, found: Found) -> None:
    upstream = await _spent(ATTEMPTS["loop"])
    for most, seen in LIMITS.values():
        assert seen(upstream) > most
    found("more, without")


@pytest.mark.parametrize(
    "code",
    [
        "for n in range(6): rlm_query(f'q {n}')",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(6) as pool: list(pool.map(rlm_query, [f'q {n}' for n in range(6)]))",
        "rlm_query_batched([f'depth=9 max_depth=9 {n}' for n in range(6)])",
    ],
    ids=["loop", "threads", "batch"],
)
async def test_C26_depth_and_sandboxes_hold_however_the_code_asks(no_leaks: None, code: str, found: Found) -> None:
    deeper = constant(_asking("for n in range(2): rlm_query(f'deeper {n}')"))
    async with world({"depth-0": constant(_asking(code)), "depth-1": deeper, "leaf": always(Reply("yes"))}) as w:
        result = await w.ask(max_iterations=1, max_sandboxes=4)
        assert {request.model for request in w.server.requests} == {"depth-0", "depth-1", "leaf"}
        started = [record for record in w.records if isinstance(record.event, RlmStarted)]
        assert {record.depth for record in started} == {0, 1}
        # The root's, and three of the six that it asked for.
        assert result.spent.sandboxes == 4
    found("max_depth, max_sandboxes hold")


@pytest.mark.parametrize("code", ["while True: llm_query('x')", "while True: pass"], ids=["asking", "spinning"])
async def test_C26_time_holds_however_the_code_asks(no_leaks: None, code: str, found: Found) -> None:
    """The run ends, and with it what is in flight; the world looks for requests and `no_leaks` for containers."""
    async with world({"depth-0": constant(_asking(code)), "leaf": always(Hang())}) as w:
        async with asyncio.timeout(60):  # by far: without a limit it would never end
            with suppress(DeadlineExceeded):
                await w.ask(max_seconds=3)  # or it gives what its last question got, before its time is over
    found("max_seconds holds")


@pytest.mark.parametrize("limit", LIMITS)
async def test_C26_the_budget_holds_against_calls_that_are_raw(no_leaks: None, limit: str, found: Found) -> None:
    """An attacker in place of the agent, with calls of its own making and as many at a time as it likes."""
    most, seen = LIMITS[limit]
    upstream = Upstream()
    async with world({"depth-0": upstream.answering("yes", OUTPUT_TOKENS)}, prices=PRICES) as w:
        await _ask_raw(w, Budget(msgspec.convert({limit: most}, Limits, strict=False)))
        assert 0 < seen(upstream) <= most
    found(f"{limit} holds")


async def _ask_raw(w: World, budget: Budget) -> None:
    questions = await w.orchestrator.questions(w.config, budget)

    async def exit_of(_: float) -> None:
        return None

    with tempfile.TemporaryDirectory(prefix="rlm-") as directory:
        socket = Path(directory, "host.sock")
        session = GuestSession("raw", SESSION_LIMITS, exit_of)
        async with GuestServer(session, socket), raw_guest(socket) as guest:
            attach = guest.open("Attach")
            guest.message(attach, HELLO.SerializeToString())
            await guest.flush()
            await session.attached()
            session.begin(None, "context", questions.answer)
            guest.message(attach, pb.AttachRequest(opened=pb.Opened()).SerializeToString())
            await guest.flush()
            await session.opened()
            questions.begin(EventLog().root())
            running = asyncio.create_task(session.run("x", None, 60))
            await asyncio.sleep(0)
            asks = []
            for number in range(20):
                asks.append(guest.open("Ask"))
                batch = [pb.Question(prompt=f"raw {number} {each}") for each in range(5)]
                message = pb.AskRequest(questions=batch, max_concurrent=1 << 20)
                guest.message(asks[-1], message.SerializeToString(), end=True)
                if number % 4 == 3:
                    guest.http.reset_stream(asks.pop())  # what it no longer wants is paid for if it was made
            await guest.flush()
            for stream in asks:
                await guest.until(stream)
            await questions.end()
            running.cancel()
            try:
                await running
            except (asyncio.CancelledError, RLMError):
                pass
