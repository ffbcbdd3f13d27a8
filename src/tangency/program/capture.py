"""From a module to its Program: what it computes, where parameters enter, what every axis is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload

from tangency.errors import UnsupportedOperation
from tangency.examples import Examples
from tangency.program.axes import (
    BATCH,
    AxisError,
    Dim,
    Shape,
    batch,
    position,
    resolve,
    size_of,
    sizes_of,
)
from tangency.program.axis_rules import PRODUCTS, RULES, WEIGHTED, Axes, reduced_dimensions
from tangency.program.operations import POINTWISE, arguments, base_name
from tangency.program.outputs import Output
from tangency.program.parameters import is_view, root_of
from tangency.program.reach import ancestors
from tangency.program.row_maps import computations
from tangency.program.selection import selected_early
from tangency.program.sites import Site, find_sites
from tangency.program.trace import Trace, evaluation_mode, location, trace

__all__ = ["Nature", "Program", "capture"]

WEIGHT_ARGUMENTS = {"addmm": 2, "embedding": 0}
"""Which argument the weight is, where it is not the second."""

Nature: TypeAlias = Literal["parameter", "concrete", "statistic", "random"]
"""What a value is: made of parameters alone; of data and constants; a mean over a width axis of
random values and what follows from such means (deterministic in the limit); or random."""


@dataclass(frozen=True)
class Program:
    """What a network computes, captured once.

    Attributes:
        trace: the graph of operations.
        axes: for every node with one tensor, the atomic axes of each dimension.
        nature: for every node, whether it is concrete, random, ...
        sites: for every node at which a weight or bias enters, the parameters that do.
    """

    trace: Trace
    axes: Mapping[fx.Node, Shape]
    nature: Mapping[fx.Node, Nature]
    sites: Mapping[fx.Node, Site]

    @property
    def output(self) -> fx.Node:
        """The node that the module returns."""
        return self.trace.output

    def atoms(self, node: fx.Node, kind: str | None = None) -> Dim:
        """Atomic axes of `node` in order (only those of one kind, if given)."""
        atoms = resolve(axis for dim in self.axes[node] for axis in dim)
        return tuple(a for a in atoms if kind is None or a.kind == kind)

    def describe(self, node: fx.Node) -> str:
        """Axes of `node`, e.g. `(n, T4, w512)`; dimensions of size one show as 1."""
        dims = ["*".join(map(repr, resolve(dim))) or "1" for dim in self.axes[node]]
        return f"({', '.join(dims)})"

    def __str__(self) -> str:
        rows = [("node", "operation", "axes", "parameters")]
        for node in self.trace.graph.nodes:
            if node in self.axes and self.nature[node] != "parameter":
                site = self.sites.get(node)
                names = ", ".join(site.names) if site else ""
                shown = "input" if node.op == "placeholder" else base_name(node)
                shown = "constant" if node in self.trace.constants else shown
                rows.append((node.name, shown, self.describe(node), names))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def capture(
    model: nn.Module,
    example: Examples,
    output: Output = None,
    *,
    dropout: bool = False,
    select_early: bool = False,
) -> Program:
    """Capture what `model` computes on a batch like `example`, in evaluation mode.

    Args:
        model: any module whose computation `torch.export` can record.
        example: one or more examples: a tensor, or a tuple or dictionary of tensors, with the
            batch as leading dimension.
        output: which tensor of what the module returns, where it returns several: a place in a
            tuple, a key or attribute, or a function of what is returned.
        dropout: keep dropout active (as in training); normalisations use running statistics still.
        select_early: record for a selected position alone what is computed for nothing else.

    Raises:
        InvalidInput: bad example data, or `output` does not choose one tensor.
        UnsupportedOperation: an operation without an axis rule, with its location.
    """
    with evaluation_mode(model, dropout):
        program = _Reader(trace(model, example, output)).read()
        while select_early and (shorter := selected_early(program)) is not None:
            program = _Reader(shorter).read()
        return program


class _Reader:
    """Walks a trace once and gives every live node its nature and axes."""

    def __init__(self, traced: Trace) -> None:
        self.trace = traced
        self.axes: dict[fx.Node, Shape] = {}
        self.several: dict[fx.Node, tuple[Shape, ...]] = {}
        self.nature: dict[fx.Node, Nature] = {}
        self.of_weights: set[fx.Node] = set()
        self.batch = batch()

    def read(self) -> Program:
        live = ancestors(self.trace.output)
        self.of_weights = computations(self.trace, filter(None, map(_weight, live)))
        for node in self.trace.graph.nodes:
            if node in live:
                self.nature[node] = self._nature(node)
                self._read_axes(node)
        self._check_distinct()
        sites = find_sites(self.trace, self.nature, self.axes)
        return Program(self.trace, self.axes, self.nature, sites)

    def _nature(self, node: fx.Node) -> Nature:
        if node in self.trace.parameters or node in self.of_weights:
            return "parameter"
        if _is_number(node):
            return "concrete"
        natures = {self.nature[n] for n in node.all_input_nodes if not _is_number(n)}
        if "random" in natures:
            return "statistic" if self._loses_width(node) else "random"
        if "parameter" in natures and not self._of_scalars(node):
            return "parameter" if natures == {"parameter"} and is_view(node) else "random"
        return "statistic" if "statistic" in natures else "concrete"

    def _of_scalars(self, node: fx.Node) -> bool:
        """Whether all parameters of a pointwise operation are single numbers: constants."""
        if base_name(node) not in POINTWISE or is_view(node):
            return False
        parameters = [n for n in node.all_input_nodes if self.nature[n] == "parameter"]
        if any(size_of(resolve(d)) > 1 for n in parameters for d in self.axes[n]):
            return False
        for parameter in parameters:
            root = root_of(parameter)
            self.trace.constants[root] = self.trace.values[root]
        return True

    def _loses_width(self, node: fx.Node) -> bool:
        if base_name(node) not in ("mean", "sum"):
            return False
        source = cast(fx.Node, node.args[0])
        shape = self.axes[source]
        before = [a for dim in shape for a in resolve(dim) if a.kind == "width"]
        reduced = [a for d in reduced_dimensions(node) for a in resolve(shape[d])]
        return bool(before) and all(axis in reduced for axis in before)

    def _read_axes(self, node: fx.Node) -> None:
        if not hasattr(node.meta.get("val"), "shape") and base_name(node) != "getitem":
            if isinstance(node.meta.get("val"), (list, tuple)):
                self.several[node] = cast(tuple[Shape, ...], self._apply(node))
            return
        if node.op == "placeholder":
            self.axes[node] = cast(Shape, self._fresh(node))
        elif base_name(node) == "getitem":
            source, index = cast(tuple[fx.Node, int], node.args)
            self.axes[node] = self.several[source][index]
        else:
            self.axes[node] = cast(Shape, self._apply(node))

    def _apply(self, node: fx.Node) -> Shape | tuple[Shape, ...]:
        free = self.nature[node] in ("concrete", "parameter")  # may do without a rule
        if self.nature[node] != "random" and _draws_numbers(node):
            raise UnsupportedOperation(
                f"{location(node)} draws random numbers on data: every evaluation of the kernel "
                "would differ."
            )
        if free and base_name(node) in WEIGHTED:  # by constants: they make no width
            return self._fresh(node)
        rule = RULES.get(base_name(node))
        if rule is None and not free:
            raise self._no_rule(node)
        self._check_weight(node)
        if rule is not None:
            try:
                made = rule(node, Axes(self.axes, self.nature, self.batch))
                # Data beside their own transpose (a mask of equal regions): their rows and columns
                # are not the same axis, even where those of the random values they meet are two.
                several = isinstance(node.meta["val"], (list, tuple))
                if not free or several or not _repeats(cast(Shape, made)):
                    return made
            except AxisError as error:
                if not free:
                    raise UnsupportedOperation(
                        f"{location(node)}: {error}. EmpiricalKernel needs no rules."
                    ) from error
        return self._fresh(node)

    def _no_rule(self, node: fx.Node) -> UnsupportedOperation:
        if all(self.nature[n] == "parameter" for n in node.all_input_nodes):
            return _computed_parameter(node)
        return UnsupportedOperation(
            f"no axis rule for {location(node)}: it acts on values that depend on parameters. "
            "Rewrite it with operations that are known (tangency.program.axis_rules.RULES "
            "lists them), or use EmpiricalKernel, which needs no rules."
        )

    def _check_weight(self, node: fx.Node) -> None:
        """The weight of a layer is a parameter, not a value that depends on data or a product."""
        if base_name(node) not in (*WEIGHTED, *PRODUCTS) or self.nature[node] != "random":
            return
        weight = _weight(node)
        assert weight is not None
        if self.nature[weight] != "random":
            return
        if not any(axis is self.batch for dim in self.axes[weight] for axis in resolve(dim)):
            raise _computed_parameter(node)
        if base_name(node) in WEIGHTED:
            raise UnsupportedOperation(
                f"{location(node)} takes as its weight a value that depends on data, which has no "
                "rule; EmpiricalKernel needs no rules."
            )

    def _fresh(self, node: fx.Node) -> Shape | tuple[Shape, ...]:
        """Axes of an executed node, from its sizes alone."""
        value = node.meta["val"]
        if isinstance(value, (list, tuple)):
            return tuple(self._fresh_shape(node, sizes_of(piece)) for piece in value)
        return self._fresh_shape(node, sizes_of(value))

    def _fresh_shape(self, node: fx.Node, sizes: tuple[int, ...]) -> Shape:
        for size in sizes:
            if size % BATCH == 0 and size != BATCH:
                raise UnsupportedOperation(f"{location(node)} merges the batch with another axis.")
        return tuple((self.batch,) if size == BATCH else position(size) for size in sizes)

    def _check_distinct(self) -> None:
        for node, shape in self.axes.items():
            if _repeats(shape) and self.nature[node] == "random":
                raise UnsupportedOperation(
                    f"{location(node)} aligns two axes of one tensor with each other "
                    "(adding a tensor to its own transpose, for example), which is not known."
                )


def _repeats(shape: Shape) -> bool:
    """Whether an atom stands twice in the axes of one tensor."""
    atoms = [a for dim in shape for a in resolve(dim)]
    return len(set(map(id, atoms))) < len(atoms)


def _computed_parameter(node: fx.Node) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{location(node)} computes with a parameter before it meets the data; only views, slices, "
        "transposes and scalar factors are known. EmpiricalKernel needs no rules."
    )


def _weight(node: fx.Node) -> fx.Node | None:
    """What a node takes as its weight; None if it is no product with a weight."""
    if base_name(node) not in (*WEIGHTED, *PRODUCTS):
        return None
    return cast(fx.Node, node.args[WEIGHT_ARGUMENTS.get(base_name(node), 1)])


def _draws_numbers(node: fx.Node) -> bool:
    """Whether an operation uses a random generator (dropout only where it is active)."""
    if not isinstance(node.target, OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = arguments(node)
    if "train" in given:
        return bool(given["train"]) and given.get("p", given.get("dropout")) != 0
    return given.get("dropout_p", 1) != 0


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a size or another number rather than a tensor."""
    return isinstance(node.meta.get("val"), (bool, int, float, torch.SymInt, torch.SymFloat))
