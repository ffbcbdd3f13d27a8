"""The conditioning of the NTK against depth (Xiao, Pennington & Schoenholz 2020).

With equal lengths q and correlations c between m examples the NTK after l blocks has an eigenvalue
T_aa + (m - 1) T_ab and m - 1 eigenvalues T_aa - T_ab. As l grows,

    ordered    T_aa and T_ab go to A(q*) / (1 - chi_1), their difference like l chi_1^l: the
               condition number grows like 1 / (l chi_1^l)
    chaotic    T_aa grows like chi_1^l and T_ab goes to A(q*, c*) / (1 - chi_c): it goes to 1,
               and the mean prediction on new inputs to zero
    critical   T_ab / T_aa -> p / (1 + 2 p) where the correlation map leaves one as
               1 - C(1 - e) = e - a e^(1 + p): 1/4 with kinks (p = 1/2), 1/3 without (p = 1),
               so that it goes to 1 + m/3 or 1 + m/2

where A is what a block's own parameters add. (The values of p give those of table 1 there.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangency import drawing, examples
from tangency.analysis import kernel_matrix
from tangency.diagnosis.trainability.maps import BlockMaps, check_closed
from tangency.diagnosis.trainability.mean_field import (
    MeanField,
    Phase,
    maps_of,
    mean_field_of,
)
from tangency.diagnosis.trainability.propagation import inputs_of, mean_correlation, propagate
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.infinite import Init
from tangency.infinite.parameters import Parametrization

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["NtkDepth", "limit_condition", "ntk_against_depth", "ntk_depth_of"]

MOST = 8
"""Examples that are followed: the first ones, if there are more."""


@dataclass(frozen=True, eq=False, repr=False)
class NtkDepth:
    """The NTK of the states after 0, 1, ... blocks, over m examples.

    Attributes:
        depths: (L + 1,) int64, numbers of blocks.
        condition: (L + 1,) lambda_max / lambda_min; infinite where lambda_min is rounding.
        diagonal: (L + 1,) mean T(x, x).
        ratio: (L + 1,) mean T(x, x') over mean T(x, x), x != x'.
        correlations: (L + 1,) mean cosine between the states of different examples.
        phase: of the block.
        limit: what the condition number of examples of equal lengths goes to: infinite in the
            ordered phase, 1 in the chaotic one, NaN where theory says nothing (no fixed length).
            Inputs of different lengths leave a factor: all lengths are kept by a critical ReLU,
            and how gradients grow at first depends on them in the chaotic phase.
        slope: what ln condition changes by per block far in the ordered phase, -ln chi_1; NaN in
            the other phases.
        examples: m.
    """

    depths: Tensor
    condition: Tensor
    diagonal: Tensor
    ratio: Tensor
    correlations: Tensor
    phase: Phase
    limit: float
    slope: float
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name; tensors stay tensors."""
        return dict(vars(self))

    def __repr__(self) -> str:
        lines = [
            f"NtkDepth({self.phase}: condition number of {self.examples} examples of equal lengths "
            f"goes to {self.limit:.4g})",
            f"  {'blocks':>8}{'condition':>12}{'T_aa':>12}{'T_ab/T_aa':>12}{'cosine':>12}",
        ]
        for k in torch.linspace(0, len(self.depths) - 1, 7).round().long().unique().tolist():
            values = (self.condition, self.diagonal, self.ratio, self.correlations)
            lines.append(
                f"  {int(self.depths[k]):>8}" + "".join(f"{float(v[k]):>12.5g}" for v in values)
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Condition number against depth, with its limit."""
        figure = drawing.new_figure(
            f"Conditioning of the NTK against depth ({self.phase})",
            "blocks",
            "condition number",
            y_axis="log",
        )
        drawing.line(figure, self.depths, self.condition, "NTK", drawing.INFINITE)
        if math.isfinite(self.limit):
            drawing.horizontal(figure, self.limit, f"limit {self.limit:.3g}")
        return figure


def ntk_against_depth(
    model: nn.Module,
    example: Examples,
    *,
    depth: int | None = None,
    init: Init | str = "module",
    parametrization: Parametrization = "standard",
    block: nn.Module | None = None,
) -> NtkDepth:
    """The NTK of the block that `model` repeats, repeated up to `depth` times.

    Args:
        model: any module that applies a block several times.
        example: examples; the first `MOST` are followed. What comes before the block acts on them.
        depth: number of blocks; by default as many as the module has.
        init: as for `mean_field_theory`.
        parametrization: as for `InfiniteKernel`.
        block: as for `mean_field_theory`; then `example` are states.

    Raises:
        InvalidInput: fewer than two examples, a depth below 1, and as `mean_field_theory`.
        UnsupportedOperation: as `mean_field_theory`, or what comes before the block has no limit.
    """
    examples.check(example, "example")
    if examples.count(example) < 2:
        raise InvalidInput("example holds one example, but a condition number needs two.")
    if depth is not None and depth < 1:
        raise InvalidInput(f"depth is {depth}, but must be at least 1.")
    maps = maps_of(model, example, init, block)
    gram, ntk = maps.entry(inputs_of(examples.take(example, slice(0, MOST))), parametrization)
    start = float(gram.diagonal().mean()), float(mean_correlation(gram))
    check_closed(maps, start[0])
    theory = mean_field_of(maps, start)
    return ntk_depth_of(theory, gram, ntk, depth or maps.block.depth, parametrization)


def ntk_depth_of(
    theory: MeanField, gram: Tensor, ntk: Tensor, depth: int, form: Parametrization
) -> NtkDepth:
    """As `ntk_against_depth`, from Gram matrix and NTK (m, m) of the states before the blocks."""
    found = propagate(theory.maps, gram, depth, ntk=ntk, parametrization=form)
    assert found.ntk is not None
    m = len(gram)
    diagonal = found.ntk.diagonal(dim1=1, dim2=2).mean(dim=1)
    off = (found.ntk.sum(dim=(1, 2)) - m * diagonal) / (m * (m - 1))
    return NtkDepth(
        depths=torch.arange(depth + 1),
        condition=torch.tensor([condition_number(k) for k in found.ntk], dtype=torch.float64),
        diagonal=diagonal,
        ratio=off / diagonal,
        correlations=found.correlations,
        phase=theory.phase,
        limit=limit_condition(theory, m),
        slope=-math.log(theory.chi_1) if theory.phase == "ordered" else math.nan,
        examples=m,
    )


def condition_number(K: Tensor) -> float:
    """lambda_max / lambda_min; infinite where lambda_min is not above rounding."""
    if not bool(torch.isfinite(K).all()) or not bool(K.any()):
        return math.nan
    system = kernel_matrix(K).eigensystem
    largest, smallest = float(system.values[0]), float(system.values[-1])
    return largest / smallest if smallest > system.tolerance else math.inf


def limit_condition(theory: MeanField, m: int) -> float:
    """What the condition number of m examples goes to with depth."""
    if not 0 < theory.length < math.inf:
        return math.nan
    if theory.phase != "critical":
        return 1.0 if theory.phase == "chaotic" else math.inf
    power = _leaving_power(theory.maps, theory.length)
    ratio = power / (1 + 2 * power)
    return (1 + (m - 1) * ratio) / (1 - ratio)


def _leaving_power(maps: BlockMaps, q: float) -> float:
    """p of 1 - dC/dc = a (1 + p) e^p at c = 1 - e: 1/2 with kinks, 1 without."""
    gaps = torch.tensor([1e-4, 1e-6], dtype=torch.float64)
    slopes = 1 - maps.correlations(q, 1 - gaps)[1]
    if not bool((slopes > 0).all()):
        return math.nan
    p = float((slopes[0] / slopes[1]).log() / (gaps[0] / gaps[1]).log())
    return round(2 * p) / 2
