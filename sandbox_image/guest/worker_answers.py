"""FINAL, FINAL_VAR, SHOW_VARS and `answer`: how the code in a cell says that it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker_describe import FinalText, final_text

# Shows the user's variables as (name, type, size), the newest first.
Variables = Callable[[], list[tuple[str, str, str]]]


class Listing(str):
    """Text that a REPL shows as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class FinalAnswers:
    """The final answer of the running cell: given or not, whatever its value. The last one given counts."""

    def __init__(self, namespace: dict[str, Any], variables: Variables, scaffold: dict[str, Any]) -> None:
        """`scaffold`: what is in the namespace without the code's doing, which is nobody's answer."""
        self._namespace = namespace
        self._variables = variables
        self._scaffold = scaffold
        self.given: FinalText | None = None

    def begin_cell(self) -> None:
        """Forgets the answer of the last cell, also where it was given with `answer`."""
        self.given = None
        answer = self._ready_answer()
        if answer is not None:
            answer["ready"] = False

    def end_cell(self) -> None:
        """Takes what the cell has left in `answer`, unless it has called FINAL. Runs the value's own code."""
        answer = self._ready_answer()
        if self.given is None and answer is not None and "content" in answer:
            self.given = final_text(answer["content"])

    def _ready_answer(self) -> dict[Any, Any] | None:
        answer = self._namespace.get("answer")
        if type(answer) is not dict:
            return None
        ready = answer.get("ready")
        return answer if type(ready) in (bool, int) and ready else None

    def functions(self) -> dict[str, Any]:
        """The names that the code finds."""

        def FINAL(value: Any) -> None:
            """Gives the final answer: the text of `value` as it is now. The rest of the cell still runs."""
            self._refuse_scaffold("FINAL", value)
            self.given = final_text(value)

        def FINAL_VAR(name_or_value: Any) -> None:
            """Gives a variable's value as the final answer: FINAL_VAR("result"), or FINAL_VAR(result).

            A str that looks like a name must be that of a variable that exists, unless it is a variable's own value.
            """
            value = name_or_value
            if isinstance(value, str):
                if str(value) in self._namespace:
                    value = self._namespace[str(value)]
                elif str(value).isidentifier() and not any(held is value for held in self._namespace.values()):
                    raise NameError(self._no_variable(str(value)))
            self._refuse_scaffold("FINAL_VAR", value)
            if value is self._scaffold["answer"]:
                value = value.get("content")
            self.given = final_text(value)

        def SHOW_VARS() -> str:
            """The names, types and sizes of your variables, as text. Use print(SHOW_VARS())."""
            listed = self._variables()
            if not listed:
                return Listing("No variables yet.")
            lines = [f"{name}: {kind}" + (f", {size}" if size else "") for name, kind, size in listed]
            return Listing("\n".join(lines))

        functions = (FINAL, FINAL_VAR, SHOW_VARS)
        for function in functions:
            function.__qualname__ = function.__name__
            function.__module__ = "__main__"
        return {function.__name__: function for function in functions}

    def _refuse_scaffold(self, function: str, value: object) -> None:
        """Raises NameError for what the REPL has put there: a name that the code has not made a variable of."""
        for name, own in self._scaffold.items():
            if own is value and (name != "answer" or self._is_answer_untouched()):
                raise NameError(
                    f"{function}: {name} is the REPL's own and no variable of yours, so no answer was given. "
                    f"Variables: {self._known()}. To give a text itself as the answer, use FINAL(text)"
                )

    def _is_answer_untouched(self) -> bool:
        content = self._scaffold["answer"].get("content")
        return type(content) is str and not content

    def _known(self) -> str:
        return ", ".join(known for known, _, _ in self._variables()[:50]) or "none"

    def _no_variable(self, name: str) -> str:
        shown = name if len(name) <= 80 else name[:80] + "..."
        return (
            f"FINAL_VAR: there is no variable named {shown!r}, so no answer was given. Variables: {self._known()}. "
            "To give a text itself as the answer, use FINAL(text)"
        )
