"""Sessions: a root's sandbox and conversation between two runs, each until it is closed, lost, or idle for too long."""

from __future__ import annotations

import asyncio
import logging
import secrets

from orchestrator.errors import Busy, NotFound, RLMError
from orchestrator.held import Held
from orchestrator.hosting.clock import Alarm
from orchestrator.hosting.premises import Gone, Premises
from orchestrator.hosting.principals import Principal
from orchestrator.run_session import RunSession
from orchestrator.tasks import TaskSet
from orchestrator.values import Context
from orchestrator.views import SessionView

logger = logging.getLogger(__name__)


class KeptSession:
    """`run_id` is its last run's; `expires_at` None while it is busy."""

    def __init__(self, principal: str, keep_s: float, held: Held[RunSession]) -> None:
        self.id = f"ses_{secrets.token_hex(8)}"
        self.principal = principal
        self.keep_s = keep_s
        self.held = held
        self.run_id = ""
        self.busy = True
        self.closing = False  # from here on, no run begins in it
        self.turns = 0
        self.expires_at: float | None = None
        self.alarm: Alarm | None = None
        self.watch: asyncio.Task[None] | None = None
        self.loss = ""

    @property
    def run(self) -> RunSession:
        return self.held.value

    def view(self) -> SessionView:
        return SessionView(
            session_id=self.id, run_id=self.run_id, busy=self.busy, expires_at=self.expires_at, turns=self.turns
        )


class KeptSessions:
    """All sessions of a service."""

    def __init__(self, premises: Premises, tasks: TaskSet) -> None:
        self._premises = premises
        self._tasks = tasks
        self._sessions: dict[str, KeptSession] = {}
        self._gone = Gone("session")

    def list(self, principal: Principal) -> tuple[SessionView, ...]:
        return tuple(kept.view() for kept in self._sessions.values() if principal.may_see(kept.principal))

    def find(self, session_id: str, principal: Principal) -> KeptSession:
        """Raises `NotFound`, which says what became of it."""
        kept = self._sessions.get(session_id)
        if kept is None:
            raise self._gone.error(session_id, principal)
        if not principal.may_see(kept.principal):
            raise NotFound("session", session_id)
        return kept

    async def begin(self, principal: Principal, keep_s: float) -> KeptSession:
        """A new one, busy with its first run. Raises `QuotaExceeded`."""
        self._premises.room.take(principal)
        try:
            held = await Held.enter(self._premises.orchestrator.session(self._premises.kept_height))
        except BaseException:
            self._premises.room.give_back(principal.name)
            raise
        kept = KeptSession(principal.name, keep_s, held)
        self._sessions[kept.id] = kept
        return kept

    def check_free(self, kept: KeptSession) -> None:
        """Raises `Busy`."""
        if kept.closing:
            raise Busy(f"the session {kept.id} is being closed.", "Begin another one.")
        if kept.busy:
            raise Busy(f"the session {kept.id} is busy with the run {kept.run_id}.", "Wait for its end, or cancel it.")

    def resume(self, kept: KeptSession, keep_s: float) -> None:
        """A further run begins. Raises `Busy`."""
        self.check_free(kept)
        kept.keep_s = keep_s or kept.keep_s
        self._occupy(kept)

    async def rest(self, kept: KeptSession) -> None:
        """A run has ended: the idle time begins anew. It is closed when there is no sandbox to go on with."""
        if kept.id not in self._sessions:
            return
        if not kept.run.opened:
            await self.close(kept, "its first run ended before it had a sandbox")
            return
        if kept.watch is None:
            kept.watch = self._tasks.spawn(self._watch(kept), f"{kept.id}: watching for its loss")
            await asyncio.sleep(0)  # a sandbox that is lost already is found out now
        if kept.loss:
            await self.close(kept, kept.loss)
        else:
            self._idle(kept)

    async def add_context(self, session_id: str, context_id: str, variable: str, principal: Principal) -> None:
        kept = self.find(session_id, principal)
        self.check_free(kept)
        # Held only meanwhile: a sandbox that has a context keeps it to its end.
        async with self._premises.uploaded(context_id, principal) as stored:
            self.check_free(self.find(session_id, principal))
            self._occupy(kept)
            try:
                await kept.run.add_context(Context(stored.path, stored.info), variable)
            finally:
                await self.rest(kept)

    async def close(self, kept: KeptSession, reason: str) -> None:
        """Its sandbox is gone when this returns. Its run, if there is one, must have ended."""
        if self._sessions.pop(kept.id, None) is None:
            return
        if kept.alarm is not None:
            kept.alarm.cancel()
        self._gone.add(kept.id, kept.principal, reason)
        logger.info("the session %s is closed: %s", kept.id, reason)
        try:
            await kept.held.leave()
        except RLMError as error:
            logger.warning("closing the session %s failed: %s", kept.id, error)
        finally:
            self._premises.room.give_back(kept.principal)
            if kept.watch is not None and kept.watch is not asyncio.current_task():
                kept.watch.cancel()

    async def close_all(self, reason: str) -> None:
        for kept in tuple(self._sessions.values()):
            await self.close(kept, reason)

    def _occupy(self, kept: KeptSession) -> None:
        kept.busy, kept.expires_at = True, None
        if kept.alarm is not None:
            kept.alarm.cancel()
            kept.alarm = None

    def _idle(self, kept: KeptSession) -> None:
        clock = self._premises.clock
        kept.busy, kept.expires_at = False, clock.now() + kept.keep_s
        kept.alarm = clock.call_later(kept.keep_s, lambda: self._expire(kept))

    def _expire(self, kept: KeptSession) -> None:
        if not kept.busy:
            kept.busy = True  # nobody may begin a run in it any more
            reason = f"it was idle for {kept.keep_s:g} s"
            self._tasks.spawn(self.close(kept, reason), f"{kept.id}: expired")

    async def _watch(self, kept: KeptSession) -> None:
        kept.loss = str(await kept.run.lost())
        if not kept.busy:
            await self.close(kept, kept.loss)
