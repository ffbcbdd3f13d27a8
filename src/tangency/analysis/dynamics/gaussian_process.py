"""Bayesian inference with a kernel as the prior: the NNGP posterior, and the NTK as a prior.

Infinitely wide networks at initialisation are a Gaussian process with the NNGP kernel; conditioned
on the targets it is the Bayesian posterior of the network (Neal 1994; Lee et al. 2018). With the
NTK in its place ("NTK-GP") the mean is that of kernel regression with the NTK, but the covariance
belongs to no ensemble of trained networks (Lee et al. 2019, section 2.3; He, Lakshminarayanan &
Teh 2020 construct one).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tangency.analysis.dynamics.distribution import Moment, RandomOutputs
from tangency.analysis.dynamics.gradient import GradientFlow
from tangency.analysis.matrix import ArrayLike, Kernel, Lazy, cross_matrix, kernel_matrix
from tangency.analysis.numbers import check_ridge
from tangency.errors import InvalidInput, SingularKernel

__all__ = ["GaussianProcess"]


class GaussianProcess:
    """A Gaussian process with a kernel as prior covariance, conditioned on targets.

    mean         K_* (K + noise)^-1 y
    covariance   K_** - K_* (K + noise)^-1 K_*^T      (Rasmussen & Williams 2006, eqs. 2.25, 2.26)

    Args:
        K_train: (n, n), the same for all (independent) outputs, or (n, n, out, out).
        y_train: (n,) or (n, out), real.
        noise: variance of the noise of the targets.

    Raises:
        InvalidInput: as `LinearizedTraining`, or a negative noise.
        SingularKernel: without noise, the targets contradict each other (duplicated examples
            with different targets): their probability is zero.
    """

    def __init__(self, K_train: Kernel, y_train: ArrayLike, noise: float = 0.0) -> None:
        check_ridge(noise, "noise")
        self.noise = float(noise)
        # The posterior mean is where ridge regression ends.
        self._regression = GradientFlow(K_train, y_train, ridge=self.noise)
        self._kernel = self._regression.kernel
        forever = torch.full((1,), math.inf, dtype=torch.float64)
        self._filter = self._regression.filters(forever.to(self._kernel.matrix.device))[0]
        self._check_consistent()

    def predict(
        self,
        K_test_train: ArrayLike | Lazy | None = None,
        K_test: Kernel | None = None,
        *,
        moment: Moment = "covariance",
    ) -> RandomOutputs:
        """Posterior of the function, without noise, on the test or on the training examples.

        `.with_noise(gp.noise)` of the result is the distribution of new observations.

        Args:
            K_test_train: (m, n) or (m, n, out, out); the training examples unless given.
            K_test: (m, m) or (m, m, out, out), given with `K_test_train`.
            moment: "covariance", or "variance" where all covariances would not fit into memory.

        Raises:
            InvalidInput: one of the kernels without the other, or shapes that do not fit.
            SingularKernel: without noise, targets and test kernel meet in the null space of the
                training kernel.
        """
        if moment not in ("covariance", "variance"):
            raise InvalidInput(f"moment is {moment!r}, but must be 'covariance' or 'variance'.")
        if (K_test_train is None) != (K_test is None):
            raise InvalidInput("the posterior on test examples needs K_test_train and K_test.")
        mean = self._regression.predict(math.inf, K_test_train)
        if K_test_train is None or K_test is None:
            return self._outputs(mean.train, self._on_training(moment))
        assert mean.test is not None
        reach = cross_matrix(K_test_train, self._kernel) @ self._kernel.eigensystem.vectors
        own = kernel_matrix(K_test, "K_test")
        if own.outputs != self._kernel.outputs or len(own.matrix) != len(reach):
            raise InvalidInput(f"K_test has shape {own.shape}, which does not fit K_test_train.")
        prior, answer = own.matrix.to(reach.device), reach * self._filter
        if moment == "variance":
            return self._outputs(mean.test, prior.diagonal() - (answer * reach).sum(dim=1))
        return self._outputs(mean.test, prior - answer @ reach.mT)

    def log_marginal_likelihood(self) -> Tensor:
        """Log probability density of the targets, summed over outputs: ().

        The function `log_marginal_likelihood` of the same kernel, targets and noise lets gradients
        through; this one costs nothing beyond the eigendecomposition.

        Raises:
            SingularKernel: K + noise is singular.
        """
        if bool((self._filter == 0).any()):
            raise SingularKernel("K is singular: the density needs a noise above zero.")
        projections = self._regression.projections()
        quadratic = (self._filter[:, None] * projections.square()).sum()
        size, count = projections.shape
        log_determinant = -self._filter.log().sum()
        total = quadratic + count * (log_determinant + size * math.log(2 * math.pi))
        return self._kernel.result(-total / 2)

    def to_dict(self) -> dict[str, Any]:
        """What the process is conditioned on: sizes, noise and eigenvalues of the prior."""
        return {
            "kind": type(self).__name__,
            "noise": self.noise,
            "examples": self._kernel.examples,
            "outputs": self._regression.outputs,
            "eigenvalues": self._kernel.result(self._kernel.eigensystem.values),
        }

    def __repr__(self) -> str:
        return (
            f"GaussianProcess({self._kernel.examples} examples, {self._regression.outputs} "
            f"outputs, noise={self.noise:g})"
        )

    def _on_training(self, moment: Moment) -> Tensor:
        vectors = self._kernel.eigensystem.vectors
        values = self._kernel.eigensystem.values.clamp(min=0)
        # l - l^2 / (l + noise), without the cancellation.
        left = self.noise * values * self._filter
        if moment == "variance":
            return vectors.square() @ left
        return (vectors * left) @ vectors.mT

    def _outputs(self, mean: Tensor, spread: Tensor) -> RandomOutputs:
        """Outputs with covariance (M, M) or variances (M,)."""
        full, out = spread.dim() == 2, self._kernel.outputs
        variance = (spread.diagonal() if full else spread).clamp(min=0)
        if out is not None:
            variance = variance.reshape(mean.shape)
        elif mean.dim() > 1:
            variance = variance[:, None].expand(mean.shape)
        covariance = None
        if full and out is not None:
            m = len(spread) // out
            covariance = self._kernel.result(spread.reshape(m, out, m, out).transpose(1, 2))
        elif full:
            covariance = self._kernel.result(spread)
        return RandomOutputs(mean, self._kernel.result(variance), covariance)

    def _check_consistent(self) -> None:
        power = self._regression.projections().square().sum(dim=1)
        limit = self._kernel.eigensystem.null_power_limit(float(power.sum()))
        contradictory = (self._filter == 0) & (power > limit)
        if bool(contradictory.any()):
            raise SingularKernel(
                "without noise the targets have probability zero: K_train is singular, and they "
                f"have a part in {int(contradictory.sum())} of its null modes (duplicated examples "
                "with different targets?). Pass a noise above zero."
            )
