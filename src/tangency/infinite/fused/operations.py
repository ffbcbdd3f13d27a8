"""ATen operations that act element by element, and their C expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from tangency.infinite.fused.graph import Node, NotFusable

__all__ = ["IDENTITIES", "POINTWISE", "c_type", "expression", "literal", "times"]

_TYPES = {torch.float64: "double", torch.float32: "float", torch.bool: "int"}

Emit = Callable[..., str]
"""From the C operands and keyword arguments to an expression; `f` ends names of float functions."""


def c_type(dtype: torch.dtype) -> str:
    """The C type of a number."""
    if dtype not in _TYPES:
        raise NotFusable(f"numbers of type {dtype}")
    return _TYPES[dtype]


def literal(number: float, dtype: torch.dtype) -> str:
    """A number in C."""
    if dtype == torch.bool:
        return str(int(number))
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    text = repr(float(number))
    text = text if dtype == torch.float64 else text + "f"
    return f"({text})" if number < 0 else text


def times(name: str, factor: Fraction) -> str:
    """The C expression of a variable that is not negative times a factor, rounded down."""
    whole = f"{name} * {factor.numerator}L"
    return whole if factor.denominator == 1 else f"{whole} / {factor.denominator}L"


def _scaled(alpha: Any, operand: str) -> str:
    return operand if alpha == 1 else f"{float(alpha)!r} * {operand}"


def _power(f: str, base: str, exponent: str) -> str:
    number = float(exponent.strip("()f"))
    simple = {2.0: f"({base} * {base})", 1.0: base, 0.5: f"sqrt{f}({base})"}
    simple[-1.0] = f"(1 / {base})"
    simple[3.0] = f"({base} * {base} * {base})"
    return simple.get(number, f"pow{f}({base}, {exponent})")


def _clamp(f: str, x: str, low: str | None = None, high: str | None = None) -> str:
    inner = x if low is None else f"({x} < {low} ? {low} : {x})"
    return inner if high is None else f"({inner} > {high} ? {high} : {inner})"


def _call(name: str) -> Emit:
    def emit(f: str, *operands: str) -> str:
        return f"{name}{f}({', '.join(operands)})"

    return emit


def _infix(sign: str) -> Emit:
    def emit(f: str, a: str, b: str) -> str:
        return f"({a} {sign} {b})"

    return emit


POINTWISE: dict[str, Emit] = {
    "add": lambda f, a, b, alpha=1: f"({a} + {_scaled(alpha, b)})",
    "sub": lambda f, a, b, alpha=1: f"({a} - {_scaled(alpha, b)})",
    "rsub": lambda f, a, b, alpha=1: f"({b} - {_scaled(alpha, a)})",
    "mul": _infix("*"),
    "div": _infix("/"),
    "neg": lambda f, a: f"(-{a})",
    "reciprocal": lambda f, a: f"(1 / {a})",
    "square": lambda f, a: f"({a} * {a})",
    "pow": _power,
    "sqrt": _call("sqrt"),
    "rsqrt": lambda f, a: f"(1 / sqrt{f}({a}))",
    "abs": _call("fabs"),
    "copysign": _call("copysign"),
    "minimum": lambda f, a, b: f"({a} < {b} ? {a} : {b})",
    "maximum": lambda f, a, b: f"({a} > {b} ? {a} : {b})",
    "clamp": _clamp,
    "clamp_min": lambda f, a, low: _clamp(f, a, low),
    "clamp_max": lambda f, a, high: _clamp(f, a, None, high),
    "where": lambda f, c, a, b: f"({c} ? {a} : {b})",
    "gt": _infix(">"),
    "lt": _infix("<"),
    "ge": _infix(">="),
    "le": _infix("<="),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "logical_and": _infix("&&"),
    "logical_or": _infix("||"),
    "logical_not": lambda f, a: f"(!{a})",
    "bitwise_and": _infix("&"),
    "bitwise_or": _infix("|"),
    "bitwise_not": lambda f, a: f"(!{a})",  # of truth values, the only integers here
    "sign": lambda f, a: f"(({a} > 0) - ({a} < 0))",
    "_to_copy": lambda f, a: a,
    **{name: _call(name) for name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tan")},
    **{name: _call(name) for name in ("erf", "erfc", "atan", "asin", "acos", "atan2", "tanh")},
}
"""Operations by the name of their overload packet."""

IDENTITIES = frozenset({"alias", "detach", "clone", "lift_fresh", "contiguous"})
"""Operations that change nothing."""


def expression(node: Node, operands: Sequence[str | None], name: str, computed: torch.dtype) -> str:
    """The C expression of a pointwise node.

    Args:
        operands: the C text of every argument, of the type that the operation computes in.
        name: of the operation, a key of `POINTWISE`.
        computed: that type.
    """
    keywords = {k: v for k, v in node.keywords.items() if k == "alpha"}
    return POINTWISE[name]("f" if computed == torch.float32 else "", *operands, **keywords)
