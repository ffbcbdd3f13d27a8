"""Pointwise operations: linear ones make sums, others functions of one Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.activations import closed_form
from tangency.infinite.duals.piecewise import Step
from tangency.infinite.duals.two_gaussians import dual_of_two
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo
from tangency.infinite.entries import entries_of
from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.affine import bias_term
from tangency.infinite.rules.normalization import scaled
from tangency.infinite.rules.sampled import coordinatewise
from tangency.infinite.side import Side
from tangency.infinite.values.composite import Composite, Function
from tangency.infinite.values.composite_of_two import CompositeOfTwo
from tangency.infinite.values.consistency import summed
from tangency.infinite.values.expression import base_of, bases_of, evaluate, is_fixed, key_of
from tangency.infinite.values.product import Product, independent_factors
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import resolve
from tangency.program.operations import POINTWISE, argument, base_name

_TWICE_DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
}
"""Operations of which torch has no second derivative, which the search for kinks asks for."""


_VARYING = (
    "multiplies by data that differ along the width, so that its coordinates are no longer i.i.d. "
    "(rotary positions give every pair of coordinates a frequency of its own, for example)"
)


def refuse_varying_factors(lowering: Lowering) -> None:
    """Refuse products with data that differ along a width where they are: concatenations of them
    would be blamed first.
    """
    program = lowering.program
    for node in program.axes:
        if base_name(node) not in ("mul", "div") or not lowering.random(node):
            continue
        if any(program.nature[n] == "concrete" and lowering.width(n) != 1 for n in _factors(node)):
            raise lowering.unsupported(node, _VARYING)


def _factors(node: fx.Node) -> list[fx.Node]:
    return [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]


def _positions(lowering: Lowering, node: fx.Node) -> Positions:
    return lowering.program.atoms(node, "position")


@rule("add", "sub", "rsub")
def add(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """a + alpha b, of random values, data, constants and bias vectors."""
    alpha = cast(float, argument(node, 2, "alpha", 1.0))
    name = base_name(node)
    first, second = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[name]
    terms = operand_terms(lowering, node, 0, first, start, length)
    terms += operand_terms(lowering, node, 1, second, start, length)
    return summed(_positions(lowering, node), terms)


def operand_terms(
    lowering: Lowering, node: fx.Node, index: int, number: float, start: int, length: int
) -> list[Term]:
    """An argument of a node, times a number, as terms of a sum."""
    operand = node.args[index]
    if not isinstance(operand, fx.Node):
        return [Term(One(), number * cast(float, operand))]
    nature = lowering.program.nature[operand]
    if nature == "random":
        return [Term(_operand(lowering, node, operand, start, length), number)]
    if nature == "parameter":
        site = lowering.program.sites.get(node)
        if site is not None and _is_vector(lowering, node, operand):
            return [bias_term(lowering, site, start, length).scaled(number)]
        return [Term(_operand(lowering, node, operand, start, length), number)]
    if lowering.width(operand) == 1:
        return [Term(One(), number, (lowering.coefficient(operand, _finite),))]
    return [Term(lowering.strand(operand, start, length), number)]


def _finite(values: Tensor) -> Tensor:
    """An infinite mask as a large number, whose moments and derivatives are numbers too."""
    return values.clamp(-1e30, 1e30)


def _operand(lowering: Lowering, node: fx.Node, operand: fx.Node, start: int, length: int) -> Value:
    """A random argument; one of width 1 is not broadcast along another's width."""
    if lowering.width(operand) != lowering.width(node):
        raise lowering.unsupported(node, "repeats one random coordinate along a width")
    return lowering.strand(operand, start, length)


def _is_vector(lowering: Lowering, node: fx.Node, operand: fx.Node) -> bool:
    """Whether a parameter is a vector along the last dimension, as the bias of a layer is."""
    shape = operand.meta["val"].shape
    last = lowering.program.axes[node][-1]
    along = bool(last) and all(axis.kind == "width" for axis in resolve(last))
    rest = all(int(size) == 1 for size in shape[:-1])
    return along and rest and int(shape[-1]) == lowering.width(node)


