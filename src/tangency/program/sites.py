"""Sites: the nodes at which parameters enter a computation, and in which role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from torch import fx

from tangency.errors import UnsupportedOperation
from tangency.program.geometry import CONVOLUTIONS
from tangency.program.operations import argument, base_name
from tangency.program.trace import Trace, location

__all__ = ["ParameterUse", "Role", "Site", "find_sites"]

Role: TypeAlias = Literal["affine", "convolution", "bias", "scale", "norm"]
"""`affine`: x W^T + b; `convolution`: a filter (`tangency.program.geometry`) and a bias;
`bias`: x + b; `scale`: x * s; `norm`: a norm's scale and shift."""


@dataclass(frozen=True)
class ParameterUse:
    """A parameter as one site uses it: `factor` times the parameter called `name`.

    `transposed` says that a matrix is used as (in, out) rather than (out, in).
    """

    name: str
    factor: float = 1.0
    transposed: bool = False


@dataclass(frozen=True)
class Site:
    """One place where parameters enter: `weight` multiplies `input`, `bias` is added."""

    role: Role
    input: fx.Node
    weight: ParameterUse | None = None
    bias: ParameterUse | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameters that enter here."""
        return tuple(use.name for use in (self.weight, self.bias) if use is not None)


def find_sites(trace: Trace, nature: Mapping[fx.Node, str]) -> dict[fx.Node, Site]:
    """The sites among the live nodes of a trace.

    Raises:
        UnsupportedOperation: a parameter is used in a way that has no role.
    """
    return {
        node: _site(trace, nature, node)
        for node, kind in nature.items()
        if kind == "random" and any(nature[n] == "parameter" for n in node.all_input_nodes)
    }


def _site(trace: Trace, nature: Mapping[fx.Node, str], node: fx.Node) -> Site:
    name = base_name(node)
    is_parameter = [isinstance(a, fx.Node) and nature[a] == "parameter" for a in node.args]

    def use(index: int, label: str, *, flip: bool = False) -> ParameterUse | None:
        value = argument(node, index, label)
        return None if value is None else _use(trace, cast(fx.Node, value), flip)

    def operand(index: int) -> fx.Node:
        return cast(fx.Node, node.args[index])

    if name == "linear" and not is_parameter[0]:
        return Site("affine", operand(0), use(1, "weight"), use(2, "bias"))
    if name in ("matmul", "mm") and is_parameter == [False, True]:
        return Site("affine", operand(0), use(1, "mat2", flip=True))
    if name == "addmm" and is_parameter[:3] == [True, False, True]:
        return Site("affine", operand(1), use(2, "mat2", flip=True), use(0, "bias"))
    if name in CONVOLUTIONS and not is_parameter[0]:
        return Site("convolution", operand(0), use(1, "weight"), use(2, "bias"))
    if name == "layer_norm":
        return Site("norm", operand(0), use(2, "weight"), use(3, "bias"))
    if name == "rms_norm":
        return Site("norm", operand(0), use(2, "weight"))
    if name in ("add", "mul") and sum(is_parameter) == 1 and not node.kwargs:
        mine = is_parameter.index(True)
        value = operand(1 - mine)
        if isinstance(value, fx.Node):
            vector = use(mine, "other")
            if name == "add":
                return Site("bias", value, bias=vector)
            return Site("scale", value, weight=vector)
    raise UnsupportedOperation(
        f"{location(node)} uses a parameter in a way that has no rule: known are x @ W, "
        "F.linear(x, W, b), x + b, x * s and normalisations with scale and shift. "
        "EmpiricalKernel needs no rules."
    )


def _use(trace: Trace, node: fx.Node, flip: bool) -> ParameterUse:
    """Follow transposes and scalar factors from `node` back to the parameter."""
    factor = 1.0
    while node not in trace.parameters:
        name = base_name(node)
        source = cast(fx.Node, node.args[0])
        if name in ("t", "numpy_T", "transpose", "permute") and len(node.meta["val"].shape) == 2:
            flip = not flip
        elif name in ("mul", "div") and isinstance(node.args[1], (int, float)):
            factor = factor * node.args[1] if name == "mul" else factor / node.args[1]
        elif name not in ("clone", "alias", "_to_copy"):
            raise UnsupportedOperation(
                f"{location(node)} computes with a parameter before it meets the data; "
                "only transposes and scalar factors are known."
            )
        node = source
    return ParameterUse(trace.parameters[node], factor, flip)
