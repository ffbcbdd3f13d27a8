"""What the ATen operations of a graph are called and how their arguments are read."""

from __future__ import annotations

from typing import cast

from torch import fx
from torch._ops import OpOverload

__all__ = ["POINTWISE", "argument", "arguments", "base_name"]

_POINTWISE = """
    abs acos acosh add addcmul asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min
    cos cosh div elu eq erf erfc exp exp2 expm1 floor ge gelu gt hardshrink hardsigmoid
    hardswish hardtanh heaviside le leaky_relu log log10 log1p log2 log_sigmoid logical_and
    logical_not logical_or lt masked_fill maximum minimum mish mul ne neg pow prelu reciprocal
    relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus
    softshrink sqrt square sub tan tanh threshold trunc where
"""
POINTWISE = frozenset(_POINTWISE.split())
"""Base names of the operations that act coordinate by coordinate, with broadcasting."""

_SYNONYMS = {
    "_unsafe_view": "view",
    "_reshape_alias": "view",
    "true_divide": "div",
    "subtract": "sub",
    "multiply": "mul",
    "negative": "neg",
    "absolute": "abs",
    "special_erf": "erf",
    "special_expm1": "expm1",
    "arctan": "atan",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "split_copy": "split",
    "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes",
    "unsafe_chunk": "chunk",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_safe_softmax": "softmax",
}


def base_name(node: fx.Node) -> str:
    """The operation without namespace and overload: `add` for `aten.add.Tensor`.

    Operations of other libraries keep their namespace: `mylibrary::snake`.
    """
    if node.op != "call_function":
        return node.op
    target = str(node.target)
    if target.startswith("aten."):
        name = target.split(".")[1]
        return _SYNONYMS.get(name, name)
    if isinstance(node.target, OpOverload):
        return str(node.target._schema.name)
    return str(getattr(node.target, "__name__", target))


def argument(node: fx.Node, index: int, name: str, default: object = None) -> object:
    """A positional or keyword argument of the node."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def arguments(node: fx.Node) -> dict[str, object]:
    """All arguments of an ATen node by the names of its schema, with its defaults filled in."""
    schema = cast(OpOverload, node.target)._schema
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return defaults | given | node.kwargs