@rule("neg")
def negate(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """-u."""
    value = lowering.strand(cast(fx.Node, node.args[0]), start, length)
    return Sum(value.positions, [Term(value, -1.0)])


@rule("mul", "div")
def multiply(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """u times or over a constant per example and position; else a product of random values."""
    left, right = node.args[0], node.args[1]
    if node in lowering.program.sites:
        return _by_parameter(lowering, node, start, length)
    if base_name(node) == "mul" and not lowering.random(left):
        left, right = right, left
    if not lowering.random(left) or lowering.random(right):
        return composite(lowering, node, start, length)
    value = _operand(lowering, node, cast(fx.Node, left), start, length)
    invert = base_name(node) == "div"
    if not isinstance(right, fx.Node):
        number = cast(float, right)
        return Sum(value.positions, [Term(value, 1 / number if invert else number)])
    if lowering.width(right) != 1:
        raise lowering.unsupported(node, _VARYING)
    factor = lowering.coefficient(right, torch.reciprocal if invert else None)
    return Sum(_positions(lowering, node), [Term(value, 1.0, (factor,))])


def _by_parameter(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """u times a parameter along the width, and perhaps along positions."""
    site = lowering.program.sites[node]
    parameter = next(a for a in node.args if isinstance(a, fx.Node) and a is not site.input)
    if lowering.width(parameter) != lowering.width(node):
        raise lowering.unsupported(
            node, "multiplies a whole width by one parameter, whose own NTK is not deterministic"
        )
    value = _operand(lowering, node, site.input, start, length)
    features = lowering.program.atoms(parameter, "width")
    return scaled(lowering, value, entries_of(lowering, parameter, features, start, length))


def composite(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """A pointwise function of one Gaussian."""
    operands = {
        n: _operand(lowering, node, n, start, length)
        for n in node.all_input_nodes
        if lowering.random(n)
    }
    for n in node.all_input_nodes:
        if n not in operands and n in lowering.program.axes and lowering.width(n) != 1:
            raise lowering.unsupported(node, "is applied with data that differ along the width")
    dual = closed_form(node)
    values = list(operands.values())
    if dual is not None and len(values) == 1 and values[0].gaussian:
        positions = values[0].positions
        function = _function(lowering, node, operands, values[0])
        own = ("closed", dual)
        return Composite(positions, values[0], function, own, dual, kinks=lowering.kinks_of(own))
    base = base_of(values)
    if base is None:
        return _of_several(lowering, node, operands)
    key = _key(lowering, node, operands, [base])
    function = _function(lowering, node, operands, base)
    kinks = lowering.kinks_of(key) if _is_fixed(node, operands, [base]) else None
    return Composite(_positions(lowering, node), base, function, key, None, kinks=kinks)


def _of_several(lowering: Lowering, node: fx.Node, operands: dict[fx.Node, Value]) -> Value:
    """A product of independent values; other functions of several Gaussians by samples."""
    if base_name(node) == "mul" and len(operands) == 2:
        factors = independent_factors(list(operands.values()))
        if factors is not None:
            return Product(_positions(lowering, node), factors)
    bases = bases_of(list(operands.values()))
    if bases is not None and len(bases) == 2 and _is_fixed(node, operands, bases):
        of_two = _of_two(lowering, node, operands, bases)
        if of_two is not None:
            return of_two
    reason = (
        "applies a nonlinearity to a value that is not a function of one Gaussian (a sum or "
        "product with several random parts, for example)"
    )
    return coordinatewise(lowering, node, operands, _operation(node), reason)


def _of_two(
    lowering: Lowering, node: fx.Node, operands: dict[fx.Node, Value], bases: list[Value]
) -> Value | None:
    """A function of two Gaussians, if they are independent and there is a rule for it."""
    first, second = bases
    if first.origins & second.origins:
        return None

    def function(z1: Tensor, z2: Tensor) -> Tensor:
        samples = {first: z1, second: z2}

        def at(argument: fx.Node) -> Tensor:
            return evaluate(operands[argument], samples, None, ())

        args, kwargs = map_arg((node.args, node.kwargs), at)
        return cast(Tensor, _operation(node)(*args, **kwargs))

    try:
        dual = dual_of_two(function)
        if lowering.sample and not isinstance(dual, PiecewiseLinearOfTwo):
            return None  # a series is numerical too, and costs more
        dual.moments(torch.ones(1), torch.ones(1))
    except UnsupportedOperation:
        return None
    key = _key(lowering, node, operands, bases)
    return CompositeOfTwo(_positions(lowering, node), (first, second), function, key, dual)


def _is_fixed(node: fx.Node, operands: dict[fx.Node, Value], bases: Sequence[Value]) -> bool:
    """Whether the result is the same function of the bases for all examples and positions."""
    own = all(argument in operands for argument in node.all_input_nodes)
    return own and all(is_fixed(value, bases) for value in operands.values())


def _operation(node: fx.Node) -> Callable[..., Any]:
    own_form = cast(Callable[..., Any], node.target)
    return _TWICE_DIFFERENTIABLE.get(base_name(node), own_form)


def _key(
    lowering: Lowering, node: fx.Node, operands: dict[fx.Node, Value], bases: Sequence[Value]
) -> Hashable:
    """Equal keys compute the same function."""

    def name(argument: fx.Node) -> Any:
        return key_of(operands[argument], bases) if argument in operands else argument

    args, kwargs = map_arg((node.args, node.kwargs), name)
    return (str(node.target), repr(args), repr(kwargs))


def _function(
    lowering: Lowering, node: fx.Node, operands: dict[fx.Node, Value], base: Value
) -> Function:
    """The node's operation on Gaussian samples `(nodes, *positions, n)` of `base`."""
    operation = _operation(node)

    def on_side(side: Side | None, positions: Positions) -> Callable[[Tensor], Tensor]:
        def argument_value(argument: fx.Node, z: Tensor) -> Any:
            if argument in operands:
                return evaluate(operands[argument], {base: z}, side, positions)
            assert side is not None
            return lowering.constant(argument, side, positions)

        def function(z: Tensor) -> Tensor:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: argument_value(n, z))
            return cast(Tensor, operation(*args, **kwargs))

        return function

    return on_side


@rule("_to_copy", "to")
def convert(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Between floating-point types nothing changes; a truth value becomes a number."""
    source = cast(fx.Node, node.args[0])
    if source.meta["val"].is_floating_point() and node.meta["val"].is_floating_point():
        return lowering.strand(source, start, length)
    value = lowering.strand(source, start, length)
    if isinstance(value, Composite) and isinstance(value.dual, Step):
        return value  # a comparison with zero, already described as the number 0 or 1
    return composite(lowering, node, start, length)


_OWN_RULES = {"add", "sub", "rsub", "neg", "mul", "div", "where", "masked_fill"}

rule(*sorted(POINTWISE - _OWN_RULES))(composite)
