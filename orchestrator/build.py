"""The composition root: the one place that knows all the parts and joins them.

An `Orchestrator` is what a process holds open: the engine's sandboxes, the API's connections, the semaphore that all
requests share. A run is composed anew from cheap wrappers around these::

    chat  = Metered(Cached(Retried(Throttled(OpenAIChat))), budget)         one a depth: its model may differ
    model = Leaf(chat)                                                      depth == max_depth: a plain completion
    model = RLM(chat, sub=model, sandboxes)                                 for each depth above it
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from orchestrator.budget import Budget, Share
from orchestrator.config import Config, RunSettings
from orchestrator.errors import InvalidInput
from orchestrator.events import EventLog, Outcome, RunEnded, RunStarted, Sink
from orchestrator.folds.totals import Totals
from orchestrator.llm.cache import AnswerCache, Cached
from orchestrator.llm.metered import Metered
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import OpenAIClient, open_client
from orchestrator.llm.prices import Prices
from orchestrator.llm.retries import Retried
from orchestrator.llm.throttle import Throttle, Throttled
from orchestrator.rlm.batch import Questions
from orchestrator.rlm.deadline import in_time
from orchestrator.rlm.driver import RLM
from orchestrator.rlm.iterations import iterations_at
from orchestrator.rlm.leaf import Leaf
from orchestrator.rlm.session import CellQuestions
from orchestrator.run_session import RunSession
from orchestrator.runtimes import Runtimes
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.sandbox.factory import DockerSandboxes, SandboxesOfRuntime
from orchestrator.sandbox.self_check import Findings
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.seams import Answer, ChatModel, ContextStore, LanguageModel, Sandbox, SandboxFactory
from orchestrator.values import Completion, Context, Deadline, Prompt, RunResult

__all__ = ["Orchestrator", "RunResult", "open_orchestrator"]

PLAIN_CHARS = 20_000  # with adaptive_depth: about 5,000 tokens, which any model reads well in one go
MAX_LEAF_CONTEXT_BYTES = 4 * 1024 * 1024  # a plain model's window is smaller still: it will say so itself


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Sandboxes of a process at this moment."""

    in_use: int
    idle: int  # made ahead, waiting to be taken


