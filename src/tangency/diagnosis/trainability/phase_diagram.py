"""Phases over the second moments of weights and biases, and the critical line between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from tangency import drawing
from tangency.diagnosis.trainability.maps import BlockMaps, check_closed
from tangency.diagnosis.trainability.mean_field import maps_of
from tangency.diagnosis.trainability.scaling import Scaled, gain_at_fixed_point, scaled
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.infinite import Init

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PhaseDiagram", "critical_weight", "phase_diagram"]

WEIGHTS = (0.05, 32.0)
"""Second moments of the weights between which criticality is looked for."""

SCANNED = 25
"""Weights that are tried between them."""

JUMP = 1e-6
"""|ln chi_1| beside a root above which it is a jump."""

ROUNDING = 1e-11
"""ln chi_1 above minus this counts as critical. Without biases, chi_1 - 1 of an odd activation is
of second order in w2 on the chaotic side, where rounding alone would decide."""


@dataclass(frozen=True, eq=False, repr=False)
class PhaseDiagram:
    """chi_1 and q* over weight and bias moments: w2 = fan_in E[W_ij^2], b2 = E[b_i^2].

    Attributes:
        weights: (m,) w2, ascending.
        biases: (k,) b2, ascending.
        chi_1: (k, m), below 1 ordered and above 1 chaotic.
        lengths: (k, m), q*; zero or infinite where lengths shrink or grow without end.
        critical: (k,) critical w2 at each b2, chi_1 = 1; NaN where there is none, also where
            chi_1 jumps from below one to above.
        operations: of the block.
    """

    weights: Tensor
    biases: Tensor
    chi_1: Tensor
    lengths: Tensor
    critical: Tensor
    operations: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name; tensors stay tensors."""
        return dict(vars(self))

    def __repr__(self) -> str:
        lines = [
            f"PhaseDiagram({', '.join(self.operations)}: w2 from {float(self.weights[0]):.3g} to "
            f"{float(self.weights[-1]):.3g}, b2 from {float(self.biases[0]):.3g} to "
            f"{float(self.biases[-1]):.3g})",
            f"  {'b2':>10}{'critical w2':>14}{'ordered':>10}{'chaotic':>10}",
        ]
        for b2, w2, chi in zip(self.biases, self.critical, self.chi_1, strict=True):
            shown = "none" if math.isnan(w2) else f"{float(w2):.8g}"
            ordered, chaotic = int((chi < 1).sum()), int((chi > 1).sum())
            lines.append(f"  {float(b2):>10.4g}{shown:>14}{ordered:>10}{chaotic:>10}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Blocks over which gradients change by e, shaded by phase, with the critical line."""
        figure = drawing.new_figure(
            f"Phases of {', '.join(self.operations)}", "weight moment w2", "bias moment b2"
        )
        log = self.chi_1.clamp(min=1e-30).log()
        figure.add_heatmap(
            x=drawing.numbers(self.weights),
            y=drawing.numbers(self.biases),
            z=[drawing.numbers(row) for row in log],
            zmid=0,
            zmin=-1,
            zmax=1,
            zsmooth="best",
            colorscale=[[0, drawing.EMPIRICAL], [0.5, "#f4f4f2"], [1, drawing.INFINITE]],
            colorbar={
                "title": {"text": "ln χ<sub>1</sub>"},
                "tickvals": [-1, 0, 1],
                "ticktext": ["vanish", "0", "explode"],
            },
            hovertemplate="w2 %{x}<br>b2 %{y}<br>ln chi_1 %{z}<extra></extra>",
        )
        inside = (self.critical >= self.weights[0]) & (self.critical <= self.weights[-1])
        drawing.line(
            figure,
            self.critical[inside],
            self.biases[inside],
            "critical line",
            "#333333",
            width=3,
        )
        return figure


def phase_diagram(
    model: nn.Module,
    example: Examples,
    *,
    weights: Tensor | Sequence[float] | None = None,
    biases: Tensor | Sequence[float] | None = None,
    block: nn.Module | None = None,
) -> PhaseDiagram:
    """Phases of the block that `model` repeats, over the moments of its weights and biases.

    Args:
        model: any module that applies a block several times.
        example: a batch of its examples; only shapes matter.
        weights: w2 = fan_in E[W_ij^2] to try, positive; by default 17 from 0.25 to 4.25.
        biases: b2 = E[b_i^2] to try; by default 9 from 0 to 0.4.
        block: as for `mean_field_theory`.

    Raises:
        InvalidInput: moments that are not numbers of the right sign, and as `mean_field_theory`.
        UnsupportedOperation: as `mean_field_theory`.
    """
    w = _moments(torch.linspace(0.25, 4.25, 17) if weights is None else weights, "weights", 1e-300)
    b = _moments(torch.linspace(0, 0.4, 9) if biases is None else biases, "biases", 0.0)
    maps = maps_of(model, example, Init(float(w[0]), float(b[-1])), block)
    check_closed(maps)
    chi, lengths = torch.empty(len(b), len(w)).double(), torch.empty(len(b), len(w)).double()
    at = scaled(maps)
    for k, b2 in enumerate(b.tolist()):
        for j, w2 in enumerate(w.tolist()):
            lengths[k, j], chi[k, j] = gain_at_fixed_point(at(w2, b2))
    critical = [
        _between(w.tolist(), (chi[k].log() + ROUNDING).tolist(), _log_gain(at, b2))
        for k, b2 in enumerate(b.tolist())
    ]
    line = torch.tensor(critical, dtype=torch.float64)
    return PhaseDiagram(w, b, chi, lengths, line, maps.block.operations)


def critical_weight(
    model: nn.Module,
    example: Examples,
    *,
    bias: float = 0.0,
    block: nn.Module | None = None,
) -> float:
    """The weight moment w2 at which the block that `model` repeats is critical, chi_1 = 1.

    Args:
        model: any module that applies a block several times.
        example: a batch of its examples; only shapes matter.
        bias: b2 = E[b_i^2].
        block: as for `mean_field_theory`.

    Raises:
        InvalidInput: a negative bias moment, as `mean_field_theory`, or no critical weight between
            the two of `WEIGHTS` (a normalised residual block is critical at all of them).
        UnsupportedOperation: as `mean_field_theory`.
    """
    (b2,) = _moments([bias], "bias", 0.0).tolist()
    maps = maps_of(model, example, Init(1.0, b2), block)
    check_closed(maps)
    found = critical_weight_of(maps, b2)
    if math.isnan(found):
        raise InvalidInput(
            f"the block ({', '.join(maps.block.operations)}) is critical at no weight moment "
            f"between {WEIGHTS[0]} and {WEIGHTS[1]} with bias moment {b2:g}."
        )
    return found


def critical_weight_of(maps: BlockMaps, b2: float) -> float:
    """As `critical_weight`, by maps; NaN where there is none."""
    function = _log_gain(scaled(maps), b2)
    tried = torch.logspace(math.log10(WEIGHTS[0]), math.log10(WEIGHTS[1]), SCANNED).tolist()
    return _between(tried, map(function, tried), function)


def _log_gain(at: Scaled, b2: float) -> Callable[[float], float]:
    """w2 -> ln chi_1, zero where it is critical."""

    def function(w2: float) -> float:
        gain = gain_at_fixed_point(at(w2, b2))[1]
        return math.log(gain) + ROUNDING if gain > 0 else -math.inf

    return function


def _between(
    at: Sequence[float], values: Iterable[float], function: Callable[[float], float]
) -> float:
    """The first root between points `at` where the function has `values`; NaN without one.

    A jump through zero is none: there lengths leave for another fixed point, and both sides of it
    are off criticality (GELU without biases).
    """
    known = list(zip(at, values, strict=True))
    for (a, left), (b, right) in itertools.pairwise(known):
        if (left < 0) != (right < 0):
            root = float(brentq(function, a, b, xtol=1e-13, rtol=1e-14))
            if all(abs(function(root * (1 + side))) < JUMP for side in (-1e-9, 1e-9)):
                return root
    return math.nan


def _moments(values: Tensor | Sequence[float], name: str, least: float) -> Tensor:
    found = torch.as_tensor(np.asarray(values, dtype=float)).double().reshape(-1)
    if not len(found) or not bool(torch.isfinite(found).all()) or bool((found < least).any()):
        raise InvalidInput(
            f"{name} must be finite second moments, {'positive' if least > 0 else 'at least 0'}; "
            f"they are {found.tolist()}."
        )
    return found.sort().values
