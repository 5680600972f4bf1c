"""A plain completion: where recursion ends."""

from __future__ import annotations

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import NoticeGiven, Span
from orchestrator.seams import ChatModel, ContextStore
from orchestrator.values import Completion, Ending, FinishReason, Message, Prompt, Role


class Leaf:
    """A `LanguageModel` without a REPL: the prompt and its context go to the model as one message.

    `max_context_bytes` is the largest context that is put into a message, in bytes of UTF-8.
    """

    def __init__(self, chat: ChatModel, contexts: ContextStore, max_context_bytes: int = 1_000_000) -> None:
        self._chat = chat
        self._contexts = contexts
        self._max_context_bytes = max_context_bytes

    @property
    def recursive(self) -> bool:
        return False

    async def completion(self, prompt: Prompt, span: Span) -> Completion:
        """The model's text; an empty one is an answer too, and one that the output limit cut is its beginning.

        Raises `ModelFailed` (REFUSED for a refusal or a filtered answer, TOO_LONG for a context above the limit),
        `BudgetExceeded`, `InvalidInput` for a context that is no text.
        """
        reply = await self._chat.chat([Message(Role.USER, await self._text(prompt))], span)
        if reply.finish_reason in (FinishReason.REFUSAL, FinishReason.CONTENT_FILTER):
            raise ModelFailed(ModelFailure.REFUSED, self._chat.name, reply.text or reply.finish_reason.value)
        if reply.finish_reason is FinishReason.LENGTH:
            span.emit(NoticeGiven("the model's answer reached its output limit and was cut off"))
        return Completion(reply.text, Ending.PLAIN)

    async def _text(self, prompt: Prompt) -> str:
        if prompt.context is None:
            return prompt.query
        size = prompt.context.info.size_bytes
        if size > self._max_context_bytes:
            raise ModelFailed(
                ModelFailure.TOO_LONG,
                self._chat.name,
                f"a context of {size:,} bytes does not fit into a plain call, which takes {self._max_context_bytes:,}",
            )
        text = await self._contexts.read_text(prompt.context, self._max_context_bytes)
        return f"{prompt.query}\n\n<context>\n{text}\n</context>"
