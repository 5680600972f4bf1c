"""Asks as the agent reads them, of a worker that need not be its own code any more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.guest_modules import agent_asks, guest_frames, guest_messages

ASK: dict[str, Any] = {
    "id": 1,
    "max_concurrent": 1,
    "stop_at_failure": True,
    "recursive": None,
    "questions": [[1, "", 0]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"max_concurrent": 0},
        {"max_concurrent": 1 << 31},
        {"stop_at_failure": 1},
        {"recursive": "yes"},
        {"questions": []},
        {"questions": [[2, "", 0]]},
        {"questions": [[1, "picture", 0]]},
        {"questions": [[1, ["text"], 0]]},
    ],
)
def test_a_malformed_ask_is_asked_of_nobody(change: dict[str, Any]) -> None:
    def begin(*_: object) -> Any:
        raise AssertionError("it was asked")

    asks = agent_asks.Asks(begin, reply=begin, changed=begin)
    with pytest.raises(AssertionError):
        asks.start(ASK, b"?")
    with pytest.raises((guest_frames.FrameError, KeyError, TypeError, ValueError)):
        asks.start(ASK | change, b"?")


def test_an_answer_reaches_the_worker_with_a_reason_and_a_size_for_each_question() -> None:
    class Asked:
        """A call; the test answers it."""

        def send(self, request: bytes, *, last: bool) -> None:
            self.request = guest_messages.AskRequest.decode(request)

    call, frames, ends = Asked(), list[bytes](), list[Any]()

    def begin(on_message: Any, on_end: Any) -> Any:
        ends.extend((on_message, on_end))
        return call

    asks = agent_asks.Asks(begin, lambda *frame: frames.append(guest_frames.encode(*frame)), changed=lambda _: None)
    asks.start(ASK | {"questions": [[3, "", 0], [2, "json", 4], [0, "", 0]]}, "é?ab1234".encode())
    asked = [(q.prompt, q.context and (q.context.kind, q.context.data)) for q in call.request.questions]
    assert asked == [("é?", None), ("ab", (guest_messages.CONTEXT_KIND_JSON, b"1234")), ("", None)]
    failure = guest_messages.Failure(reason=guest_messages.FAILURE_REASON_BUDGET, message="no €")
    slots = [guest_messages.Slot(text="ü"), guest_messages.Slot(failure=failure), guest_messages.Slot(text="")]
    ends[0](guest_messages.AskResponse(slots=slots).encode())
    ends[1](0, "")
    reply = {"op": "reply", "id": 1, "slots": [["", 2], ["budget", 6], ["", 0]]}
    assert frames == [guest_frames.encode(reply, "üno €".encode())]
