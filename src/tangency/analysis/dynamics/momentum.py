"""Momentum: heavy ball and Nesterov, as `torch.optim.SGD` takes them, and their smooth limit.

In a mode of stiffness s, with step x = learning_rate s / n and momentum b, the error obeys a
recursion over two steps, whose characteristic polynomial is

    heavy ball   z^2 - (1 + b - x) z + b                  (Polyak 1964)
    Nesterov     z^2 - (1 + b) (1 - x) z + b (1 - x)      (Nesterov 1983; Sutskever et al. 2013)

Both roots lie in the unit circle while x < 2 (1 + b) for the heavy ball, and while
x < 2 (1 + b) / (1 + 2 b) for Nesterov (the root -1 is met there; Jury's conditions).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from tangency.analysis.dynamics.descent import Descent
from tangency.analysis.dynamics.recursion import affine_steps, linear_steps
from tangency.analysis.dynamics.training import OVERFLOW, LinearizedTraining
from tangency.analysis.matrix import ArrayLike, Kernel
from tangency.errors import InvalidInput

__all__ = ["HeavyBall", "MomentumFlow", "Nesterov"]


class _WithMomentum(LinearizedTraining):
    """Training with momentum, in [0, 1)."""

    def __init__(
        self,
        K_train: Kernel,
        y_train: ArrayLike,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
        *,
        momentum: float = 0.9,
    ) -> None:
        if not 0 <= momentum < 1:
            raise InvalidInput(f"momentum is {momentum}, but must lie in [0, 1).")
        self.momentum = float(momentum)
        super().__init__(K_train, y_train, learning_rate, ridge)

    def _settings(self) -> str:
        return f", momentum={self.momentum:g}"


class _Momentum(_WithMomentum, Descent):
    """Descent with momentum; subclasses say by which recursion."""

    @abstractmethod
    def _recursion(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """P (N, 2, 2) and c (2,) of (phi, velocity) <- (I + P) (phi, velocity) + rate c."""

    @abstractmethod
    def _characteristic(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trace, determinant and discriminant of I + P, the last without cancellation."""

    def _factors(self, step: Tensor) -> Tensor:
        trace, determinant, discriminant = self._characteristic(step)
        real = (trace.abs() + discriminant.clamp(min=0).sqrt()) / 2
        return torch.where(discriminant < 0, determinant.clamp(min=0).sqrt(), real)

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate = self.learning_rate / self._kernel.examples
        change, constant = self._recursion(rate * stiffness)
        phi = affine_steps(change, rate * constant.expand(len(stiffness), 2), times)
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        gone = self._overflown(stiffness, times)
        return torch.where(gone, (1 - self._sign(times) * OVERFLOW) / positive, phi)

    def _remaining(self, stiffness: Tensor, times: Tensor) -> Tensor:
        change, _ = self._recursion(self.learning_rate / self._kernel.examples * stiffness)
        matrix = change + torch.eye(2, dtype=change.dtype, device=change.device)
        remaining = linear_steps(matrix, times)
        # The other way has the digits of slow modes, this one those of small remainders.
        slow = 1 - stiffness * self._filter(stiffness, times)
        return torch.where(remaining.abs() * times < 1, remaining, slow)

    def _overflown(self, stiffness: Tensor, times: Tensor) -> Tensor:
        """Where a mode has grown beyond all bounds."""
        factors = self._factors(self.learning_rate / self._kernel.examples * stiffness)
        return times * factors.log() > math.log(OVERFLOW)

    @staticmethod
    def _sign(times: Tensor) -> Tensor:
        """Of a mode that diverges: its root is real and below -1."""
        return torch.where(times % 2 == 1, -1.0, 1.0).to(times.dtype)


