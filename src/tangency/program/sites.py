"""Sites: the nodes at which parameters enter a computation, and in which role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from torch import fx

from tangency.errors import UnsupportedOperation
from tangency.program.axes import Shape, resolve
from tangency.program.geometry import CONVOLUTIONS
from tangency.program.operations import argument, base_name
from tangency.program.parameters import ParameterUse, parameter_use
from tangency.program.row_maps import RowMap, weight_use
from tangency.program.trace import Trace, location

__all__ = ["ParameterUse", "Role", "Site", "find_sites"]

Role: TypeAlias = Literal["affine", "unshared", "convolution", "embedding", "bias", "scale", "norm"]
"""`affine`: x W^T + b; `unshared`: a stack of matrices, another one at every place of the leading
dimensions of the weight's node; `convolution`: a filter (`tangency.program.geometry`) and a bias;
`embedding`: rows of W chosen by integers; `bias`: x + b with a vector along the width; `scale`:
x * s; `norm`: a norm's scale and shift."""


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
        uses = (use for use in (self.weight, self.bias) if use is not None)
        return tuple(name for use in uses for name in use.names)


_NORMS: dict[str, tuple[int, int]] = {
    "layer_norm": (2, 3),
    "rms_norm": (2, 99),
    "group_norm": (2, 3),
    "instance_norm": (1, 2),
    "batch_norm": (1, 2),
}
"""Where normalisations have their scale and shift."""

_AS_VALUES = frozenset(
    {"add", "sub", "rsub", "where", "maximum", "minimum", "dropout", "softmax", "mean", "sum"}
    | {"cat", "stack", "expand", "index", "index_select", "gather", "pad"}
    | {"matmul", "bmm", "baddbmm", "scaled_dot_product_attention"}
)
"""Operations that may take a parameter as they take any random value: a token, a table."""


def find_sites(
    trace: Trace, nature: Mapping[fx.Node, str], axes: Mapping[fx.Node, Shape]
) -> dict[fx.Node, Site]:
    """The sites among the live nodes of a trace.

    A parameter that enters elsewhere than at a site (a class token in `cat`, a positional
    embedding in `add`) is a random value with axes of its own.

    Raises:
        UnsupportedOperation: a parameter is used in a way that has no role.
    """
    finder = _Finder(trace, nature, axes)
    found = {
        node: finder.site(node)
        for node, kind in nature.items()
        if kind == "random" and any(nature[n] == "parameter" for n in node.all_input_nodes)
    }
    sites = {node: site for node, site in found.items() if site is not None}
    _check_alike(sites)
    return sites


def _check_alike(sites: Mapping[fx.Node, Site]) -> None:
    """Refuse a parameter that is used as it is at one site and with its rows scaled at another."""
    first: dict[str, ParameterUse] = {}
    for node, site in sites.items():
        use = site.weight
        if use is not None and not _alike(first.setdefault(use.name, use).rows, use.rows):
            raise UnsupportedOperation(
                f"{location(node)} uses the parameter {use.name} in another form than an earlier "
                "site does (standardised or normalised, with another gain or as it is), which has "
                "no rule. EmpiricalKernel needs no rules."
            )


def _alike(a: RowMap | None, b: RowMap | None) -> bool:
    return a is b or (a is not None and b is not None and a.alike(b))


class _Finder:
    """Finds the role in which parameters enter at a node."""

    def __init__(
        self, trace: Trace, nature: Mapping[fx.Node, str], axes: Mapping[fx.Node, Shape]
    ) -> None:
        self.trace, self.nature, self.axes = trace, nature, axes

    def site(self, node: fx.Node) -> Site | None:
        """The site at `node`; None where a parameter enters as a value."""
        name = base_name(node)
        found = self._weighted(node, name) or self._elementwise(node, name)
        if found is None and name in _NORMS:
            scale, shift = _NORMS[name]
            found = Site(
                "norm",
                self._operand(node, 0),
                self._use(node, scale, "weight"),
                self._use(node, shift, "bias"),
            )
        if found is None and name not in _AS_VALUES:
            raise UnsupportedOperation(
                f"{location(node)} uses a parameter in a way that has no rule: known are x @ W, "
                "F.linear(x, W, b), convolutions, embeddings, x + b, x * s, normalisations with "
                "scale and shift, and parameters as tokens. EmpiricalKernel needs no rules."
            )
        return found

    def _weighted(self, node: fx.Node, name: str) -> Site | None:
        """Products with a weight."""
        if name == "linear" and self._is_parameter(node, 1):
            weight, bias = self._weight(node, 1), self._use(node, 2, "bias")
            return Site("affine", self._operand(node, 0), weight, bias)
        if name in ("matmul", "mm") and self._is_matrix(node, 1):
            return Site("affine", self._operand(node, 0), self._weight(node, 1, flip=True))
        if name in ("matmul", "bmm") and self._is_parameter(node, 1):
            stacked = any(self.axes[self._operand(node, 1)][:-2])
            role: Role = "unshared" if stacked else "affine"
            return Site(role, self._operand(node, 0), self._use(node, 1, "mat2", flip=True))
        if name == "addmm" and self._is_parameter(node, 2) and self._is_parameter(node, 0):
            weight = self._weight(node, 2, flip=True)
            return Site("affine", self._operand(node, 1), weight, self._use(node, 0, "input"))
        if name in CONVOLUTIONS and self._is_parameter(node, 1):
            weight, bias = self._weight(node, 1), self._use(node, 2, "bias")
            return Site("convolution", self._operand(node, 0), weight, bias)
        if name == "embedding" and self._is_parameter(node, 0):
            table = self._use(node, 0, "weight", flip=True)
            return Site("embedding", self._operand(node, 1), table)
        return None

    def _elementwise(self, node: fx.Node, name: str) -> Site | None:
        """x + b and x * s of one parameter and something else."""
        if name not in ("add", "sub", "rsub", "mul"):
            return None
        mine = [k for k in range(2) if self._is_parameter(node, k)]
        if len(mine) != 1 or not isinstance(node.args[1 - mine[0]], fx.Node):
            return None
        value, parameter = self._operand(node, 1 - mine[0]), self._operand(node, mine[0])
        if name == "mul":
            return Site("scale", value, weight=parameter_use(self.trace, parameter))
        if self._along_width(parameter):
            return Site("bias", value, bias=parameter_use(self.trace, parameter))
        return None

    def _along_width(self, node: fx.Node) -> bool:
        """Whether a parameter varies along a width and nothing else."""
        return all(axis.kind == "width" for dim in self.axes[node] for axis in resolve(dim))

    def _is_parameter(self, node: fx.Node, index: int) -> bool:
        value = node.args[index] if len(node.args) > index else None
        return isinstance(value, fx.Node) and self.nature[value] == "parameter"

    def _is_matrix(self, node: fx.Node, index: int) -> bool:
        return self._is_parameter(node, index) and len(self.axes[self._operand(node, index)]) == 2

    def _operand(self, node: fx.Node, index: int) -> fx.Node:
        return cast(fx.Node, node.args[index])

    def _weight(self, node: fx.Node, index: int, *, flip: bool = False) -> ParameterUse:
        return weight_use(self.trace, self._operand(node, index), flip)

    def _use(
        self, node: fx.Node, index: int, label: str, *, flip: bool = False
    ) -> ParameterUse | None:
        value = argument(node, index, label)
        return None if value is None else parameter_use(self.trace, cast(fx.Node, value), flip)
