"""Training in closed form: the linearised network under squared loss.

The loss is 1/(2n) sum_i |f(x_i) - y_i|^2 + ridge/(2n) |theta - theta_0|^2: mean over the n
examples, sum over outputs, one half. With f = f_0 + J (theta - theta_0) and K = J J^T, the
parameters stay at theta - theta_0 = J^T alpha, where, by gradient flow,

    d alpha / dt = -(learning_rate / n) [(K + ridge) alpha - (y - f_0)],   alpha(0) = 0,

and by gradient descent the same with a finite step. Outputs are f_0 + K alpha on the training set
and f_0 + K_test_train alpha elsewhere. In an eigenmode of K with eigenvalue l, s = l + ridge, alpha
is phi(s, t) times the projection of y - f_0 (Jacot, Gabriel & Hongler 2018, section 5; Lee et al.
2019, section 2.2), where

    gradient flow      phi = (1 - exp(-learning_rate s t / n)) / s
    gradient descent   phi = (1 - (1 - learning_rate s / n)^k) / s      after k steps
    limit              phi = 1 / s                                      kernel (ridge) regression
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tangency.analysis.matrix import (
    ArrayLike,
    Kernel,
    Targets,
    cross_matrix,
    kernel_matrix,
    targets,
)
from tangency.errors import InvalidInput, SingularKernel

__all__ = ["GradientDescent", "GradientFlow", "LinearizedTraining", "Prediction", "Times"]

Times: TypeAlias = float | Sequence[float] | Tensor | npt.NDArray[Any]
"""One time, or many in one dimension; infinity is the limit."""

OVERFLOW = 1e140
"""Where a diverging mode is held, so that no difference of infinities makes a NaN."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Predicted outputs of the linearised network.

    Attributes:
        times: () or (T,), float64: the times (numbers of steps) asked for.
        train: (n, out), with a leading T for many times; without `out` if the targets were (n,).
        test: the same over the m test examples; None without a test kernel.
    """

    times: Tensor
    train: Tensor
    test: Tensor | None = None

    def to_dict(self) -> dict[str, Tensor | None]:
        """The three attributes by name."""
        return {"times": self.times, "train": self.train, "test": self.test}

    def __repr__(self) -> str:
        when = f"{len(self.times)} times" if self.times.dim() else f"time {float(self.times):g}"
        test = "" if self.test is None else f", test {tuple(self.test.shape)}"
        return f"Prediction(at {when}: train {tuple(self.train.shape)}{test})"


class LinearizedTraining(ABC):
    """Training of the linearised network; subclasses say how an eigenmode is learned.

    One eigendecomposition, in float64, serves all times, starts and test sets. Results come in
    the dtype (at least float32) and on the device of the kernel.

    Modes whose eigenvalue cannot be told from zero (rounding, duplicated examples) do not move on
    the training set. In their direction alpha grows linearly in time, up to 1 / tolerance, and
    drops out in the limit: the limit is the minimum-norm (pseudo-inverse) solution, the one that
    training reaches, as a test kernel of the same function space has no part in that direction.

    Args:
        K_train: (n, n), acting on every output alike, or (n, n, out, out); tensor or array.
        y_train: (n,) or (n, out), real.
        learning_rate: positive; one step of `torch.optim.SGD` with it takes one unit of time.
        ridge: weight decay towards the initial parameters, in units of kernel eigenvalues: kernel
            ridge regression with (K + ridge)^-1 in the limit.

    Raises:
        InvalidInput: a kernel that is not square, not symmetric, empty, holds NaN or is not
            positive semi-definite with the ridge added; targets that do not fit or are integers;
            a learning rate that is not positive or a ridge that is negative.
    """

    def __init__(
        self,
        K_train: Kernel,
        y_train: ArrayLike,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
    ) -> None:
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise InvalidInput(f"learning_rate is {learning_rate}, but must be positive.")
        if not (math.isfinite(ridge) and ridge >= 0):
            raise InvalidInput(f"ridge is {ridge}, but must be zero or positive.")
        self.learning_rate = float(learning_rate)
        self.ridge = float(ridge)
        self._kernel = kernel_matrix(K_train, "K_train")
        self._targets = targets(y_train, self._kernel, "y_train")
        self._system = self._kernel.eigensystem
        self._check_positive()
        self._eigenvalues = torch.where(self._system.null, 0.0, self._system.values)
        stiffness = self._eigenvalues + self.ridge
        self._null = stiffness <= self._system.tolerance
        self._stiffness = torch.where(self._null, 0.0, stiffness)

    @abstractmethod
    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        """phi(s, t) for stiffness s = eigenvalue + ridge, (N,), and finite times, (T, 1): (T, N).

        At s = 0 it is the limit, learning_rate t / n.
        """

    @property
    def max_learning_rate(self) -> float:
        """Learning rate at which gradient descent turns unstable: 2 n / (lambda_max + ridge).

        Gradient flow is stable at every rate; there it says how far its Euler steps can follow.
        Infinite for a kernel of zeros without ridge.
        """
        largest = float(self._stiffness.max())
        return 2 * self._kernel.examples / largest if largest > 0 else math.inf

    def predict(
        self,
        times: Times,
        K_test_train: ArrayLike | None = None,
        f0_train: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
    ) -> Prediction:
        """Outputs on the training set and on test examples after the time(s) `times`.

        Args:
            times: one time (number of steps), or many in one dimension; `math.inf` is the limit.
            K_test_train: (m, n) or (m, n, out, out), as the training kernel.
            f0_train: initial outputs, shaped as `y_train`; zero unless given.
            f0_test: initial outputs on the m test examples; given if `f0_train` is.

        Raises:
            InvalidInput: times that are negative or NaN, shapes that do not fit, one of the
                initial outputs without the other, or a limit that does not exist.
            SingularKernel: in the limit without ridge, targets and test kernel both have a
                part in the null space of the training kernel.
        """
        moments, is_scalar = self._times(times)
        cross = None if K_test_train is None else cross_matrix(K_test_train, self._kernel)
        rows = None if K_test_train is None else int(K_test_train.shape[0])
        start = self._start(f0_train)
        start_test = self._start_test(f0_test, rows, f0_train is not None)
        projections = self._projections(start)
        phi = self._filters(moments)[..., None]
        columns = self._system.vectors @ (self._eigenvalues[:, None] * phi * projections)
        train = self._outputs(start, columns, is_scalar)
        test = None
        if cross is not None and start_test is not None:
            reach = cross @ self._system.vectors
            if bool(torch.isinf(moments).any()):
                self._check_reach(reach, projections)
            test = self._outputs(start_test, reach @ (phi * projections), is_scalar)
        return Prediction(moments[0] if is_scalar else moments, train, test)

    def loss(self, times: Times, f0_train: ArrayLike | None = None) -> Tensor:
        """Training loss 1/(2n) sum_i |f(x_i) - y_i|^2, without the ridge term: () or (T,).

        Arguments and errors as in `predict`.
        """
        moments, is_scalar = self._times(times)
        projections = self._projections(self._start(f0_train))
        left = 1 - self._eigenvalues * self._filters(moments)
        power = projections.square().sum(dim=1)
        loss = left.square() @ power / (2 * self._kernel.examples)
        return self._kernel.result(loss[0] if is_scalar else loss)

    def __repr__(self) -> str:
        n, out = self._targets.values.shape
        ridge = f", ridge={self.ridge:g}" if self.ridge else ""
        return (
            f"{type(self).__name__}({n} examples, {out} outputs, "
            f"learning_rate={self.learning_rate:g}{ridge}; stable descent below "
            f"{self.max_learning_rate:.4g})"
        )

    def _times(self, times: Times) -> tuple[Tensor, bool]:
        """The times as (T,) in float64, and whether one was given as a scalar."""
        try:
            given = times if isinstance(times, Tensor) else torch.from_numpy(np.array(times, float))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"times must be numbers, got {type(times).__name__}.") from error
        if given.dim() > 1 or given.numel() == 0 or given.is_complex():
            raise InvalidInput(
                f"times has shape {tuple(given.shape)} and dtype {given.dtype}, but must be one "
                "real number or a vector of them."
            )
        moments = given.detach().to(self._kernel.matrix.device).double().reshape(-1)
        self._check_times(moments)
        return moments, given.dim() == 0

    def _check_times(self, times: Tensor) -> None:
        """Refuse times, (T,), at which there is no prediction."""
        bad = ~(times >= 0)
        if bool(bad.any()):
            raise InvalidInput(f"times must not be negative or NaN, got {float(times[bad][0])}.")

    def _filters(self, times: Tensor) -> Tensor:
        """(T, N) phi for every time, the limit included."""
        finite = torch.isfinite(times)[:, None]
        phi = self._filter(self._stiffness, torch.where(finite, times[:, None], 0.0))
        phi = phi.clamp(-OVERFLOW, OVERFLOW)
        # Rounding in a test kernel must not grow with time without bound.
        tolerance = self._system.tolerance
        phi = torch.where(self._null, phi.clamp(max=1 / tolerance if tolerance else OVERFLOW), phi)
        limit = torch.where(self._null, 0.0, 1 / self._stiffness)
        return torch.where(finite, phi, limit)

    def _projections(self, start: Tensor) -> Tensor:
        """y - f_0 in the eigenmodes: (N, columns)."""
        return self._system.vectors.mT @ self._kernel.flatten(self._targets.values - start)

    def _start(self, f0_train: ArrayLike | None) -> Tensor:
        if f0_train is None:
            return torch.zeros_like(self._targets.values)
        return self._as_targets(targets(f0_train, self._kernel, "f0_train"), "f0_train")

    def _start_test(
        self, f0_test: ArrayLike | None, rows: int | None, starts_given: bool
    ) -> Tensor | None:
        if rows is None:
            if f0_test is not None:
                raise InvalidInput("f0_test is given without K_test_train: pass both.")
            return None
        if starts_given != (f0_test is not None):
            missing = "f0_test" if starts_given else "f0_train"
            raise InvalidInput(
                f"{missing} is missing: pass the initial outputs of the same network on the "
                "training and on the test examples, or neither (a network that starts at zero)."
            )
        if f0_test is None:
            return self._targets.values.new_zeros(rows, self._targets.values.shape[1])
        return self._as_targets(targets(f0_test, self._kernel, "f0_test", rows), "f0_test")

    def _as_targets(self, given: Targets, name: str) -> Tensor:
        """Initial outputs (n, out), refused unless they are laid out as the targets."""
        wanted = self._targets
        if given.is_vector != wanted.is_vector or given.values.shape[1] != wanted.values.shape[1]:
            layout = "(n,)" if wanted.is_vector else f"(n, {wanted.values.shape[1]})"
            raise InvalidInput(f"{name} must be laid out as y_train, which is {layout}.")
        return given.values

    def _outputs(self, start: Tensor, columns: Tensor, is_scalar: bool) -> Tensor:
        outputs = start + self._kernel.unflatten(columns)
        if self._targets.is_vector:
            outputs = outputs[..., 0]
        return self._kernel.result(outputs[0] if is_scalar else outputs)

    def _check_positive(self) -> None:
        smallest = float(self._system.values[-1])
        if smallest + self.ridge < -self._system.tolerance:
            raise InvalidInput(
                f"K_train is not positive semi-definite: its smallest eigenvalue is {smallest:.3g} "
                f"(the largest {float(self._system.values[0]):.3g}), more than rounding explains. "
                f"Compute the kernel in float64, or pass a ridge above {-smallest:.3g}."
            )

    def _check_reach(self, reach: Tensor, projections: Tensor) -> None:
        """Refuse a limit that is infinite: targets and test kernel meet in the null space.

        A mode of eigenvalue l can have a part of at most sqrt(l k(x, x)) in the test kernel at x
        (Cauchy-Schwarz). k(x, x) is not known here: it is taken as the larger of the training
        diagonal and its lower bound |k(x, train)|^2 / lambda_max, times 100.
        """
        if not bool(self._null.any()):
            return
        largest = self._system.values[0].clamp(min=torch.finfo(torch.float64).tiny)
        own = self._kernel.matrix.diagonal().max()
        variance = torch.maximum(reach.square().sum(dim=1) / largest, own)
        allowed = 10 * (self._system.tolerance * variance).sqrt()[:, None]
        power = projections.square().sum(dim=1)
        has_power = power > self._system.null_power_limit(float(power.sum()))
        undefined = self._null & has_power & (reach.abs() > allowed).any(dim=0)
        if bool(undefined.any()):
            raise SingularKernel(
                f"the limit does not exist: K_train is singular, and targets and K_test_train "
                f"both have a part in {int(undefined.sum())} of its null modes, which no common "
                "kernel allows. Check that both kernels are of the same model, or pass a ridge "
                f"above {self._system.tolerance:.3g}."
            )


class GradientFlow(LinearizedTraining):
    """Gradient flow of the linearised network: training with infinitely small steps.

    Without ridge, f(t) = y + exp(-learning_rate K t / n) (f_0 - y) on the training set.
    See `LinearizedTraining` for arguments and errors.
    """

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate = self.learning_rate / self._kernel.examples
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        learned = -torch.expm1(-rate * positive * times) / positive
        return torch.where(stiffness > 0, learned, rate * times)


class GradientDescent(LinearizedTraining):
    """Full-batch gradient descent of the linearised network with a finite step.

    Matches `torch.optim.SGD(lr=learning_rate)` on the same loss step for step, for a model that
    is linear in its parameters. Times are whole numbers of steps. At or above
    `max_learning_rate` finite numbers of steps are predicted all the same (they grow, to about
    1e140, which is infinity in float32); the limit is refused.
    See `LinearizedTraining` for arguments and further errors.
    """

    def _check_times(self, times: Tensor) -> None:
        super()._check_times(times)
        steps = times[torch.isfinite(times)]
        if bool((steps != steps.round()).any()):
            fraction = float(steps[steps != steps.round()][0])
            raise InvalidInput(
                f"gradient descent takes whole steps, got {fraction:g}: round them, or use "
                "GradientFlow, which takes any time."
            )
        if len(steps) < len(times) and self.learning_rate >= self.max_learning_rate:
            raise InvalidInput(
                f"gradient descent with learning_rate {self.learning_rate:g} has no limit: it is "
                f"stable below max_learning_rate = {self.max_learning_rate:.6g} only."
            )

    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        rate = self.learning_rate / self._kernel.examples
        positive = torch.where(stiffness > 0, stiffness, 1.0)
        step = rate * positive
        # log |1 - step| with all its digits for small steps; at step = 1, zero steps must give 0.
        log_factor = torch.where(step <= 1, torch.log1p(-step), torch.log(step - 1))
        exponent = torch.where(times > 0, times * log_factor, 0.0)
        flips = (step > 1) & (times % 2 == 1)
        learned = torch.where(flips, 1 + exponent.exp(), -exponent.expm1()) / positive
        return torch.where(stiffness > 0, learned, rate * times)
