"""Whether a run may begin: its order, its request id, its quotas and its session, checked before it is on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from orchestrator.budget import Share
from orchestrator.build import new_run_id
from orchestrator.config import RunSettings
from orchestrator.errors import InvalidInput, QuotaExceeded, RequestConflict, TooLarge
from orchestrator.hosting import run_views
from orchestrator.hosting.kept_sessions import KeptSession, KeptSessions
from orchestrator.hosting.live_runs import LiveRun, LiveRuns
from orchestrator.hosting.orders import RunOrder
from orchestrator.hosting.premises import Premises, check_order, converted, order_hash
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.recording import Recording
from orchestrator.store.rows import StoredRun
from orchestrator.tasks import TaskSet
from orchestrator.values import Context
from orchestrator.views import RunView
from orchestrator.wire.caps import QUERY_BYTES, SETTINGS_BYTES


class Admission:
    def __init__(self, premises: Premises, runs: LiveRuns, sessions: KeptSessions, tasks: TaskSet) -> None:
        self._premises = premises
        self._runs = runs
        self._sessions = sessions
        self._tasks = tasks
        self._one_by_one = asyncio.Lock()  # or two would each see the last place free

    @property
    def defaults(self) -> RunSettings:
        """What a run gets that chooses nothing."""
        config, names = self._premises.orchestrator.config, RunSettings.__struct_fields__
        settings = RunSettings(**{name: getattr(config, name) for name in names})
        return msgspec.structs.replace(settings, max_depth=min(settings.max_depth, self._premises.settings.max_depth))

    def settings_of(self, given: Mapping[str, object]) -> RunSettings:
        """The defaults with these changes, checked. Raises `InvalidInput` naming the setting."""
        return converted(RunSettings, self.defaults, given)

    async def start(self, order: RunOrder) -> RunView:
        """Returns when the run is on record and has begun; see `RunDesk.start`."""
        self._premises.check_open()
        settings = self._checked(order)
        chosen = order.settings if order.chosen is None else order.chosen
        said = order_hash(order.query, order.context, chosen, order.session_id, order.keep_session_s, order.labels)
        if (known := await self._known(order, said)) is not None:
            return known
        # A task of the desk's: a caller who hangs up leaves a run that is there or not, and none halfway.
        admitting = self._tasks.spawn(self._admit(order, settings, said), "admitting a run")
        return await asyncio.shield(admitting)

    @asynccontextmanager
    async def between(self) -> AsyncIterator[None]:
        """No run is half admitted during the block: it has begun, or has not."""
        async with self._one_by_one:
            yield

    async def close(self) -> None:
        """No run is admitted from now on; one that is being admitted has begun when this returns."""
        self._premises.closing = True
        async with self._one_by_one:
            pass

    def _checked(self, order: RunOrder) -> RunSettings:
        check_order(order.request_id, order.labels)
        most = self._premises.settings.max_depth
        settings = order.settings or self.defaults
        if len(order.query) > QUERY_BYTES or len(order.query.encode("utf-8", "replace")) > QUERY_BYTES:
            raise TooLarge("max_query_bytes", QUERY_BYTES, len(order.query), "Give what is long as the context.")
        if (size := len(msgspec.json.encode(settings))) > SETTINGS_BYTES:
            raise TooLarge("max_settings_bytes", SETTINGS_BYTES, size, "Shorten the instructions or model options.")
        if settings.max_depth > most:
            raise InvalidInput("max_depth", f"may be {most} here; it is {settings.max_depth}.")
        longest = self._premises.settings.max_session_s
        if not 0 <= order.keep_session_s <= longest:
            raise InvalidInput("keep_session", f"may be {longest:g} s at most; it is {order.keep_session_s:g} s.")
        if order.session_id is not None and order.context is not None:
            raise InvalidInput(
                "context", "cannot be given to a session that goes on.", "Upload it and add it to the session."
            )
        self._premises.orchestrator.check(order.query, settings)
        return settings

    async def _known(self, order: RunOrder, said: str) -> RunView | None:
        if not order.request_id:
            return None
        find = self._premises.store.find_request
        found = await self._premises.threads.call(find, order.principal.name, order.request_id)
        if found is None:
            return None
        if found.order_hash != said:
            raise RequestConflict(order.request_id)
        return run_views.view_of(self._runs.as_it_is(found))

    async def _admit(self, order: RunOrder, settings: RunSettings, said: str) -> RunView:
        principal = order.principal
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(self._premises.context(order.context, principal))
            async with self._one_by_one:
                self._premises.check_open()
                if (known := await self._known(order, said)) is not None:
                    return known
                self._check_quota(principal)
                limits = await self._premises.within_quota(principal, settings.limits)
                settings = msgspec.structs.replace(
                    settings, max_cost_usd=limits.max_cost_usd, max_tokens=limits.max_tokens
                )
                session = await self._session_for(order)
                if session is not None:
                    stack.push_async_callback(self._sessions.rest, session)
                share = await self._premises.share_of(principal)
                live = self._recorded(order, settings, said, context, session, share)
                await self._premises.threads.call(self._premises.store.put_run, live.run)
                live.stack = stack.pop_all()
                self._runs.begin(live, self._premises.sinks_of(order.trace_context, live.run.run_id))
        return run_views.view_of(live.now())

    def _check_quota(self, principal: Principal) -> None:
        own, allowed = self._runs.count_of(principal.name), principal.quotas.max_runs
        if allowed is not None and own >= allowed:
            raise QuotaExceeded("max_runs", allowed, own, "Wait for a run to end, or cancel one.")
        most = self._premises.settings.max_running
        if len(self._runs) >= most:
            raise QuotaExceeded("max_running", most, len(self._runs), "Wait for a run to end.")

    async def _session_for(self, order: RunOrder) -> KeptSession | None:
        if order.session_id is not None:
            kept = self._sessions.find(order.session_id, order.principal)
            self._sessions.resume(kept, order.keep_session_s)
            return kept
        return await self._sessions.begin(order.principal, order.keep_session_s) if order.keep_session_s else None

    def _recorded(
        self,
        order: RunOrder,
        settings: RunSettings,
        said: str,
        context: Context | None,
        session: KeptSession | None,
        share: Share,
    ) -> LiveRun:
        run_id = new_run_id()
        values: dict[str, Any] = msgspec.to_builtins(settings)
        run = StoredRun(
            run_id=run_id,
            principal=order.principal.name,
            request_id=order.request_id,
            order_hash=said,
            query=order.query,
            context=context.info if context is not None else None,
            context_id=getattr(order.context, "context_id", None),
            settings=values,
            session_id=session.id if session is not None else None,
            labels=dict(order.labels),
            started_at=self._premises.clock.now(),
        )
        store = self._premises.store
        recording = Recording(lambda records: store.append(run_id, records))
        return LiveRun(run, recording, AsyncExitStack(), context, session, settings, share)
