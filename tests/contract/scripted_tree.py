"""A whole recursion over fakes whose models are scripted policies, by depth: no server, no container, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.events import EventLog
from orchestrator.rlm import RLM, Leaf, iterations_at
from orchestrator.seams import LanguageModel
from orchestrator.testing import fake_model, scripted
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import Message, Prompt
from tests.unit.rlm_world import FolderContexts


@dataclass(frozen=True, slots=True)
class Told:
    answer: str
    calls: Mapping[int, int]  # of models, by depth
    sandboxes: int


async def run(policies: Mapping[str, scripted.Policy], context: object, folder: Path) -> Told:
    """`policies` by depth, the root's first and the leaves' last."""
    chats = [FakeChatModel(_asking(name, policy), name) for name, policy in policies.items()]
    sandboxes, contexts = FakeSandboxes(), FolderContexts(folder)
    max_depth = len(chats) - 1
    model: LanguageModel = Leaf(chats[-1], contexts)
    for depth in reversed(range(max_depth)):
        model = RLM(
            chats[depth],
            model,
            sandboxes,
            contexts,
            depth=depth,
            max_depth=max_depth,
            max_iterations=iterations_at(depth, 20),
        )
    stored = await contexts.put(context)
    completion = await model.completion(Prompt("The question.", stored), EventLog().root())
    calls = Counter({depth: len(chat.calls) for depth, chat in enumerate(chats)})
    return Told(completion.text, calls, sandboxes.opened)


def _asking(name: str, policy: scripted.Policy) -> fake_model.Policy:
    async def answer(messages: Sequence[Message]) -> str:
        body = {"model": name, "messages": [{"role": m.role.value, "content": m.content} for m in messages]}
        outcome = await scripted.ask(policy, scripted.parse_request(body))
        assert isinstance(outcome, scripted.Reply), outcome
        return outcome.text or ""

    return answer
