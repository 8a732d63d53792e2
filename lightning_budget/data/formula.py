"""Arithmetic over columns, as a config states it: ``level * redeemed``, ``min(ratio * gift, 100)``, ``3 * (age > 60)``.

The text is parsed and walked, never evaluated as code.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_budget.errors import InputError

ALLOWED = "numbers, names of columns, + - * /, parentheses, comparisons (1 or 0), min and max"
MAX_LENGTH = 1000
_BINARY: dict[type, Any] = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_UNARY: dict[type, Any] = {ast.UAdd: np.positive, ast.USub: np.negative}
_COMPARE: dict[type, Any] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_CALLS: dict[str, Any] = {"min": np.minimum, "max": np.maximum}


@dataclass(frozen=True)
class Formula:
    """An arithmetic expression.

    Attributes:
        text: as written.
        names: the columns in it, in order of appearance.
        tree: the parsed expression.
    """

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def __call__(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """``[N]`` from the ``[N]`` columns of ``names``; division by 0 gives an infinite entry or NaN."""
        with np.errstate(all="ignore"):
            return np.asarray(_value(self.tree, columns), np.float64)


def parse_formula(text: str) -> Formula:
    """Parse a formula.

    Raises:
        InputError: for anything but numbers, names, + − * /, parentheses, comparisons, ``min`` and ``max``.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"a formula of {len(text)} characters", f"at most {MAX_LENGTH}", "compute a column of it")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        names: dict[str, None] = {}
        _check(tree, text, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"formula {text!r} cannot be read ({e})", ALLOWED, "mend it") from e
    return Formula(text, tuple(names), tree)


def _check(node: ast.expr, text: str, names: dict[str, None]) -> None:
    """Refuse what is not allowed; ``names`` gains those that the expression uses."""
    match node:
        case ast.Constant(value=int() | float() as x) if not isinstance(x, bool) and abs(x) < 1e300:
            return
        case ast.Name(id=name) if name not in _CALLS:
            names[name] = None
            return
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _BINARY:
            parts = [a, b]
        case ast.UnaryOp(op=op, operand=a) if type(op) in _UNARY:
            parts = [a]
        case ast.Compare(left=a, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            parts = [a, *others]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS and len(args) >= 2:
            parts = args
        case _:
            raise InputError(
                f"formula {text!r}: {ast.unparse(node)!r}", ALLOWED, "mend it, or write the result as a column"
            )
    for part in parts:
        _check(part, text, names)


def _value(node: ast.expr, columns: Mapping[str, NDArray[np.float64]]) -> Any:
    match node:
        case ast.Constant(value=x):
            return float(x)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return columns[name]
        case ast.BinOp(left=a, op=op, right=b):
            return _BINARY[type(op)](_value(a, columns), _value(b, columns))
        case ast.UnaryOp(op=op, operand=a):
            return _UNARY[type(op)](_value(a, columns))
        case ast.Compare(left=a, ops=ops, comparators=others):
            values = [_value(part, columns) for part in (a, *others)]
            held = [_COMPARE[type(op)](x, y) for op, x, y in zip(ops, values, values[1:], strict=False)]
            # As a product, so that NaN compares as false here and stays NaN in the columns beside it.
            return reduce(np.multiply, [np.asarray(h, np.float64) for h in held])
        case ast.Call(func=ast.Name(id=name), args=args):
            return reduce(_CALLS[name], [_value(part, columns) for part in args])
        case _:
            raise AssertionError(f"{ast.dump(node)} passed the check")
