"""The OpenAI-compatible server on loopback whose models are policies.

    async with ScriptedServer({"echo": echo}) as server:
        client = AsyncOpenAI(base_url=server.base_url, api_key="scripted", max_retries=0)
        ...
        await server.wait_for(lambda log: log.in_flight == 0)
        assert server.max_in_flight == 10

Serves `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{name}` and `GET /healthz`. What it was
asked is for the process that runs it to look at, and is not served.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.testing.scripted import fault_spec, wire
from orchestrator.testing.scripted.chat import ApiError, ChatRequest, Outcome, Policy, ask
from orchestrator.testing.scripted.delivery import deliver, error_response
from orchestrator.testing.scripted.faults import model_not_found, with_faults
from orchestrator.testing.scripted.record import RecordedRequest, RequestLog, RequestState

ANY_MODEL = "*"
"""The name whose policy answers for every model that has no policy of its own."""

_log = logging.getLogger(__name__)


class ScriptedServer:
    """A server of policies by model name, for the length of an `async with`.

    policies       model name to policy; the name "*" stands for every other model
    host, port     where to listen; port 0 takes a free one
    faults         a specification (see `fault_spec`) for all requests that bring none of their own
    max_recorded   how many requests to keep for inspection, the newest
    max_body_bytes larger bodies get a 413

    Raises ValueError for a name with "?" in it or no policies, FaultSpecError for `faults`, and OSError on
    entry if the address cannot be bound.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: str = "",
        max_recorded: int = 10_000,
        max_body_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        if not policies:
            raise ValueError("policies must name at least one model")
        for name in policies:
            if not name or "?" in name:
                raise ValueError(f"model name {name!r} must not be empty or hold '?' (it starts the faults)")
        fault_spec.parse_faults(faults)
        self._policies = dict(policies)
        self._host = host
        self._port = port
        self._faults = faults
        self._max_body_bytes = max_body_bytes
        self._log = RequestLog(max_recorded)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """`http://host:port`, without a path. Raises RuntimeError while the server is not open."""
        if self._runner is None:
            raise RuntimeError("the server has no address: open it with `async with` first")
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`: the URL with `/v1`."""
        return f"{self.url}/v1"

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The chat requests so far, in order of arrival."""
        return self._log.requests

    @property
    def in_flight(self) -> int:
        return self._log.in_flight

    @property
    def max_in_flight(self) -> int:
        """The most requests at one time since the start or the last reset."""
        return self._log.max_in_flight

    def count(self, state: RequestState) -> int:
        """How many of the recorded requests are in this state."""
        return self._log.count(state)

    async def wait_for(self, predicate: Callable[[RequestLog], bool]) -> None:
        """Return once the predicate holds, which is looked at whenever a request starts or ends."""
        await self._log.wait_for(predicate)

    def reset(self) -> None:
        """Forget the recorded requests, the peak and the attempts."""
        self._log.reset()

    async def __aenter__(self) -> Self:
        # handler_cancellation is how a client that leaves is noticed while a policy still thinks.
        runner = web.AppRunner(self._application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        # A hanging request would hold up the shutdown for its whole timeout.
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=self._max_body_bytes, middlewares=[_openai_errors])
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/v1/models/{name:.+}", self._model)
        application.router.add_get("/healthz", _health)
        return application

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = wire.decode(await http.read())
        headers = {name.lower(): value for name, value in http.headers.items()}
        entry = self._log.begin(body, headers)
        settled = False

        def settle(state: RequestState, status: int | None) -> None:
            nonlocal settled
            if not settled:
                settled = True
                self._log.end(entry, state, status)

        task = asyncio.current_task()
        assert task is not None, "aiohttp runs a handler in a task"
        self._tasks.add(task)
        try:
            request, policy = self._resolve(body, headers, entry.ordinal)
            outcome = await _outcome(policy, request)
            return await deliver(http, request, outcome, settle)
        except wire.RequestRejected as rejection:
            settle(RequestState.ANSWERED, rejection.error.status)
            return error_response(rejection.error, entry.ordinal)
        finally:
            settle(RequestState.CANCELLED, None)
            self._tasks.discard(task)

    def _resolve(self, body: Any, headers: Mapping[str, str], ordinal: int) -> tuple[ChatRequest, Policy]:
        request = wire.parse_request(body, headers=headers, ordinal=ordinal)
        name, suffix = fault_spec.split_model(request.model)
        policy = self._policies.get(name) or self._policies.get(ANY_MODEL)
        if policy is None:
            raise wire.RequestRejected(model_not_found(name))
        request = replace(request, model=name, attempt=self._log.next_attempt(request.digest))
        header = headers.get(fault_spec.HEADER, "")
        for where, spec in (("model", suffix), (fault_spec.HEADER, header)):
            try:
                policy = with_faults(policy, *fault_spec.parse_faults(spec))
            except fault_spec.FaultSpecError as error:
                raise wire.rejected(where, str(error)) from error
        if not suffix and not header:
            policy = with_faults(policy, *fault_spec.parse_faults(self._faults))
        return request, policy

    async def _models(self, http: web.Request) -> web.Response:
        models = [wire.model_value(name) for name in self._policies if name != ANY_MODEL]
        return web.json_response({"object": "list", "data": models})

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        if name not in self._policies:
            return _plain_error(model_not_found(name))
        return web.json_response(wire.model_value(name))


async def _outcome(policy: Policy, request: ChatRequest) -> Outcome:
    try:
        return await ask(policy, request)
    except Exception as error:
        # A bug of the script: told to the client too, since a test sees the response before the log.
        _log.exception("the policy of model %r failed", request.model)
        return ApiError(
            500,
            f"The policy of model {request.model!r} raised {type(error).__name__}: {error}",
            "server_error",
            code="policy_failed",
        )


async def _health(http: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@web.middleware
async def _openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _plain_error(ApiError(413, "The request body is larger than this server accepts."))
    except web.HTTPMethodNotAllowed:
        return _plain_error(ApiError(405, f"Not allowed to {request.method} on {request.path}."))
    except web.HTTPNotFound:
        return _plain_error(ApiError(404, f"Invalid URL ({request.method} {request.path})"))


def _plain_error(error: ApiError) -> web.Response:
    return web.Response(body=wire.error_body(error), status=error.status, content_type="application/json")
