"""The container runtimes that runs of one process may choose, and what has been found out of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.errors import InvalidInput
from orchestrator.sandbox import self_check
from orchestrator.sandbox.factory import SandboxesOfRuntime
from orchestrator.sandbox.self_check import Findings
from orchestrator.seams import SandboxFactory


class Runtimes:
    """`usual` is the host's choice, None the engine's own. A process that `check`s is a service: it has callers whom it
    does not trust with less than the host's choice.
    """

    def __init__(
        self, usual: str | None, sandboxes: SandboxFactory, of: Callable[[str | None], SandboxesOfRuntime] | None
    ) -> None:
        self._usual = usual
        self._sandboxes = sandboxes
        self._of_runtime = of
        self._one_by_one = asyncio.Lock()
        self._weaknesses: dict[str, tuple[str, ...]] = {}  # by runtime that was checked; "" is the usual one
        self._allow_weaker: bool | None = None  # None: nothing is checked
        self._stronger: frozenset[str] = frozenset()

    @property
    def weaknesses(self) -> tuple[str, ...]:
        told = self._weaknesses.items()
        return tuple(f"{runtime}: {name}" if runtime else name for runtime, names in told for name in names)

    def is_usual(self, runtime: str | None) -> bool:
        return runtime is None or runtime == self._usual

    async def probe(self) -> Findings:
        """Attacks the usual runtime. Raises `SandboxUnavailable`, `SandboxLost`."""
        return await self_check.probe(self._of(None))

    async def check(self, *, allow_weaker: bool) -> None:
        """Attacks the usual runtime, and from now on each other one before its first use. Raises as `require_safe`."""
        self._weaknesses[""] = await self_check.require_safe(self._of(None), allow_weaker=allow_weaker)
        self._stronger = frozenset((await self._of(None).sandboxes.engine_info()).runtime_arguments)
        self._allow_weaker = allow_weaker

    def check_choice(self, runtime: str | None) -> None:
        """Raises `InvalidInput` for what a caller of a service may not choose."""
        if runtime is None or self.is_usual(runtime) or self._allow_weaker is None or runtime in self._stronger:
            return
        may = ", ".join(sorted(self._stronger)) or "no other one"
        raise InvalidInput(
            "runtime",
            f"may be the host's own ({self._usual or 'unset'}) or gVisor's ({may}) here; it is {runtime!r}.",
            "Leave it out, or have it made the host's own: RLM_RUNTIME.",
        )

    async def sandboxes(self, runtime: str | None) -> SandboxFactory:
        """Those of this runtime, checked where that is asked for.

        Raises `InvalidInput` as `check_choice`, `SandboxUnavailable` for one that the engine does not know or that does
        not hold what it must.
        """
        if runtime is None or self.is_usual(runtime):
            return self._sandboxes
        self.check_choice(runtime)
        chosen = self._of(runtime)
        await chosen.promised()
        if self._allow_weaker is not None:
            async with self._one_by_one:
                if runtime not in self._weaknesses:
                    found = await self_check.require_safe(chosen, allow_weaker=self._allow_weaker)
                    self._weaknesses[runtime] = found
        return chosen

    def _of(self, runtime: str | None) -> SandboxesOfRuntime:
        if self._of_runtime is None:
            raise InvalidInput("runtime", "cannot be chosen: these sandboxes are not of an engine.")
        return self._of_runtime(runtime)
