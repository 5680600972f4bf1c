"""Records the kept runs anew: `python -m tests.replay.record`.

Do so when a decision was changed on purpose, or an event's form. The runs are played by scripted models and in-process
sandboxes, through the driver and the journal that real runs go through. Times and what the models were told are left
out, so that recording an unchanged run again changes nothing. Read the difference before you commit it: it is what
changed for users.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

import msgspec

from orchestrator.budget import Budget
from orchestrator.events import (
    CellEnded,
    Event,
    EventLog,
    ModelCallEnded,
    ModelCallStarted,
    Outcome,
    Record,
    RunEnded,
    RunStarted,
    SandboxStarted,
)
from orchestrator.folds.journal import JournalWriter
from orchestrator.llm.metered import Metered
from orchestrator.rlm import RLM, Leaf, iterations_at
from orchestrator.seams import LanguageModel
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import CellResult, Completion, Limits, Prompt
from tests.replay.scenes import SCENES, Actor, Scene
from tests.unit.rlm_world import FolderContexts

RUNS = Path(__file__).parent / "runs"


async def record(scene: Scene, path: Path) -> Completion:
    """Plays the scene and writes its journal."""
    ticks = itertools.count()
    chat = Metered(FakeChatModel(Actor(scene), "recorded"), (budget := Budget(Limits())))
    with tempfile.TemporaryDirectory() as folder, JournalWriter(path, package="recorded") as journal:
        contexts = FolderContexts(Path(folder))
        sandboxes = FakeSandboxes()
        model: LanguageModel = Leaf(chat, contexts)
        for depth in reversed(range(scene.max_depth)):
            iterations = iterations_at(depth, scene.max_iterations)
            model = RLM(
                chat, model, sandboxes, contexts, depth=depth, max_depth=scene.max_depth, max_iterations=iterations
            )

        def keep(record: Record) -> None:
            journal(msgspec.structs.replace(record, event=_what_decides(record.event)))

        run = EventLog(keep, clock=lambda: float(next(ticks))).root()
        context = await contexts.put(scene.context)
        models = ("recorded",) * (scene.max_depth + 1)
        run.emit(RunStarted(scene.name, scene.query, context.info, scene.max_depth, models, Limits(), "recorded"))
        completion = await model.completion(Prompt(scene.query, context), run)
        run.emit(RunEnded(Outcome.OK, completion.text, completion.ending, budget.spent, 0.0))
        return completion


def _what_decides(event: Event) -> Event:
    """The event without what differs from one recording to the next, and without what the model was told."""
    match event:
        case ModelCallStarted():
            return msgspec.structs.replace(event, messages=())
        case SandboxStarted() | ModelCallEnded():
            return msgspec.structs.replace(event, seconds=0.0)
        case CellEnded(result=CellResult() as result):
            error = result.error
            if error is not None:  # frames of the in-process sandbox name this machine's folders
                error = msgspec.structs.replace(error, traceback=f"{error.type_name}: {error.message}")
            return msgspec.structs.replace(event, result=msgspec.structs.replace(result, seconds=0.0, error=error))
        case _:
            return event


async def _record_all() -> None:
    RUNS.mkdir(exist_ok=True)
    for scene in SCENES:
        path = RUNS / f"{scene.name}.jsonl"
        completion = await record(scene, path)
        path.chmod(0o644)  # nobody's secrets, unlike other journals
        print(f"{scene.name}: {completion.text!r} ({completion.ending})")


if __name__ == "__main__":
    asyncio.run(_record_all())
