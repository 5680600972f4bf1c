"""Arithmetic in a question ("What is 17 * 23?"), worked out without `eval`."""

import ast
import operator
import re
from collections.abc import Callable

_EXPRESSION = re.compile(r"[-+(]*\d[\d\s.+*/%()-]*")
_MAX_CHARACTERS = 200

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def evaluate(question: str) -> str | None:
    """The value of the one arithmetic expression in the question, or None if there is none to compute.

    `+ - * / // %` and parentheses. No powers: one of them could run for hours.
    """
    found = [text.strip(" .") for text in _EXPRESSION.findall(question)]
    expressions = [text for text in found if re.search(r"\d\s*[-+*/%]", text)]
    if len(expressions) != 1 or len(expressions[0]) > _MAX_CHARACTERS:
        return None
    try:
        value = _value(ast.parse(expressions[0], mode="eval").body)
    except (SyntaxError, ArithmeticError, ValueError):
        return None
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("not arithmetic")
