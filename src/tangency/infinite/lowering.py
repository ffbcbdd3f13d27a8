"""From a Program to values: what every node is as a random variable over its width.

A *strand* is a stretch of a node's width on which it is of one nature: concatenations and chunks
cut the width into strands. Each operation's rule (`tangency.infinite.rules`) lowers one strand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.kinks import KnownKinks
from tangency.infinite.layout import Positions
from tangency.infinite.side import Side
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.consistency import Family, Pieces
from tangency.infinite.values.sources import Scale
from tangency.infinite.values.sum import Coefficient
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import size_of
from tangency.program.capture import Program
from tangency.program.operations import base_name
from tangency.program.sites import ParameterUse
from tangency.program.trace import location

__all__ = ["Lowering", "Parameters", "Rule", "cut_rule", "rule"]

Rule: TypeAlias = "Callable[[Lowering, fx.Node, int, int], Value]"
"""Lowers the strand `(start, length)` of a node."""

CutRule: TypeAlias = "Callable[[Lowering, fx.Node], frozenset[int]]"
"""Where along its width a node changes its nature."""

RULES: dict[str, Rule] = {}
CUT_RULES: dict[str, CutRule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of the operations `names`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def cut_rule(*names: str) -> Callable[[CutRule], CutRule]:
    """Register where the operations `names` cut the width (default: where their inputs do)."""

    def register(function: CutRule) -> CutRule:
        CUT_RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Parameters:
    """What lowering needs to know of parameters.

    Attributes:
        weight: scales of a weight as a site uses it, given its fan-in and fan-out.
        bias: scales of a bias, given the fan-in and fan-out of the layer that it belongs to.
        table: scales of rows of a table, or of a token, given its values and their role.
        value: present value of a parameter.
        trainable: whether a parameter counts in the NTK.
        smooth: whether a scale that was asked for requires gradients.
    """

    weight: Callable[[ParameterUse, int, int], Scale]
    bias: Callable[[ParameterUse, int, int], Scale]
    table: Callable[[str, Tensor, str], Scale]
    value: Callable[[str], Tensor]
    trainable: Callable[[str], bool]
    smooth: Callable[[], bool]


class Lowering:
    """Lowers the nodes of a program, each strand once.

    One `like` another of the same program, with other parameters, knows what that one knows of its
    functions.
    """

    def __init__(
        self,
        program: Program,
        parameters: Parameters,
        *,
        sample: bool = False,
        like: Lowering | None = None,
    ) -> None:
        self.program = program
        self.parameters = parameters
        self.sample = sample
        self.sampled = False
        self._prepared = False
        self._values: dict[tuple[fx.Node, int, int], Value] = {}
        self._cuts: dict[fx.Node, frozenset[int]] = {}
        self._families: dict[Hashable, Family] = {}
        self._kinks: dict[Hashable, KnownKinks] = {} if like is None else like._kinks

    @property
    def values(self) -> set[Value]:
        """All values so far."""
        return set(self._values.values())

    def kinks_of(self, key: Hashable) -> KnownKinks:
        """What is known of the kinks of a function that is the same for all examples."""
        return self._kinks.setdefault(key, {})

    def width(self, node: fx.Node) -> int:
        """Size of the node's width (1 if it has none)."""
        return size_of(self.program.atoms(node, "width"))

    def random(self, node: object) -> bool:
        """Whether an argument is a random value."""
        return isinstance(node, fx.Node) and self.program.nature[node] == "random"

    def value(self, node: fx.Node) -> Value:
        """The whole width of a node that is of one nature throughout."""
        self._prepare()
        if self.cuts(node):
            raise self.unsupported(node, "needs a value of one nature over its width here")
        return self.strand(node, 0, self.width(node))

    def _prepare(self) -> None:
        """Lower the nodes in order, so that a deep network does not make a deep recursion."""
        if self._prepared:
            return
        self._prepared = True
        for node in self.program.axes:
            if self.random(node) and not self.cuts(node) and base_name(node) != "getitem":
                self.strand(node, 0, self.width(node))

    def strand(self, node: fx.Node, start: int, length: int) -> Value:
        """The stretch `start : start + length` of a node's width."""
        key = (node, start, length)
        if key not in self._values:
            self._values[key] = value = self._lower(node, start, length)
            # Known from now on, so that no deep recursion has to find them.
            _ = value.gaussian, value.centred, value.origins, value.leaves
            if value.sampled and not self.sampled:
                self.need_samples(node, "puts together values whose covariance has no closed form")
        return self._values[key]

    def _lower(self, node: fx.Node, start: int, length: int) -> Value:
        if self.program.nature[node] == "parameter":
            return RULES["parameter"](self, node, start, length)
        if self.program.nature[node] != "random":
            return self.data(node, self.program.atoms(node, "width"), start, length)
        name = base_name(node)
        if name not in RULES:
            raise self.unsupported(node, "has no rule in the infinite-width limit")
        return RULES[name](self, node, start, length)

    def data(self, node: fx.Node, features: Positions, start: int, length: int) -> Concrete:
        """A stretch of a concrete node along `features`, the axes that a weight contracts."""
        atoms = self.program.atoms(node)
        positions = tuple(a for a in atoms if a not in features and a.kind != "batch")
        return Concrete(node, positions, features, start, length)

    def pieces(
        self, node: fx.Node, cuts: frozenset[int], begin: int = 0, size: int | None = None
    ) -> tuple[tuple[float, Value], ...]:
        """The strands of a stretch of a node's width, with their fractions of it.

        The stretch (the whole width, if no size is given) is cut where the node changes its nature,
        and also at `cuts`, which count from its beginning.
        """
        size = self.width(node) - begin if size is None else size
        own = {c - begin for c in self.cuts(node) if begin < c < begin + size}
        edges = sorted({0, size} | own | cuts)
        return tuple(
            ((stop - start) / size, self.strand(node, begin + start, stop - start))
            for start, stop in itertools.pairwise(edges)
        )

    def shared(self, weight: Hashable, pieces: Pieces) -> Pieces:
        """Pieces of what a weight multiplies, in one way at all its uses: exact, or by samples."""
        if not self.sample:
            return pieces
        return self._families.setdefault(weight, Family()).joined(pieces)

    def cuts(self, node: fx.Node) -> frozenset[int]:
        """Interior places of the width where the node changes its nature."""
        if node not in self._cuts:
            name = base_name(node)
            cut = CUT_RULES.get(name, _inherited_cuts)
            self._cuts[node] = cut(self, node) if self.random(node) else frozenset()
        return self._cuts[node]

    def coefficient(
        self, node: fx.Node, transform: Callable[[Tensor], Tensor] | None = None
    ) -> Coefficient:
        """A concrete node without width as a factor per example and position."""
        positions: Positions = self.program.atoms(node, "position")

        def evaluate(side: Side) -> Tensor:
            values = side.features(node, positions, ())[..., 0]
            return values if transform is None else transform(values)

        return Coefficient(evaluate, positions)

    def constant(self, node: fx.Node, side: Side, positions: Positions) -> Any:
        """A concrete argument of a pointwise operation, over `positions` of its result."""
        if node not in self.program.axes:
            return side.concrete(node)
        own: Positions = self.program.atoms(node, "position")
        values = to_positions(side.features(node, own, ())[..., 0], own, positions)
        kind = node.meta["val"].dtype
        return values if kind.is_floating_point else values.to(kind)

    def need_samples(self, node: fx.Node, reason: str) -> None:
        """Note that a node's moments are sampled; refuse it if that was not asked for."""
        if not self.sample:
            raise self.unsupported(
                node,
                f'{reason}: pass numerical="sample" to InfiniteKernel to estimate its limit by '
                "samples, with a standard error",
            )
        self.sampled = True

    def unsupported(self, node: fx.Node, reason: str) -> UnsupportedOperation:
        """The error for a node that cannot be lowered."""
        return UnsupportedOperation(
            f"{location(node)} {reason}. EmpiricalKernel computes the kernel of this module at "
            "finite width without rules."
        )


def _inherited_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    if node in lowering.program.sites and lowering.program.sites[node].role == "affine":
        return frozenset()
    size = lowering.width(node)
    inputs = [n for n in node.all_input_nodes if lowering.random(n) and lowering.width(n) == size]
    cuts = frozenset[int]().union(*(lowering.cuts(n) for n in inputs))
    for source in inputs:
        atoms = lowering.program.atoms
        if cuts and atoms(source, "width") != atoms(node, "width"):
            raise lowering.unsupported(node, "reorders a width that was concatenated from parts")
    return cuts