class Orchestrator:
    """What a process holds open to run RLMs and sandboxes. Made by `open_orchestrator`; belongs to its event loop."""

    def __init__(
        self,
        config: Config,
        sandboxes: SandboxFactory,
        contexts: ContextStore,
        cleaned: Sequence[str],
        stack: AsyncExitStack,
        occupancy: Callable[[], Occupancy] = lambda: Occupancy(0, 0),
        warm_up: Callable[[int], None] = lambda _: None,
        of_runtime: Callable[[str | None], SandboxesOfRuntime] | None = None,
    ) -> None:
        self.config = config
        self.sandboxes = sandboxes
        self.contexts = contexts
        self.cleaned = tuple(cleaned)
        self.occupancy = occupancy
        self._warm_up = warm_up
        self._runtimes = Runtimes(config.runtime, sandboxes, of_runtime)
        self._stack = stack
        self._clients: dict[tuple[str | None, str | None], OpenAIClient] = {}
        self._throttle = Throttle(config.max_concurrent)
        self._answers = AnswerCache(config.cache_mib * 1024 * 1024)
        self._prices = Prices(config.prices)

    async def ask(
        self,
        query: str,
        context: object = None,
        *,
        settings: RunSettings | None = None,
        sinks: Sequence[Sink] = (),
        run_id: str | None = None,
        session: RunSession | None = None,
        share: Share | None = None,
    ) -> RunResult:
        """Runs an RLM to its answer.

        `context` is whatever `ContextStore.put` takes, or a `Context` that it gave. `sinks` see every event. `run_id`
        names the run, see `new_run_id`. `session` is where the root's sandbox and conversation are kept: a second run
        with it goes on with the same variables, and `context` counts the first time only. `share` is an account that
        other runs draw on too.
        Cancelling it cancels the requests in flight and removes the containers of the whole tree first.

        Raises `InvalidInput`, `ModelFailed`, `SandboxUnavailable`, `SandboxLost`, `BudgetExceeded`, `DeadlineExceeded`.
        """
        settings = settings or self.config
        self._check(query, settings)
        budget = Budget(settings.limits, share)
        sandboxes = await self._runtimes.sandboxes(settings.runtime)
        if session is not None:
            session.use(sandboxes, None if self._runtimes.is_usual(settings.runtime) else settings.runtime)
        if (session is None or not session.opened) and sandboxes is self.sandboxes:
            # The root's container starts while the SDK is imported and the context written. Not a child's too: it would
            # compete with the root's, and can start later, while the child's own model thinks.
            self._warm_up(min(1, self.config.pool_max))
        model = await self._compose(settings, budget, sandboxes, session)
        name = run_id or new_run_id()
        if session is not None and (news := session.take_news()):
            query = f"{query}\n\n{news}"
        if context is None or isinstance(context, Context):
            return await self._run(name, Prompt(query, context), model, budget, settings, sinks)
        stored = await self.contexts.put(context)
        try:
            return await self._run(name, Prompt(query, stored), model, budget, settings, sinks)
        finally:
            await self.contexts.drop(stored)

    async def check_sandboxes(self, *, allow_weaker: bool = False) -> None:
        """Attacks a sandbox of this host from inside; what it may not hold is in `weaknesses` afterwards.

        From then on, another runtime that a run asks for is attacked likewise before its first use, and has to be
        gVisor's: who calls a service does not choose less than its operator did.

        Raises `SandboxUnavailable`, naming the probes, where sandboxes do not hold what they must, unless that is
        allowed.
        """
        await self._runtimes.check(allow_weaker=allow_weaker)

    async def probe_sandboxes(self) -> Findings:
        """The same attacks, for a person: nothing is refused. Raises `SandboxUnavailable`, `SandboxLost`."""
        return await self._runtimes.probe()

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What `check_sandboxes`, and the checks of further runtimes, let pass."""
        return self._runtimes.weaknesses

    @asynccontextmanager
    async def sandbox(self, context: object = None, answer: Answer | None = None) -> AsyncIterator[Sandbox]:
        """A sandbox for code without an RLM around it; destroyed after the block."""
        stored = None if context is None else await self.contexts.put(context)
        try:
            async with self.sandboxes.open(stored, answer) as sandbox:
                yield sandbox
        finally:
            if stored is not None:
                await self.contexts.drop(stored)

    @asynccontextmanager
    async def session(self, height: int) -> AsyncIterator[RunSession]:
        """Keeps a root's sandbox and conversation for the runs that are given it, one at a time. See `RunSession`."""
        session = RunSession(self.sandboxes, height)
        try:
            yield session
        finally:
            await session.close()

    async def questions(self, settings: RunSettings, budget: Budget) -> CellQuestions:
        """Answers for the code of a sandbox without an RLM: from the root's model of these settings, in plain calls."""
        leaf = Leaf(await self._chat(settings, 0, budget), self.contexts, MAX_LEAF_CONTEXT_BYTES)
        return CellQuestions(Questions(leaf, self.contexts, used_up=budget.used_up))

    def check(self, query: str, settings: RunSettings) -> None:
        """Raises `InvalidInput` for a run that could not even begin."""
        self._check(query, settings)
        self._runtimes.check_choice(settings.runtime)

    async def _run(
        self,
        run_id: str,
        prompt: Prompt,
        model: LanguageModel,
        budget: Budget,
        settings: RunSettings,
        sinks: Sequence[Sink],
    ) -> RunResult:
        totals = Totals()
        span = EventLog(totals, *sinks).root()
        span.emit(
            RunStarted(
                run_id,
                prompt.query,
                prompt.context.info if prompt.context else None,
                settings.max_depth,
                tuple(settings.model_at(depth) for depth in range(settings.max_depth + 1)),
                settings.limits,
                _version(),
            )
        )
        deadline = None
        if (limit := settings.max_seconds) is not None:
            deadline = Deadline(asyncio.get_running_loop().time() + limit, limit)
        started = time.monotonic()
        outcome, message = Outcome.CANCELLED, ""
        completion: Completion | None = None
        try:
            timed = replace(prompt, deadline=deadline)
            completion = await in_time(model.completion(timed, span), deadline)
            outcome = Outcome.OK
        except Exception as error:
            outcome, message = Outcome.FAILED, str(error) or type(error).__name__
            raise
        finally:
            seconds = time.monotonic() - started
            answer, ending = (completion.text, completion.ending) if completion is not None else (None, None)
            span.emit(RunEnded(outcome, answer, ending, budget.spent, seconds, message))
        return RunResult(
            run_id,
            completion.text,
            completion.ending,
            budget.spent,
            budget.by_model,
            budget.by_depth,
            seconds,
            tuple(totals.finished_batches),
        )

    def _check(self, query: str, settings: RunSettings) -> None:
        if not query.strip():
            raise InvalidInput("query", "is empty.", "Say what you want to know.")
        if settings.max_depth > self.config.capacity:
            raise InvalidInput(
                "max_depth",
                f"is {settings.max_depth}, and this host has room for {self.config.capacity} sandboxes at a time, "
                "so a recursion of that depth could not finish.",
                f"Set RLM_CAPACITY={settings.max_depth} or more, or a smaller depth.",
            )

    async def _compose(
        self, settings: RunSettings, budget: Budget, factory: SandboxFactory, session: RunSession | None = None
    ) -> LanguageModel:
        chats = [await self._chat(settings, depth, budget) for depth in range(settings.max_depth + 1)]
        leaves = [Leaf(chat, self.contexts, MAX_LEAF_CONTEXT_BYTES) for chat in chats]
        model: LanguageModel = leaves[settings.max_depth]
        for depth in reversed(range(settings.max_depth)):
            kept = session if depth == 0 else None
            sandboxes: SandboxFactory = kept or factory
            if kept is None or not kept.opened:
                sandboxes = _Budgeted(sandboxes, budget, depth)
            model = RLM(
                chats[depth],
                model,
                sandboxes,
                self.contexts,
                depth=depth,
                max_depth=settings.max_depth,
                max_iterations=iterations_at(depth, settings.max_iterations),
                cell_timeout_s=settings.cell_timeout_s,
                instructions=settings.instructions[depth] if depth < len(settings.instructions) else "",
                memory=kept.memory if kept is not None else None,
                plain=leaves[depth + 1],
                plain_chars=PLAIN_CHARS if settings.adaptive_depth else 0,
                used_up=budget.used_up,
            )
        return model

    async def _chat(self, settings: RunSettings, depth: int, budget: Budget) -> ChatModel:
        name = settings.model_at(depth)
        client = await self._client(name)
        most = settings.max_output_tokens
        raw = OpenAIChat(client, name, max_output_tokens=most, options=settings.model_options)
        retried = Retried(Throttled(raw, self._throttle), self.config.max_attempts)
        price = self._prices.of(name, client.base_url)
        if price is None and settings.max_cost_usd is not None:
            raise InvalidInput(
                "max_cost_usd",
                f"cannot be held: no price is known for the model {name!r}.",
                "Give its price in RLM_PRICES (see: rlm config), or drop the limit.",
            )
        return Metered(Cached(retried, self._answers), budget, price, max_output_tokens=most)

    async def _client(self, model: str) -> OpenAIClient:
        """The connections to where `model` is served; opened when first needed, kept to the end."""
        endpoint = self.config.endpoints.get(model)
        base_url = endpoint.base_url if endpoint else self.config.base_url
        api_key = endpoint.api_key if endpoint else self.config.api_key
        if (base_url, api_key) not in self._clients:
            self._clients[base_url, api_key] = await self._stack.enter_async_context(
                open_client(api_key, base_url, self.config.request_timeout_s, self.config.max_concurrent)
            )
        return self._clients[base_url, api_key]


