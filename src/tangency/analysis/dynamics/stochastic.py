"""Mini-batch SGD of the linearised network: mean and noise covariance, by an exact recursion.

A step takes b examples, drawn anew with equal chances and independently of all other steps:

    alpha <- alpha - (eta / b) S (K alpha - (y - f_0)) - (eta ridge / n) alpha,

S the diagonal matrix that counts how often each example was drawn. E S = b / n, so the mean is
that of gradient descent. The covariance C of alpha obeys, with A = 1 - (eta / n) (K + ridge) and
M = E e e^T the second moment of the error e = f - y on the training set (f = f_0 + K alpha),

    C <- A C A^T + (eta^2 / b^2) kappa [Diag(M) - M / n]
    kappa = b / n                        with replacement
            b (n - b) / (n (n - 1))      without replacement within the batch,

Diag keeping the blocks of an example with itself. It is exact, since E S M S needs the probability
of two examples meeting in a batch only; the step size need not be small, and the noise fades as the
error does, unlike in the Ornstein-Uhlenbeck approximation with constant noise (Mandt, Hoffman &
Blei 2017). Batches of one shuffled epoch are not independent (no example comes twice): they are
outside this model, with another mean and less noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency.analysis.dynamics.distribution import Distribution, Moment, RandomOutputs
from tangency.analysis.dynamics.gradient import GradientDescent
from tangency.analysis.dynamics.memory import check_covariances
from tangency.analysis.dynamics.times import Moments, Times
from tangency.analysis.matrix import ArrayLike, Kernel, Lazy, cross_matrix
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["StochasticGradientDescent"]

ITERATIONS = 500
"""Most power iterations for the largest stable rate."""


class StochasticGradientDescent:
    """Mini-batch SGD of the linearised network: its mean and the covariance of its noise.

    Exact for batches that are drawn independently at every step (see the module). The mean is that
    of `GradientDescent`. A step of the covariance costs two products of (n, n) matrices for each
    output, or pair of outputs; the outputs are not Gaussian after few steps.

    Args:
        K_train: (n, n), acting on every output alike, or (n, n, out, out); tensor or array.
        y_train: (n,) or (n, out), real.
        learning_rate: positive.
        batch_size: examples of a step, 1 to n (any number with replacement).
        replacement: whether an example may be drawn twice into one batch.
        ridge: weight decay towards the initial parameters, in units of kernel eigenvalues,
            `weight_decay` = ridge / n of the optimizer.

    Raises:
        InvalidInput: as `GradientDescent`, or a batch size out of range.
    """

    def __init__(
        self,
        K_train: Kernel,
        y_train: ArrayLike,
        learning_rate: float,
        batch_size: int,
        *,
        replacement: bool = False,
        ridge: float = 0.0,
    ) -> None:
        self._descent = GradientDescent(K_train, y_train, learning_rate, ridge)
        self._kernel = self._descent.kernel
        n = self._kernel.examples
        if batch_size < 1 or (batch_size > n and not replacement):
            raise InvalidInput(
                f"batch_size is {batch_size}, but of {n} examples it must be 1 to {n} "
                "(more only with replacement)."
            )
        self.batch_size, self.replacement = int(batch_size), bool(replacement)

    @property
    def learning_rate(self) -> float:
        """Learning rate."""
        return self._descent.learning_rate

    @property
    def ridge(self) -> float:
        """Weight decay towards the initial parameters."""
        return self._descent.ridge

    @property
    def max_learning_rate(self) -> float:
        """Learning rate above which the noise grows without bound (mean-square stability).

        The covariance maps by C <- C - eta L(C) + eta^2 Q(C), linearly, and is stable while
        eta < 1 / spectral radius of L^-1 Q (Mulayoff & Michaeli 2024, of whose threshold this is
        the case of the linearised network). At most that of `GradientDescent`, which it is for the
        whole set as batch. Power iteration, to six digits. Infinite for a kernel of zeros.
        """
        stiffness = self._descent.stiffness
        alive = stiffness > 0
        if not bool(alive.any()):
            return float("inf")
        n = self._kernel.examples
        sums = (stiffness[:, None] + stiffness) / n
        sums = torch.where(alive[:, None] & alive, sums, torch.inf)
        products = stiffness[:, None] * stiffness / n**2
        state, radius = torch.diag(alive.to(stiffness.dtype)), 0.0
        for _ in range(ITERATIONS):
            state = (products * state + self._noise(self._error_covariance(state))) / sums
            before, radius = radius, float(state.norm())
            state = state / radius
            if abs(radius - before) <= 1e-8 * radius:
                break
        return 1 / radius

    def predict(
        self,
        times: Times,
        K_test_train: ArrayLike | Lazy | None = None,
        f0_train: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
        *,
        moment: Moment = "covariance",
    ) -> Distribution:
        """Mean and covariance of the outputs after the number(s) of steps `times`, over batches.

        Args:
            times: one number of steps, or many in one dimension, finite.
            K_test_train: (m, n) or (m, n, out, out), as the training kernel.
            f0_train: initial outputs, shaped as `y_train`; zero unless given.
            f0_test: initial outputs on the m test examples; given if `f0_train` is.
            moment: "covariance", for several outputs (m, m, out, out), or "variance", which is
                cheaper for them.

        Raises:
            InvalidInput: as `GradientDescent.predict`, or an infinite number of steps.
        """
        when = self._checked(times)
        vectors = self._kernel.eigensystem.vectors
        reaches = [self._kernel.matrix @ vectors]
        if K_test_train is not None:
            reaches.append(cross_matrix(K_test_train, self._kernel) @ vectors)
        columns = self._kernel.flatten(torch.zeros(1, self._descent.outputs)).shape[1]
        pairs = [(a, b) for a in range(columns) for b in range(columns)]
        if moment == "variance":
            pairs = [(a, a) for a in range(columns)]
        else:
            rows = max(len(reach) for reach in reaches)
            check_covariances(len(when.values) * len(pairs), rows)
        mean = self._descent.predict(times, K_test_train, f0_train, f0_test)
        spreads = self._spreads(when, pairs, reaches, f0_train, moment)
        means = [mean.train] + ([] if mean.test is None else [mean.test])
        outputs = [
            self._outputs(m, spread, when, moment) for m, spread in zip(means, spreads, strict=True)
        ]
        return Distribution(when.given, outputs[0], outputs[1] if len(outputs) > 1 else None)

    def loss(self, times: Times, f0_train: ArrayLike | None = None) -> Tensor:
        """Mean over batches of the training loss, without the ridge term: () or (T,).

        Arguments and errors as in `predict`.
        """
        found = self.predict(times, f0_train=f0_train, moment="variance")
        variance = found.train.variance.double()
        spread = variance.reshape(*found.times.shape, -1).sum(dim=-1)
        of_mean = self._descent.loss(times, f0_train).double()
        return self._kernel.result(of_mean + spread / (2 * self._kernel.examples))

    def figure(self, times: Times, f0_train: ArrayLike | None = None) -> Figure:
        """Mean and twice the standard deviation of some training outputs, over time.

        Raises:
            InvalidInput: as `predict`.
            MissingDependency: Plotly is not installed.
        """
        return self.predict(times, f0_train=f0_train, moment="variance").figure()

    def to_dict(self) -> dict[str, Any]:
        """Settings and the largest stable learning rate."""
        return {
            **self._descent.to_dict(),
            "kind": type(self).__name__,
            "batch_size": self.batch_size,
            "replacement": self.replacement,
            "max_learning_rate": self.max_learning_rate,
        }

    def __repr__(self) -> str:
        drawn = "with" if self.replacement else "without"
        return (
            f"StochasticGradientDescent({self._kernel.examples} examples, {self._descent.outputs} "
            f"outputs, learning_rate={self.learning_rate:g}, batches of {self.batch_size} {drawn} "
            "replacement)"
        )

    def _checked(self, times: Times) -> Moments:
        when = self._descent.checked(times)
        if bool(torch.isinf(when.values).any()):
            raise InvalidInput("mini-batch SGD is followed step by step: take a finite number.")
        return when

    def _spreads(
        self,
        when: Moments,
        pairs: list[tuple[int, int]],
        reaches: list[Tensor],
        f0_train: ArrayLike | None,
        moment: Moment,
    ) -> list[Tensor]:
        """For each reach R (M, N): R C R^T of every pair, (T, P, M, M), or its diagonal."""
        first = torch.tensor([a for a, _ in pairs])
        second = torch.tensor([b for _, b in pairs])
        steps = sorted({int(step) for step in when.values.tolist()})
        projections = self._descent.projections(f0_train)
        size = len(projections)
        factors = self._factors()
        state = projections.new_zeros(len(pairs), size, size)
        kept: dict[int, list[Tensor]] = {}
        for step in range(steps[-1] + 1):
            if step in steps:
                kept[step] = [_seen(reach, state, moment) for reach in reaches]
            at = torch.tensor([float(step)], dtype=torch.float64, device=state.device)
            error = self._descent.left(at)[0][:, None] * projections
            mean = error.mT[first][:, :, None] * error.mT[second][:, None, :]
            state = factors * state + self.learning_rate**2 * self._noise(
                mean + self._error_covariance(state)
            )
        times = [int(step) for step in when.values.tolist()]
        return [torch.stack([kept[t][i] for t in times]) for i in range(len(reaches))]

    def _factors(self) -> Tensor:
        """A C A^T entry by entry, in the eigenmodes."""
        decay = 1 - self.learning_rate / self._kernel.examples * self._descent.stiffness
        return decay[:, None] * decay

    def _error_covariance(self, state: Tensor) -> Tensor:
        """K C K in the eigenmodes."""
        values = self._descent.eigenvalues
        return values[:, None] * state * values

    def _noise(self, moments: Tensor) -> Tensor:
        """kappa / b^2 [Diag(M) - M / n] of second moments (..., N, N) in the eigenmodes."""
        n, b = self._kernel.examples, self.batch_size
        kappa = b / n if self.replacement else b * (n - b) / (n * max(n - 1, 1))
        vectors = self._kernel.eigensystem.vectors
        rows = vectors.reshape(n, -1, len(vectors))  # (example, output of the kernel, mode)
        turned = (vectors @ moments).reshape(*moments.shape[:-2], *rows.shape)
        blocks = turned @ rows.mT  # of every example with itself
        own = vectors.mT @ (blocks @ rows).reshape(moments.shape)
        return kappa / b**2 * (own - moments / n)

    def _outputs(
        self, mean: Tensor, spread: Tensor, when: Moments, moment: Moment
    ) -> RandomOutputs:
        """From (T, P, M, M), or (T, P, M)."""
        out = self._descent.outputs
        spread = when.pick(spread)
        covariance = None
        if moment == "variance":
            variance = spread.movedim(-2, -1).reshape(mean.shape)
        elif self._kernel.outputs is None:
            m = spread.shape[-1]
            blocks = spread.reshape(*spread.shape[:-3], out, out, m, m)
            covariance = blocks.movedim((-4, -3), (-2, -1))
        else:
            m = spread.shape[-1] // out
            covariance = spread[..., 0, :, :].reshape(*spread.shape[:-3], m, out, m, out)
            covariance = covariance.transpose(-3, -2)
        if covariance is not None:
            own = covariance.diagonal(dim1=-2, dim2=-1).diagonal(dim1=-3, dim2=-2)
            variance = own.mT.reshape(mean.shape)
            is_vector = mean.dim() == (1 if when.is_scalar else 2)
            covariance = covariance[..., 0, 0] if is_vector else covariance
        return RandomOutputs(
            mean,
            self._kernel.result(variance.clamp(min=0)),
            None if covariance is None else self._kernel.result(covariance),
            None if when.is_scalar else when.values,
        )


def _seen(reach: Tensor, state: Tensor, moment: Moment) -> Tensor:
    if moment == "variance":
        return ((reach @ state) * reach).sum(dim=-1)
    return reach @ state @ reach.mT
