"""The spectral density of a kernel too large to factorise, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.spectrum.operators import KernelOrOperator, Products, products
from tangency.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["SpectralDensity", "spectral_density"]

GRID = 256
"""Points of the curve."""


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """How many of the N eigenvalues of a kernel lie where, estimated from random probes.

    A probe gives a quadrature rule, nodes and weights, such that the weighted sum of f(node) is an
    estimate of the sum of f over all eigenvalues. Its mean is right where f is a polynomial of
    degree up to 2 steps - 1; f with a jump, as in `count`, is smoothed over the distance of nodes.

    Attributes:
        nodes: (probes, steps), float64.
        weights: (probes, steps), float64; each probe's sum to N.
        size: N.
        floor: nodes of at most this size cannot be told from zero (rounding).
    """

    nodes: Tensor
    weights: Tensor
    size: int
    floor: float

    def sum_of(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The sum of `function` over all eigenvalues, and the standard error of this estimate.

        The error is that of the mean over probes, infinite for a single one. `function` acts
        elementwise, on float64.
        """
        sums = (self.weights * function(self.nodes)).sum(dim=1)
        if len(sums) == 1:
            return float(sums), math.inf
        return float(sums.mean()), float(sums.std()) / math.sqrt(len(sums))

    def count(self, above: float) -> tuple[float, float]:
        """How many eigenvalues are larger than `above`, and the standard error."""
        return self.sum_of(lambda values: (values > above).double())

    def effective_dimension(self, ridge: float) -> tuple[float, float]:
        """sum_i lambda_i / (lambda_i + ridge), as `Spectrum.effective_dimension`, and the standard
        error.

        Raises:
            InvalidInput: a ridge that is not positive.
        """
        if not (math.isfinite(ridge) and ridge > 0):
            raise InvalidInput(f"ridge is {ridge}, but must be positive.")
        return self.sum_of(lambda values: values.clamp(min=0) / (values.clamp(min=0) + ridge))

    @property
    def null(self) -> float:
        """How many eigenvalues cannot be told from zero, about."""
        return float(self.weights[self.nodes.abs() <= self.floor].sum()) / len(self.nodes)

    @property
    def negative(self) -> float:
        """How many eigenvalues are negative, about; above 0, K is not a kernel matrix."""
        return float(self.weights[self.nodes < -self.floor].sum()) / len(self.nodes)

    def curve(self, width: float = 0.1) -> tuple[Tensor, Tensor]:
        """Eigenvalues (256,) and their density (256,): their number per factor of ten.

        Nodes are spread by a Gaussian of standard deviation `width`, in powers of ten; negative
        ones, and those that cannot be told from zero, are left out.

        Raises:
            InvalidInput: a width that is not positive.
        """
        if not (math.isfinite(width) and width > 0):
            raise InvalidInput(f"width is {width}, but must be positive.")
        positive = self.nodes > self.floor
        if not bool(positive.any()):
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        logs = self.nodes[positive].log10()
        weights = self.weights[positive] / len(self.nodes)
        grid = torch.linspace(
            float(logs.min()) - 4 * width, float(logs.max()) + 4 * width, GRID, dtype=torch.float64
        )
        bumps = torch.exp(-(((grid[:, None] - logs) / width) ** 2) / 2)
        return 10**grid, bumps @ weights / (width * math.sqrt(2 * math.pi))

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name; tensors stay tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self, eigenvalues: Tensor | Sequence[float] | None = None) -> Figure:
        """The curve; beside it, if they are given, the histogram of exact eigenvalues.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            f"Spectral density: {self.size} eigenvalues, {len(self.nodes)} probes",
            "eigenvalue",
            "eigenvalues per factor of ten",
            x_axis="log",
        )
        if eigenvalues is not None:
            exact = torch.as_tensor(eigenvalues, dtype=torch.float64)
            logs = exact[exact > self.floor].log10()
            edges = np.arange(float(logs.min()) - 0.1, float(logs.max()) + 0.3, 0.2)
            counts = np.histogram(logs.numpy(), edges)[0] / 0.2
            x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]])
            drawing.line(figure, 10**x, y, "exact, histogram", drawing.ACTUAL, width=1)
        drawing.line(figure, *self.curve(), "stochastic Lanczos quadrature")
        return figure

    def __repr__(self) -> str:
        largest = float(self.nodes.max())
        lines = [
            f"SpectralDensity of {self.size} eigenvalues ({len(self.nodes)} probes, "
            f"{self.nodes.shape[1]} steps)",
            f"  largest    {largest:.4g}",
        ]
        if largest > 0:
            for decades in (1, 2, 4):
                count, error = self.count(largest / 10**decades)
                lines.append(f"  above 1e-{decades} of it  {count:.4g} ± {error:.2g}")
        if self.negative:
            lines.append(f"  warning    about {self.negative:.2g} eigenvalues are negative")
        return "\n".join(lines)


def spectral_density(
    K: KernelOrOperator, *, steps: int = 64, probes: int = 10, seed: int = 0
) -> SpectralDensity:
    """Estimate how the eigenvalues of a kernel are distributed, from products with vectors only.

    Stochastic Lanczos quadrature (Golub & Welsch 1969; Ubaru, Chen & Saad 2017), with the Lanczos
    iteration of curvlinops (Papyan 2020, algorithm 2). It takes steps * probes products. Nothing is
    orthogonalised again, so that memory stays at a few vectors; eigenvalues that converge then
    appear several times among the nodes and share their weight, which sums do not see.

    Args:
        K: a kernel matrix or operator, as for `top_spectrum`.
        steps: Lanczos steps for each probe: the number of nodes. The resolution grows with it.
        probes: random Gaussian vectors; errors fall like 1 / sqrt(N * probes).
        seed: of the probes. The global random state is put back as it was.

    Raises:
        InvalidInput: a bad kernel or operator, or numbers that are not positive.
        MissingDependency: curvlinops is not installed.
    """
    for name, value in (("steps", steps), ("probes", probes)):
        if value < 1:
            raise InvalidInput(f"{name} is {value}, but must be positive.")
    kernel = products(K)
    operator = _TorchProducts(kernel)
    with _seeded(seed):
        rules = [_rule(operator, min(steps, kernel.size)) for _ in range(probes)]
    longest = max(len(nodes) for nodes, _ in rules)
    nodes = torch.stack([_padded(nodes, longest, float(nodes[-1])) for nodes, _ in rules])
    weights = torch.stack([_padded(weights, longest, 0.0) for _, weights in rules])
    rounding = kernel.size * torch.finfo(torch.float64).eps + 10 * kernel.rounding
    return SpectralDensity(
        nodes=nodes,
        weights=weights * kernel.size,
        size=kernel.size,
        floor=rounding * float(nodes.abs().max()),
    )


class _TorchProducts:
    """What curvlinops' Lanczos iteration asks of an operator."""

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, kernel: Products) -> None:
        self.shape = (kernel.size, kernel.size)
        self._multiply = kernel.multiply

    def __matmul__(self, vector: Tensor) -> Tensor:
        return torch.from_numpy(self._multiply(vector.numpy()[:, None])[:, 0].copy())


def _rule(operator: _TorchProducts, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (summing to one) from one probe, up to `steps` of each.

    Where the Krylov space ends exactly (a multiple of the identity, a handful of distinct
    eigenvalues), the iteration divides by zero; fewer steps are then exact.
    """
    lanczos = _lanczos()
    while True:
        try:
            nodes, vectors = lanczos(operator, steps)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            nodes = torch.full((1,), math.nan)
        if bool(torch.isfinite(nodes).all()):
            return nodes, vectors[0].square()
        if steps == 1:
            raise InvalidInput("K gives NaN or infinity in a product.")
        steps = steps // 2


def _lanczos() -> Callable[[_TorchProducts, int], tuple[Tensor, Tensor]]:
    try:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos
    except ImportError as error:
        raise MissingDependency.for_extra("curvlinops", "curvature") from error
    found: Callable[[_TorchProducts, int], tuple[Tensor, Tensor]] = fast_lanczos
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """curvlinops draws from torch's global generator on the CPU: seed it, then put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _padded(values: Tensor, length: int, value: float) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), value)])
