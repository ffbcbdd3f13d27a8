"""Which operations have a dual in closed form.

A new activation with a closed form: write its `Dual` and name its operation here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from tangency.infinite.duals.dual import Dual
from tangency.infinite.duals.piecewise import PiecewiseLinear, Step
from tangency.infinite.duals.smooth import Cos, Erf, Exp, Gelu, Sin
from tangency.program.operations import argument, base_name

__all__ = ["closed_form", "register_closed_form"]


def _gelu(node: fx.Node) -> Dual | None:
    return Gelu() if argument(node, 1, "approximate", "none") == "none" else None


def _leaky_relu(node: fx.Node) -> Dual:
    slope = argument(node, 1, "negative_slope", 0.01)
    assert isinstance(slope, (int, float))
    return PiecewiseLinear(float(slope), 1.0)


def _comparison(node: fx.Node, step: Step) -> Dual | None:
    """`x > 0` as the number 0 or 1."""
    return step if argument(node, 1, "other") == 0 else None


_CLOSED_FORMS: dict[str, Callable[[fx.Node], Dual | None]] = {
    "relu": lambda node: PiecewiseLinear(0.0, 1.0),
    "leaky_relu": _leaky_relu,
    "abs": lambda node: PiecewiseLinear(-1.0, 1.0),
    "sign": lambda node: Step(-1.0, 1.0),
    "sgn": lambda node: Step(-1.0, 1.0),
    "heaviside": lambda node: Step(0.0, 1.0),
    "gt": lambda node: _comparison(node, Step(0.0, 1.0)),
    "ge": lambda node: _comparison(node, Step(0.0, 1.0)),
    "lt": lambda node: _comparison(node, Step(1.0, 0.0)),
    "le": lambda node: _comparison(node, Step(1.0, 0.0)),
    "erf": lambda node: Erf(),
    "gelu": _gelu,
    "sin": lambda node: Sin(),
    "cos": lambda node: Cos(),
    "exp": lambda node: Exp(),
}


def register_closed_form(name: str, make: Callable[[fx.Node], Dual | None]) -> None:
    """Let `make` give the dual of the operation `name` (None where it has no closed form)."""
    _CLOSED_FORMS[name] = make


def closed_form(node: fx.Node) -> Dual | None:
    """The closed form of the node's operation, if it has one."""
    make = _CLOSED_FORMS.get(base_name(node))
    return None if make is None else make(node)
