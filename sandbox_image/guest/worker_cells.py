"""Runs cells: Python source, in the one namespace that is `__main__`."""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
from collections.abc import Coroutine
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from worker_answers import FinalAnswers
from worker_contexts import Contexts
from worker_describe import FinalText, shown, type_name, variables
from worker_interrupts import Interrupts
from worker_tracebacks import CodeError, describe, remember_source

if TYPE_CHECKING:
    import asyncio

_FUTURES = 0
for _name in __future__.all_feature_names:
    _FUTURES |= getattr(__future__, _name).compiler_flag

_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the import

_ENDS_OF_STATEMENTS = frozenset("\n\r;:")  # without these, nothing can follow a statement or be nested in it


class CellResult(NamedTuple):
    """How a cell ended: with an error, or without one."""

    error: CodeError | None
    final: FinalText | None
    variables: list[tuple[str, str, str]]


class Cells:
    """The namespace, what is always in it, and how a cell runs in it."""

    def __init__(self, interrupts: Interrupts, contexts: Contexts) -> None:
        self._interrupts = interrupts
        self._contexts = contexts
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        self.namespace: dict[str, Any] = module.__dict__
        self.namespace["answer"] = {"content": "", "ready": False}
        # What is not the code's own doing; of it, what comes back whatever a cell does to it.
        self._scaffold: dict[str, Any] = {"answer": self.namespace["answer"]}
        # Without the first two, after globals().clear(), nothing that a cell defines could be pickled, or run at all.
        self._lasting: dict[str, Any] = {"__builtins__": builtins, "__name__": "__main__"}
        self._finals = FinalAnswers(self.namespace, self.variables, self._scaffold)
        self._features = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._displayhook = sys.displayhook = _display
        self.teach({**self._finals.functions(), "load_context": contexts.function()})

    def teach(self, names: dict[str, Any]) -> None:
        """Names that the system prompt teaches: there in every cell, whatever the last one did to them."""
        self._lasting |= names
        self._scaffold |= names
        self.namespace |= names

    def offer(self, names: dict[str, Any]) -> None:
        """Names that a model may happen to know, or to use for a variable of its own: it then keeps that."""
        self._scaffold |= names
        self.namespace |= {name: value for name, value in names.items() if name not in self.namespace}

    def variables(self) -> list[tuple[str, str, str]]:
        """The user's variables and the contexts, as (name, type, size)."""
        return self._contexts.with_notes(variables(self.namespace, self._scaffold), self.namespace)

    def run(self, number: int, source: str) -> CellResult:
        """Runs one cell to its end, however it ends."""
        filename = f"<cell {number}>"
        remember_source(filename, source)
        self._restore()
        self._finals.begin_cell()
        error: CodeError | None = None
        try:
            self._interrupts.arm(number)
            try:
                try:
                    self._contexts.load_for(source, self.namespace)
                    self._execute(source, filename)
                    self._finals.end_cell()
                except BaseException as raised:
                    error = describe(raised)
                    # A cell's frames, and all that their locals hold, must not live until the next error.
                    raised.__traceback__ = None
            finally:
                self._interrupts.disarm()
        except BaseException as raised:  # an interrupt that came while the error was described
            self._interrupts.disarm()  # which it may have kept from being done
            raised.__context__ = None  # which is that error: it may hang again
            error = _described_once_more(raised)
        if error is not None and self._interrupts.requested:
            self._cancel_tasks()
        self._restore()
        try:
            found = self.variables()
        except Exception:  # of a namespace that was tampered with; the cell has ended well all the same
            found = []
        return CellResult(error, self._finals.given, found)

    def _execute(self, source: str, filename: str) -> None:
        # All is compiled before anything runs: a cell with an error in its last line runs nothing, as anywhere else.
        for code in self._codes(source, filename):
            self._evaluate(code)

    def _codes(self, source: str, filename: str) -> list[CodeType]:
        """What to run in turn; the last one shows its value when it is an expression."""
        if _ENDS_OF_STATEMENTS.isdisjoint(source.rstrip()):
            # At most one simple statement, of which a REPL shows no more than is shown here; and a tree costs as much
            # again as all of its compilation.
            try:
                return [self._noted(self._compile(source, filename, "single"))]
            except SyntaxError:
                pass  # there is no statement, or the error is told as that of any source
        tree: ast.Module = self._compile(source, filename, "exec", ast.PyCF_ONLY_AST)
        last: ast.Interactive | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Interactive([tree.body.pop()])
        codes: list[CodeType] = []
        if tree.body:
            codes.append(self._noted(self._compile(tree, filename, "exec")))
        if last:
            codes.append(self._compile(last, filename, "single"))
        return codes

    def _noted(self, code: CodeType) -> CodeType:
        """The same code; what it imports from `__future__` is there in all that is compiled after it."""
        self._features |= code.co_flags & _FUTURES
        return code

    def _compile(self, source: str | ast.Module | ast.Interactive, filename: str, mode: str, flags: int = 0) -> Any:
        flags |= self._features | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(source, filename, mode, flags, dont_inherit=True)

    def _evaluate(self, code: CodeType) -> None:
        result = eval(code, self.namespace)
        if code.co_flags & _COROUTINE:
            self._await(result)

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        import asyncio  # most cells never need it, and it doubles the worker's start

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(coroutine)

    def _cancel_tasks(self) -> None:
        """After an interrupt, so that the next cell that awaits does not go on with this one's work."""
        if self._loop is None or self._loop.is_closed() or self._loop.is_running():
            return
        import asyncio

        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=0.5))

    def _restore(self) -> None:
        self.namespace.update(self._lasting)
        builtins.input = _no_input
        sys.displayhook = self._displayhook


def _described_once_more(error: BaseException) -> CodeError:
    try:
        return describe(error)
    except BaseException:  # its own text raises what is no Exception: whatever happens, the variables must not go
        return CodeError(type_name(error), "", "(its traceback could not be made)\n")


def _display(value: object) -> None:
    """As `sys.displayhook`, but bounded."""
    if value is None:
        return
    builtins._ = None  # type: ignore[attr-defined]
    text = shown(value)
    if sys.stdout is not None:
        sys.stdout.write(f"{text!s}\n")  # at once, where `print` would write twice
    builtins._ = value  # type: ignore[attr-defined]


def _no_input(prompt: object = "", /) -> NoReturn:
    """There is nobody to ask."""
    raise RuntimeError("input() is not available: nobody can type here. Put the value into the code, or ask llm_query")
