"""Random outputs: their mean and covariance, over initialisations, batches or a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.matrix import ArrayLike
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Distribution", "Moment", "RandomOutputs"]

Moment: TypeAlias = Literal["covariance", "variance"]
"""What is asked for beside the mean: all covariances, or those of every example with itself."""

DRAWN = 5
"""Examples whose course a figure shows."""


@dataclass(frozen=True, eq=False, repr=False)
class RandomOutputs:
    """Mean and covariance of the outputs on m examples; Gaussian unless said otherwise.

    Attributes:
        mean: (m, out), or (m,) if the targets were; with a leading T for many times.
        variance: of every output, shaped as `mean`.
        covariance: (m, m), that of every output, outputs being independent; or (m, m, out, out);
            with a leading T for many times. None if only variances were asked for.
        times: (T,) of the leading dimension; None without one.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor | None = None
    times: Tensor | None = None

    @property
    def std(self) -> Tensor:
        """Standard deviation of every output, shaped as `mean`."""
        return self.variance.clamp(min=0).sqrt()

    def with_noise(self, noise: float) -> RandomOutputs:
        """The distribution of observations: independent noise of variance `noise` added.

        Raises:
            InvalidInput: a negative variance.
        """
        if not noise >= 0:
            raise InvalidInput(f"noise is {noise}, but a variance is zero or positive.")
        covariance = self.covariance
        if covariance is not None:
            m = self._examples
            eye = torch.eye(m, dtype=covariance.dtype, device=covariance.device)
            if self._is_full:
                own = torch.eye(covariance.shape[-1], dtype=eye.dtype, device=eye.device)
                eye = eye[:, :, None, None] * own
            covariance = covariance + noise * eye
        return RandomOutputs(self.mean, self.variance + noise, covariance, self.times)

    def sample(self, count: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the outputs on all m examples together: (count, *mean.shape).

        Gaussian, by a symmetric square root in float64, in which the tiny negative eigenvalues of
        rounding count as zero. Draws at different times are independent of each other.

        Args:
            count: number of draws.
            generator: of the randomness; the global one unless given.

        Raises:
            InvalidInput: the covariance was not asked for, or is not positive semi-definite by
                more than rounding.
        """
        if self.covariance is None:
            raise InvalidInput("samples need the covariance, and only variances were asked for.")
        mean = self.mean.double()
        batch = () if self.times is None else (len(self.times),)
        m = self._examples
        if self._is_full:
            out = self.covariance.shape[-1]
            matrix = self.covariance.double().transpose(-3, -2).reshape(*batch, m * out, m * out)
            columns = mean.reshape(*batch, m * out, 1)
        else:
            matrix, columns = self.covariance.double(), mean.reshape(*batch, m, -1)
        root = _root(matrix, torch.finfo(self.covariance.dtype).eps)
        where = "cpu" if generator is None else generator.device
        noise = torch.randn(
            count, *columns.shape, dtype=torch.float64, generator=generator, device=where
        ).to(mean.device)
        return (columns + root @ noise).reshape(count, *mean.shape).to(self.mean.dtype)

    def figure(self, x: ArrayLike | None = None) -> Figure:
        """Mean and twice the standard deviation: over time, or along `x` (m,) at one time.

        Without `x` examples stand side by side in their order. The first output is drawn.

        Raises:
            InvalidInput: `x` does not have m numbers.
            MissingDependency: Plotly is not installed.
        """
        if self.times is not None:
            return self._over_time()
        mean, std = self._first(self.mean), self._first(self.std)
        where = torch.arange(len(mean)) if x is None else torch.as_tensor(x).reshape(-1)
        if len(where) != len(mean):
            raise InvalidInput(f"x has {len(where)} entries, but there are {len(mean)} examples.")
        order = where.argsort()
        figure = drawing.new_figure("Predictive distribution", "example" if x is None else "x", "f")
        where, mean, std = where[order], mean[order], std[order]
        drawing.band(figure, where, mean - 2 * std, mean + 2 * std, "±2 std", drawing.INFINITE)
        drawing.line(figure, where, mean, "mean", drawing.INFINITE)
        return figure

    def _over_time(self) -> Figure:
        assert self.times is not None
        figure = drawing.new_figure("Predictive distribution over time", "time (steps)", "output")
        mean, std = self._first(self.mean), self._first(self.std)
        for example, colour in zip(range(min(DRAWN, mean.shape[1])), drawing.PALETTE, strict=False):
            name, middle, width = f"example {example}", mean[:, example], 2 * std[:, example]
            drawing.band(
                figure, self.times, middle - width, middle + width, name, colour, legend=False
            )
            drawing.line(figure, self.times, middle, name, colour)
        return figure

    @property
    def _examples(self) -> int:
        return int(self.mean.shape[0 if self.times is None else 1])

    @property
    def _is_full(self) -> bool:
        """Whether the covariance is (m, m, out, out)."""
        return self.covariance is not None and self.covariance.dim() >= 4

    def _first(self, values: Tensor) -> Tensor:
        """Of the first output: (m,) or (T, m)."""
        lead = 1 if self.times is None else 2
        return values if values.dim() == lead else values[..., 0]

    def to_dict(self) -> dict[str, Tensor | None]:
        """The attributes by name."""
        return {
            "mean": self.mean,
            "variance": self.variance,
            "covariance": self.covariance,
            "times": self.times,
        }

    def __repr__(self) -> str:
        what = "variances" if self.covariance is None else "covariance"
        return (
            f"RandomOutputs(mean {tuple(self.mean.shape)} and {what}; "
            f"std {float(self.std.min()):.3g} to {float(self.std.max()):.3g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Distribution:
    """Random outputs during training.

    Attributes:
        times: () or (T,), float64: the times (numbers of steps) asked for.
        train: outputs on the training set.
        test: outputs on the m test examples; None without test kernels.
    """

    times: Tensor
    train: RandomOutputs
    test: RandomOutputs | None = None

    def to_dict(self) -> dict[str, Tensor | dict[str, Tensor | None] | None]:
        """The attributes by name."""
        test = None if self.test is None else self.test.to_dict()
        return {"times": self.times, "train": self.train.to_dict(), "test": test}

    def figure(self, x: ArrayLike | None = None) -> Figure:
        """Mean and twice the standard deviation on the test examples, if any, else on training.

        Raises:
            InvalidInput: `x` does not fit.
            MissingDependency: Plotly is not installed.
        """
        return (self.test or self.train).figure(x)

    def __repr__(self) -> str:
        when = f"{len(self.times)} times" if self.times.dim() else f"time {float(self.times):g}"
        test = "" if self.test is None else f", test {tuple(self.test.mean.shape)}"
        return f"Distribution(at {when}: train {tuple(self.train.mean.shape)}{test})"


def _root(matrix: Tensor, rounding: float) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    largest, smallest = float(values.abs().max()), float(values.min())
    if smallest < -max(1e-8, 100 * rounding * matrix.shape[-1]) * largest:
        raise InvalidInput(
            f"the covariance is not positive semi-definite: eigenvalue {smallest:.3g} beside "
            f"{largest:.3g}. Are the kernels of the same model, and in float64?"
        )
    root: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    return root