class HeavyBall(_Momentum):
    """Full-batch descent with heavy-ball momentum (Polyak 1964), from zero velocity.

    Matches `torch.optim.SGD(lr=learning_rate, momentum=momentum)` step for step, for a model that
    is linear in its parameters: velocity <- momentum velocity + gradient, theta <- theta -
    learning_rate velocity. The ridge is part of the gradient. Times are whole numbers of steps.
    With a small learning rate, momentum b trains as fast as gradient descent with
    learning_rate / (1 - b).

    Arguments and errors are those of `LinearizedTraining`, and a momentum in [0, 1).
    """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which training turns unstable.

        2 (1 + momentum) n / (lambda_max + ridge); infinite for a kernel of zeros without ridge.
        """
        return self._rate_for(2 * (1 + self.momentum))

    def _recursion(self, step: Tensor) -> tuple[Tensor, Tensor]:
        b = self.momentum
        own = torch.full_like(step, b)
        rows = (torch.stack([-step, own], -1), torch.stack([-step, own - 1], -1))
        return torch.stack(rows, -2), step.new_ones(2)

    def _characteristic(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = self.momentum
        root = math.sqrt(b)
        discriminant = ((1 - root) ** 2 - step) * ((1 + root) ** 2 - step)
        return 1 + b - step, torch.full_like(step, b), discriminant


class Nesterov(_Momentum):
    """Full-batch descent with Nesterov's momentum, from zero velocity.

    Matches `torch.optim.SGD(lr=learning_rate, momentum=momentum, nesterov=True)` step for step,
    for a model that is linear in its parameters: velocity <- momentum velocity + gradient, theta
    <- theta - learning_rate (gradient + momentum velocity) (Sutskever et al. 2013, in the form of
    Bengio et al. 2013). The ridge is part of the gradient. Times are whole numbers of steps.

    Arguments and errors are those of `HeavyBall`.
    """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which training turns unstable.

        2 (1 + momentum) / (1 + 2 momentum) n / (lambda_max + ridge): smaller than without
        momentum. Infinite for a kernel of zeros without ridge.
        """
        return self._rate_for(2 * (1 + self.momentum) / (1 + 2 * self.momentum))

    def _recursion(self, step: Tensor) -> tuple[Tensor, Tensor]:
        b = self.momentum
        own = torch.full_like(step, b)
        rows = (torch.stack([-(1 + b) * step, b * own], -1), torch.stack([-step, own - 1], -1))
        return torch.stack(rows, -2), step.new_tensor([1 + b, 1.0])

    def _characteristic(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = self.momentum
        discriminant = (1 - step) * ((1 - b) ** 2 - (1 + b) ** 2 * step)
        return (1 + b) * (1 - step), b * (1 - step), discriminant


class MomentumFlow(_WithMomentum):
    """The smooth limit of momentum: a damped oscillator in every mode.

    theta'' + (1 - momentum) theta' + learning_rate grad L = 0, from rest, with one step of
    `torch.optim.SGD(lr=learning_rate, momentum=momentum)` as the unit of time. It is what heavy
    ball and Nesterov come to when learning_rate and (1 - momentum)^2 go to zero together
    (Qian 1999; Su, Boyd & Candes 2014 for the Nesterov sequence); at a fixed momentum and small
    learning rates that is gradient flow with learning_rate / (1 - momentum).

    Arguments and errors are those of `HeavyBall`; times are real numbers.
    """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which heavy ball turns unstable; the flow itself is always stable."""
        return self._rate_for(2 * (1 + self.momentum))

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate, damping = self.learning_rate / self._kernel.examples, 1 - self.momentum
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        learned = _oscillator(rate * positive, damping, times)[1] / positive
        free = rate * (times + torch.expm1(-damping * times) / damping) / damping
        return torch.where(stiffness > 0, learned, free)

    def _remaining(self, stiffness: Tensor, times: Tensor) -> Tensor:
        step = self.learning_rate / self._kernel.examples * stiffness
        return _oscillator(step, 1 - self.momentum, times)[0]

    def _factors(self, step: Tensor) -> Tensor:
        damping = 1 - self.momentum
        real = (damping**2 - 4 * step).clamp(min=0).sqrt()
        # The slower root; -2 x / (damping + root) keeps the digits of small steps.
        return torch.exp(
            torch.where(4 * step > damping**2, -damping / 2, -2 * step / (damping + real))
        )


def _oscillator(step: Tensor, damping: float, times: Tensor) -> tuple[Tensor, Tensor]:
    """e and 1 - e, where e'' + damping e' + step e = 0, e(0) = 1, e'(0) = 0; (T, N) both."""
    gap = damping**2 - 4 * step
    width = gap.abs().sqrt()
    # Over-damped: two real rates.
    slow, fast = -2 * step / (damping + width), -(damping + width) / 2
    split = torch.where(gap > 0, width, 1.0)
    over = (slow * torch.exp(fast * times) - fast * torch.exp(slow * times)) / split
    over_learned = (fast * torch.expm1(slow * times) - slow * torch.expm1(fast * times)) / split
    # Under-damped, and near the double root, where sin(w t) / w stays finite.
    half = width / 2
    envelope = torch.exp(-damping * times / 2)
    swing = damping / 2 * times * torch.sinc(half * times / math.pi)
    under = envelope * (torch.cos(half * times) + swing)
    ups = 2 * torch.sin(half * times / 2).square() - swing
    under_learned = -torch.expm1(-damping * times / 2) + envelope * ups
    # Where the two rates come close, exp is expanded about the double root instead.
    double = (gap > 0) & (width * times < 1e-3) & (width < 1e-3 * damping)
    near = half * times
    stretch = 1 + near.square() / 6
    at_double = envelope * (1 + near.square() / 2 + damping / 2 * times * stretch)
    e = torch.where(gap > 0, torch.where(double, at_double, over), under)
    learned = torch.where(gap > 0, torch.where(double, 1 - at_double, over_learned), under_learned)
    return e, learned