def import_model_libraries() -> None:
    """What the first run imports otherwise, in the event loop: a service would answer nobody for over a second."""
    from orchestrator.llm import openai_sdk  # noqa: F401 - it is there from now on

    Prices({}).of("gpt-5-mini")


def new_run_id() -> str:
    """A name that no other run has."""
    return f"run_{secrets.token_hex(8)}"


class _Budgeted:
    """A `SandboxFactory` that counts against a run's budget."""

    def __init__(self, sandboxes: SandboxFactory, budget: Budget, depth: int) -> None:
        self._sandboxes = sandboxes
        self._budget = budget
        self._depth = depth

    @asynccontextmanager
    async def open(self, context: Context | None, answer: Answer | None, *, height: int = 0) -> AsyncIterator[Sandbox]:
        self._budget.take_sandbox(self._depth)
        async with self._sandboxes.open(context, answer, height=height) as sandbox:
            yield sandbox


@asynccontextmanager
async def open_orchestrator(config: Config) -> AsyncIterator[Orchestrator]:
    """Opens the engine's side at once and the API's when first needed; closes both after the block.

    Raises `SandboxUnavailable` when the engine or the image cannot be had, `InvalidInput` for a bad setting.
    """
    async with AsyncExitStack() as stack:
        sandboxes = await stack.enter_async_context(DockerSandboxes.start(_sandbox_settings(config)))
        contexts = FileContextStore(sandboxes.context_dir)
        cleaned = str(sandboxes.reclaimed).splitlines() if sandboxes.reclaimed else []
        yield Orchestrator(
            config,
            sandboxes,
            contexts,
            cleaned,
            stack,
            lambda: Occupancy(sandboxes.in_use, sandboxes.idle),
            sandboxes.warm_up,
            sandboxes.of,
        )


@cache
def _version() -> str:
    from importlib.metadata import version  # with a reader of e-mail headers, which no start should wait for

    return version("rlm-orchestrator")


def _sandbox_settings(config: Config) -> SandboxSettings:
    return SandboxSettings(
        state_dir=Path(config.state_dir),
        engine_state_dir=Path(config.engine_state_dir) if config.engine_state_dir else None,
        image=config.image,
        runtime=config.runtime,
        memory_mib=config.memory_mib,
        cpus=config.cpus,
        pids=config.pids,
        tmp_mib=config.tmp_mib,
        capacity=config.capacity,
        queue_timeout_s=config.queue_timeout_s,
        start_timeout_s=config.start_timeout_s,
        cell_timeout_s=config.cell_timeout_s,
        cell_grace_s=config.cell_grace_s,
        pool_min=config.pool_min,
        pool_max=config.pool_max,
        max_lifetime_s=config.max_lifetime_s,
    )
