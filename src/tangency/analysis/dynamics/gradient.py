"""Gradient flow and gradient descent, without momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.analysis.dynamics.descent import Descent
from tangency.analysis.dynamics.training import LinearizedTraining

__all__ = ["GradientDescent", "GradientFlow"]


class GradientFlow(LinearizedTraining):
    """Gradient flow of the linearised network: training with infinitely small steps.

    Without ridge, f(t) = y + exp(-learning_rate K t / n) (f_0 - y) on the training set.
    See `LinearizedTraining` for arguments and errors.
    """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which gradient descent turns unstable: 2 n / (lambda_max + ridge).

        Gradient flow is stable at every rate; there it says how far its Euler steps can follow.
        Infinite for a kernel of zeros without ridge.
        """
        return self._rate_for(2.0)

    @property
    def is_monotone(self) -> bool:
        return True

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate = self.learning_rate / self._kernel.examples
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        learned = -torch.expm1(-rate * positive * times) / positive
        return torch.where(stiffness > 0, learned, rate * times)

    def _remaining(self, stiffness: Tensor, times: Tensor) -> Tensor:
        return torch.exp(-self.learning_rate / self._kernel.examples * stiffness * times)

    def _factors(self, step: Tensor) -> Tensor:
        return torch.exp(-step)


class GradientDescent(Descent):
    """Full-batch gradient descent of the linearised network with a finite step.

    Matches `torch.optim.SGD(lr=learning_rate)` on the same loss step for step, for a model that
    is linear in its parameters. Times are whole numbers of steps. At or above
    `max_learning_rate` finite numbers of steps are predicted all the same (they grow, to about
    1e140, which is infinity in float32); the limit is refused.
    See `LinearizedTraining` for arguments and further errors.
    """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which gradient descent turns unstable: 2 n / (lambda_max + ridge).

        Infinite for a kernel of zeros without ridge.
        """
        return self._rate_for(2.0)

    @property
    def is_monotone(self) -> bool:
        # With a ridge the loss, without its ridge term, can rise again where steps overshoot.
        largest = float(self._steps_per_mode().max())
        return largest <= (1.0 if self.ridge else 2.0)

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate = self.learning_rate / self._kernel.examples
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        exponent, flips = self._powers(rate * positive, times)
        learned = torch.where(flips, 1 + exponent.exp(), -exponent.expm1()) / positive
        return torch.where(stiffness > 0, learned, rate * times)

    def _remaining(self, stiffness: Tensor, times: Tensor) -> Tensor:
        exponent, flips = self._powers(
            self.learning_rate / self._kernel.examples * stiffness, times
        )
        return torch.where(flips, -exponent.exp(), exponent.exp())

    def _factors(self, step: Tensor) -> Tensor:
        return (1 - step).abs()

    @staticmethod
    def _powers(step: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - step)^times as the logarithm of its size, and whether it is negative."""
        # log |1 - step| with all its digits for small steps; at step = 1, zero steps must give 0.
        log_factor = torch.where(step <= 1, torch.log1p(-step), torch.log(step - 1))
        exponent = torch.where(times > 0, times * log_factor, 0.0)
        return exponent, (step > 1) & (times % 2 == 1)
