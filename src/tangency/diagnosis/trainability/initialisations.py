"""What each standard initialisation does to a repeated block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangency import drawing, examples
from tangency.diagnosis.trainability.maps import BlockMaps, check_closed
from tangency.diagnosis.trainability.mean_field import MeanField, maps_of, mean_field_of
from tangency.diagnosis.trainability.phase_diagram import critical_weight_of
from tangency.diagnosis.trainability.propagation import (
    Propagation,
    inputs_of,
    mean_correlation,
    propagate,
)
from tangency.diagnosis.trainability.verdict import DepthLimits, Judgement, judge_block
from tangency.errors import TangencyError
from tangency.examples import Examples
from tangency.infinite import Init

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Initialisation", "Initialisations", "compared", "initialisations", "judged"]

BIASES = (0.0, 0.05, 0.2, 0.6)
"""Bias moments at which a critical weight moment is looked for."""

FOLLOWED = 6
"""Examples that are followed through the blocks: the first ones, if there are more."""


@dataclass(frozen=True, eq=False)
class Initialisation:
    """One initialisation of a repeated block.

    Attributes:
        name: e.g. "He".
        theory: its fixed points and depth scales.
        through: lengths, correlations and gains through the blocks of the module.
        judgement: the verdict.
    """

    name: str
    theory: MeanField
    through: Propagation
    judgement: Judgement


@dataclass(frozen=True, eq=False, repr=False)
class Initialisations:
    """Standard initialisations of the same blocks, the module's own first."""

    rows: tuple[Initialisation, ...]

    def __getitem__(self, name: str) -> Initialisation:
        return next(row for row in self.rows if row.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the initialisations, in order."""
        return tuple(row.name for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """By name: theory and verdict as plain numbers and words."""
        return {
            row.name: {**row.theory.to_dict(), "judgement": row.judgement.to_dict()}
            for row in self.rows
        }

    def __repr__(self) -> str:
        depth = len(self.rows[0].through.gains)
        lines = [
            f"Initialisations({depth} blocks)",
            f"  {'':<18}{'chi_1':>10}{'q*':>10}{'c*':>9}{'xi_grad':>9}{'gradients':>11}  verdict",
        ]
        for row in self.rows:
            t = row.theory
            lines.append(
                f"  {row.name:<18}{t.chi_1:>10.4g}{t.length:>10.4g}{t.correlation:>9.3g}"
                f"{t.xi_gradient:>9.3g}{_power(row.judgement.gradient):>11}  {row.judgement.state}"
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Squared gradients and correlations through the blocks, by initialisation."""
        figure = drawing.panels(
            "Initialisations", ["squared gradients, last block = 1", "mean cosine of the inputs"]
        )
        for k, row in enumerate(self.rows):
            colour = drawing.PALETTE[k % len(drawing.PALETTE)]
            depths = torch.arange(len(row.through.lengths))
            logs = torch.cat([row.through.gains.log(), torch.zeros(1, dtype=torch.float64)])
            pulled = logs.flip(0).cumsum(0).flip(0) / math.log(10)
            # The first one often lies under PyTorch's default.
            place: dict[str, Any] = {"row": 1, "col": 1, "width": 5.0 if k == 0 else 2.0}
            drawing.line(figure, depths, 10**pulled, row.name, colour, **place)
            place |= {"col": 2, "legend": False}
            drawing.line(figure, depths, row.through.correlations, row.name, colour, **place)
        figure.update_yaxes(type="log", exponentformat="power", row=1, col=1)
        figure.update_xaxes(title_text="block")
        return figure


def initialisations(
    model: nn.Module,
    example: Examples,
    *,
    depth: int | None = None,
    block: nn.Module | None = None,
    limits: DepthLimits | None = None,
) -> Initialisations:
    """What He, LeCun, Xavier, PyTorch's and the critical initialisation do to `model`.

    Beside them the module's own moments, and the critical weight moment where there is one, with
    biases of zero or, where nothing is critical without, the next of `BIASES`.

    Args:
        model: any module that applies a block several times.
        example: examples; the first `FOLLOWED` are followed through the blocks.
        depth: number of blocks; by default as many as the module has.
        block: as for `mean_field_theory`; then `example` are states.
        limits: marks of the verdict.

    Raises:
        InvalidInput, UnsupportedOperation: as `mean_field_theory`.
    """
    examples.check(example, "example")
    maps = maps_of(model, example, "module", block)
    few = examples.take(example, slice(0, FOLLOWED))
    own = judged("own", maps, few, depth, limits)
    check_closed(maps, own.theory.start[0])
    return compared(own, few, depth, limits)


def compared(
    own: Initialisation, few: Examples, depth: int | None, limits: DepthLimits | None
) -> Initialisations:
    """Other initialisations beside the module's own."""
    maps = own.theory.maps
    presets: dict[str, Init] = {
        "He": Init.he(),
        "Xavier": Init.xavier(),
        "LeCun": Init.lecun(),
        "PyTorch default": Init.pytorch_default(),
    }
    for b2 in BIASES:
        w2 = critical_weight_of(maps, b2)
        if not math.isnan(w2):
            presets[f"critical ({w2:.4g}, {b2:g})"] = Init(w2, b2)
            break
    rows = [judged(name, maps.at(i), few, depth, limits) for name, i in presets.items()]
    return Initialisations((own, *rows))


def judged(
    name: str,
    maps: BlockMaps,
    few: Examples,
    depth: int | None = None,
    limits: DepthLimits | None = None,
) -> Initialisation:
    """One initialisation, with the states of the examples `few` followed through the blocks.

    Where what comes before the blocks has no limit, they start at length 1 and correlation 1/2.
    """
    try:
        gram = maps.entry(inputs_of(few)).nngp
    except TangencyError:
        gram = torch.full((2, 2), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    if len(gram) == 1:  # a second one at an angle, to be told from the first
        gram = gram * torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    start = max(float(gram.diagonal().mean()), 1e-300), float(mean_correlation(gram).clamp(-1, 1))
    theory = mean_field_of(maps, start)
    through = propagate(maps, gram, depth or maps.block.depth)
    return Initialisation(
        name, theory, through, judge_block(theory, through, limits or DepthLimits())
    )


def _power(log: float) -> str:
    return f"10^{log / math.log(10):.1f}"
