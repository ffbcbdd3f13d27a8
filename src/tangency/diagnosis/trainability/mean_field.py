"""Mean-field theory of a repeated block: fixed points, phase and depth scales.

Poole et al. (2016), "Exponential expressivity in deep neural networks through transient chaos";
Schoenholz et al. (2017), "Deep information propagation". With the maps of
`tangency.diagnosis.trainability.maps`, at the fixed length q*,

    chi_1 = B(q*, 1)                 gain of squared gradients per block
    xi_c = -1 / ln |C'(c*)|          blocks over which correlations settle by a factor e
    xi_q = -1 / ln |Q'(q*)|          the same of lengths
    xi_gradient = 1 / |ln chi_1|     blocks over which squared gradients change by a factor e

chi_1 < 1 is the ordered phase: all inputs become alike and gradients vanish; chi_1 > 1 the chaotic
one: near inputs part and gradients explode; chi_1 = 1 is critical, where both change by powers of
the depth only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tangency import drawing
from tangency.diagnosis.trainability.fixed_points import (
    LARGEST,
    SMALLEST,
    CorrelationFixedPoints,
    correlation_fixed_points,
    length_fixed_points,
)
from tangency.diagnosis.trainability.maps import BlockMaps, check_closed
from tangency.diagnosis.trainability.repetition import RepeatedBlock, as_block, find_block
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.infinite import Init

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["MeanField", "Phase", "maps_of", "mean_field_of", "mean_field_theory", "phase_of"]

Phase: TypeAlias = Literal["ordered", "critical", "chaotic"]

CRITICAL = 1e-6
"""|ln chi_1| that counts as zero."""


@dataclass(frozen=True, eq=False, repr=False)
class MeanField:
    """A repeated block in the limit of infinite width.

    Attributes:
        block: the block and where it stands.
        maps: its length and correlation maps and its gradient gain, to be asked for more.
        start: (q0, c0), the length and correlation that the fixed points are followed from.
        lengths: all fixed points of the length map, ascending; empty if there are none, or if
            every length is fixed.
        length: q*, the limit of lengths from q0: 0 and infinity are limits too.
        length_slope: dQ/dq at q*, or at the end of the scanned lengths where q* is 0 or infinite.
        chi_1: gain of squared gradients at q*.
        correlations: all fixed points of the correlation map at q*, ascending; 1 is the last.
        correlation: c*, the limit of correlations from c0.
        chi_c: dC/dc at c*.
        phase: "ordered", "critical" or "chaotic", by chi_1.
    """

    block: RepeatedBlock
    maps: BlockMaps
    start: tuple[float, float]
    lengths: tuple[float, ...]
    length: float
    length_slope: float
    chi_1: float
    correlations: tuple[float, ...]
    correlation: float
    chi_c: float
    phase: Phase

    @property
    def xi_gradient(self) -> float:
        """Blocks over which squared gradients change by a factor e; infinite at criticality."""
        return depth_scale(self.chi_1)

    @property
    def xi_c(self) -> float:
        """Blocks over which c* - c falls by a factor e; infinite where it falls by a power."""
        return depth_scale(self.chi_c)

    @property
    def xi_q(self) -> float:
        """Blocks over which q - q* falls by a factor e; infinite where q* attracts by a power."""
        return depth_scale(self.length_slope)

    def to_dict(self) -> dict[str, Any]:
        """Numbers by name, without the block and its maps."""
        found = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("block", "maps")
        }
        scales = {name: getattr(self, name) for name in ("xi_gradient", "xi_c", "xi_q")}
        return {**found, **scales, "operations": self.block.operations, "depth": self.block.depth}

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"MeanField({self.phase}: chi_1 = {self.chi_1:.6g})",
                f"  block          {_short(self.block.operations)}, {self.block.depth} times",
                f"  length         q* = {self.length:.6g} (from {self.start[0]:.4g}), "
                f"xi_q = {self.xi_q:.4g}",
                f"  correlation    c* = {self.correlation:.6g} (from {self.start[1]:.4g}), "
                f"xi_c = {self.xi_c:.4g}",
                f"  gradients      times {self.chi_1:.6g} per block (squared), "
                f"xi = {self.xi_gradient:.4g}",
            ]
        )

    def figure(self) -> Figure:
        """Length map and correlation map beside the identity, with their fixed points."""
        figure = drawing.panels(
            f"One block: {_short(self.block.operations)}",
            ["length map", f"correlation map at q = {self._at:.3g}"],
        )
        q = self._at * torch.linspace(0.02, 3, 80, dtype=torch.float64)
        c = torch.linspace(0, 1, 60, dtype=torch.float64)
        images = (self.maps.lengths(q)[0], self.maps.correlations(self._at, c)[0])
        fixed = ([v for v in self.lengths if v <= float(q[-1])], self.correlations)
        names = (("q", "q'"), ("c", "c'"))
        for k, (x, y) in enumerate(zip((q, c), images, strict=True)):
            place: dict[str, Any] = {"row": 1, "col": k + 1, "legend": k == 0}
            drawing.line(figure, x, y, "one block", drawing.INFINITE, **place)
            drawing.line(figure, x, x, "identity", drawing.ACTUAL, dash="dot", **place)
            kept = [v for v in fixed[k] if v >= 0]
            drawing.points(figure, kept, kept, "fixed points", size=10, **place)
            figure.update_xaxes(title_text=names[k][0], row=1, col=k + 1)
            figure.update_yaxes(title_text=names[k][1], row=1, col=k + 1)
        return figure

    @property
    def _at(self) -> float:
        """Where correlations are looked at, also if q* is no length."""
        return _within(self.length)


def mean_field_theory(
    model: nn.Module,
    example: Examples,
    *,
    init: Init | str = "module",
    block: nn.Module | None = None,
    start: tuple[float, float] = (1.0, 0.5),
) -> MeanField:
    """Mean-field theory of the block that `model` repeats.

    Args:
        model: any module that applies a block several times, however it is written.
        example: a batch of its examples; only shapes matter.
        init: "module" measures the moments of the block's parameters, averaged over repetitions;
            an `Init` prescribes them.
        block: the block itself, a module from a state to one of the same shape; then `model` may
            be the same module, and `example` is a batch of states.
        start: length and correlation (q0, c0) from which the fixed points are followed.

    Raises:
        InvalidInput: bad example data, `init`, or start.
        UnsupportedOperation: no repeated block, no limit in closed form, or a state that lengths
            and correlations do not describe.
    """
    maps = maps_of(model, example, init, block)
    check_closed(maps, _checked(start)[0])
    return mean_field_of(maps, start)


def maps_of(
    model: nn.Module, example: Examples, init: Init | str, block: nn.Module | None
) -> BlockMaps:
    """Maps of the block that `model` repeats, or of `block`. Raises as `mean_field_theory`."""
    found = find_block(model, example) if block is None else as_block(block, _state(example), 1)
    return BlockMaps(found, init)


def mean_field_of(maps: BlockMaps, start: tuple[float, float] = (1.0, 0.5)) -> MeanField:
    """Mean-field theory by maps that are known to describe the state."""
    q0, c0 = _checked(start)
    found = length_fixed_points(lambda q: maps.lengths(q)[0])
    (image,), _ = maps.lengths(torch.tensor([q0], dtype=torch.float64))
    length = found.attracting(q0, float(image) > q0)
    at = _within(length)
    chi_1 = float(maps.lengths(torch.tensor([at], dtype=torch.float64))[1])
    fixed, (correlation, chi_c) = _correlation(maps, at, c0)
    return MeanField(
        block=maps.block,
        maps=maps,
        start=(q0, c0),
        lengths=found.values,
        length=length,
        length_slope=maps.length_slope(at),
        chi_1=chi_1,
        correlations=fixed.values,
        correlation=correlation,
        chi_c=chi_c,
        phase=phase_of(chi_1),
    )


def phase_of(chi_1: float) -> Phase:
    """The phase by the gain of squared gradients per block."""
    log = math.log(chi_1) if chi_1 > 0 else -math.inf
    if abs(log) <= CRITICAL:
        return "critical"
    return "ordered" if log < 0 else "chaotic"


def depth_scale(slope: float) -> float:
    """1 / |ln |slope||: blocks for a factor e. Infinite for a slope of 1, zero for one of 0."""
    if slope == 0:
        return 0.0
    log = abs(math.log(abs(slope)))
    return 1 / log if log > CRITICAL else math.inf


def _correlation(
    maps: BlockMaps, q: float, c0: float
) -> tuple[CorrelationFixedPoints, tuple[float, float]]:
    fixed = correlation_fixed_points(lambda c: maps.correlations(q, c))
    (image,), _ = maps.correlations(q, torch.tensor([c0], dtype=torch.float64))
    return fixed, fixed.attracting(c0, float(image) > c0)


def _within(length: float) -> float:
    """A fixed length, or the end of the scanned ones for the limits 0 and infinity."""
    return min(max(length, SMALLEST), LARGEST)


def _checked(start: tuple[float, float]) -> tuple[float, float]:
    q0, c0 = start
    if not (math.isfinite(q0) and q0 > 0 and -1 <= c0 <= 1):
        raise InvalidInput(
            f"start is {start}, but must be a positive length and a correlation in [-1, 1]."
        )
    return float(q0), float(c0)


def _state(example: Examples) -> Tensor:
    if not isinstance(example, Tensor):
        raise InvalidInput(
            f"with block=, example must be a batch of states, one tensor, not a "
            f"{type(example).__name__}."
        )
    return example


def _short(operations: tuple[str, ...]) -> str:
    views = ("view", "transpose", "permute", "reshape", "contiguous", "select", "unsqueeze")
    kept = [name for name in operations if name not in (*views, "dropout", "unflatten")]
    return ", ".join(kept if len(kept) <= 8 else [*kept[:7], "..."])
