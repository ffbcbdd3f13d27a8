"""Training in closed form: the linearised network under squared loss.

The loss is 1/(2n) sum_i |f(x_i) - y_i|^2 + ridge/(2n) |theta - theta_0|^2: mean over the n
examples, sum over outputs, one half. With f = f_0 + J (theta - theta_0) and K = J J^T, the
parameters stay at theta - theta_0 = J^T alpha, where, by gradient flow,

    d alpha / dt = -(learning_rate / n) [(K + ridge) alpha - (y - f_0)],   alpha(0) = 0,

and by gradient descent, with or without momentum, the same in finite steps. Outputs are
f_0 + K alpha on the training set and f_0 + K_test_train alpha elsewhere. In an eigenmode of K with
eigenvalue l, s = l + ridge, alpha is phi(s, t) times the projection of y - f_0 (Jacot, Gabriel &
Hongler 2018, section 5; Lee et al. 2019, section 2.2). An optimizer is a function phi:

    gradient flow      phi = (1 - exp(-learning_rate s t / n)) / s
    gradient descent   phi = (1 - (1 - learning_rate s / n)^k) / s      after k steps
    momentum           phi = (1 - r_k) / s, r_k by a recursion over two steps
    limit              phi = 1 / s                                      kernel (ridge) regression
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tangency.analysis.dynamics.outputs import Layout, TestSet
from tangency.analysis.dynamics.prediction import Prediction
from tangency.analysis.dynamics.times import Moments, Times, moments
from tangency.analysis.dynamics.waiting import first_time
from tangency.analysis.matrix import ArrayLike, Kernel, KernelMatrix, Lazy, kernel_matrix, targets
from tangency.analysis.numbers import check_rate, check_ridge
from tangency.errors import InvalidInput, SingularKernel

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["OVERFLOW", "LinearizedTraining"]

OVERFLOW = 1e140
"""Where a diverging mode is held, so that no difference of infinities makes a NaN."""


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

    whole_steps: ClassVar[bool] = False
    """Whether times are numbers of steps, and not real numbers."""

    def __init__(
        self,
        K_train: Kernel,
        y_train: ArrayLike,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
    ) -> None:
        check_rate(learning_rate)
        check_ridge(ridge)
        self.learning_rate = float(learning_rate)
        self.ridge = float(ridge)
        self._kernel = kernel_matrix(K_train, "K_train")
        labels = targets(y_train, self._kernel, "y_train")
        self._targets = labels.values
        self._layout = Layout.of(self._kernel, labels)
        self._system = self._kernel.eigensystem
        self._check_positive()
        self._eigenvalues = torch.where(self._system.null, 0.0, self._system.values)
        stiffness = self._eigenvalues + self.ridge
        self._null = stiffness <= self._system.tolerance
        self._stiffness = torch.where(self._null, 0.0, stiffness)

    @abstractmethod
    def _filter(self, stiffness: Tensor, times: Tensor) -> Tensor:
        """phi(s, t) for stiffness s = eigenvalue + ridge, (N,), and finite times, (T, 1): (T, N).

        At s = 0 it is the limit, which grows linearly in time.
        """

    @abstractmethod
    def _remaining(self, stiffness: Tensor, times: Tensor) -> Tensor:
        """1 - s phi(s, t), shaped as `_filter`, with all its digits where little remains."""

    @abstractmethod
    def _factors(self, step: Tensor) -> Tensor:
        """What the error in a mode is multiplied by per unit of time, in size and in the long run.

        `step` is learning_rate s / n, dimensionless.
        """

    @property
    def kernel(self) -> KernelMatrix:
        """The training kernel, with its eigendecomposition."""
        return self._kernel

    @property
    def outputs(self) -> int:
        """Outputs of every example."""
        return self._layout.out

    @property
    def eigenvalues(self) -> Tensor:
        """(N,) of the kernel in float64, descending; what cannot be told from zero is zero."""
        return self._eigenvalues

    @property
    def stiffness(self) -> Tensor:
        """(N,) eigenvalue + ridge in float64, zero in null modes."""
        return self._stiffness

    @property
    @abstractmethod
    def max_learning_rate(self) -> float:
        """Learning rate at which training turns unstable; infinite for a kernel of zeros."""

    @property
    def is_monotone(self) -> bool:
        """Whether the training loss can only fall."""
        return False

    @property
    def contraction(self) -> Tensor:
        """(N,) factor by which the distance to the limit shrinks per step, mode by mode.

        In the long run, that is the spectral radius of the mode's recursion: below 1 it converges,
        above 1 it diverges. Null modes have 1. The order is that of the eigenvalues, descending.
        """
        factors = self._factors(self._steps_per_mode())
        return self._kernel.result(torch.where(self._null, 1.0, factors))

    def predict(
        self,
        times: Times,
        K_test_train: ArrayLike | Lazy | None = None,
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
        when = self.checked(times)
        test_set = self._layout.test_set(K_test_train, f0_test, f0_train is not None)
        start = self._layout.start(f0_train)
        projections = self._projections(start)
        phi = self.filters(when.values)[..., None]
        columns = self._system.vectors @ (self._eigenvalues[:, None] * phi * projections)
        test = None
        if test_set is not None:
            reach = self._reach(test_set, projections, when)
            test = self._moved(test_set.start, reach @ (phi * projections), when)
        left = self.left(when.values)
        return Prediction(
            times=when.given,
            train=self._moved(start, columns, when),
            test=test,
            loss=self._kernel.result(when.pick(self._loss(left, projections))),
            mode_errors=when.pick(left),
            eigenvalues=self._kernel.result(self._eigenvalues),
        )

    def loss(self, times: Times, f0_train: ArrayLike | None = None) -> Tensor:
        """Training loss 1/(2n) sum_i |f(x_i) - y_i|^2, without the ridge term: () or (T,).

        Arguments and errors as in `predict`.
        """
        when = self.checked(times)
        projections = self.projections(f0_train)
        loss = self._loss(self.left(when.values), projections)
        return self._kernel.result(when.pick(loss))

    def time_to_loss(self, loss: float, f0_train: ArrayLike | None = None) -> float:
        """The first time (number of steps) at which the training loss is at most `loss`.

        Infinite if it never is. Where the loss can rise again (momentum, large steps with a
        ridge), the first 4096 steps are looked at one by one and later ones on a grid of one part
        in a thousand: a dip that is shorter than that may be missed.

        Raises:
            InvalidInput: a loss that is negative or NaN, or initial outputs that do not fit.
        """
        if not loss >= 0:
            raise InvalidInput(f"loss is {loss}, but must be zero or positive.")
        projections = self.projections(f0_train)
        power = projections.square().sum(dim=1)
        device = projections.device
        return first_time(
            lambda times: self._loss(self.left(times.to(device)), projections).cpu(),
            loss,
            end=self._horizon(power),
            whole=self.whole_steps,
            monotone=self.is_monotone,
        )

    def figure(self, times: Times | None = None, f0_train: ArrayLike | None = None) -> Figure:
        """The loss over time and the decay of some modes; times chosen unless given.

        Raises:
            InvalidInput: as `predict`, or only one time.
            MissingDependency: Plotly is not installed.
        """
        if times is None:
            power = self.projections(f0_train).square().sum(dim=1)
            end = min(max(self._horizon(power, e_folds=12.0), 10.0), 1e9)
            times = torch.logspace(0, math.log10(end), 400, dtype=torch.float64)
            times = torch.unique(times.round()) if self.whole_steps else times
        figure = self.predict(times, f0_train=f0_train).figure()
        name = f"{type(self).__name__}, learning rate {self.learning_rate:.3g}{self._settings()}"
        figure.update_layout(title_text=f"Predicted training: {name}")
        return figure

    def to_dict(self) -> dict[str, Any]:
        """What the training is: settings, eigenvalues, contraction and largest stable rate."""
        return {
            "kind": type(self).__name__,
            "learning_rate": self.learning_rate,
            "ridge": self.ridge,
            "examples": self._kernel.examples,
            "outputs": self._layout.out,
            "eigenvalues": self._kernel.result(self._eigenvalues),
            "contraction": self.contraction,
            "max_learning_rate": self.max_learning_rate,
        }

    def __repr__(self) -> str:
        ridge = f", ridge={self.ridge:g}" if self.ridge else ""
        return (
            f"{type(self).__name__}({self._kernel.examples} examples, {self._layout.out} outputs, "
            f"learning_rate={self.learning_rate:g}{self._settings()}{ridge}; stable descent below "
            f"{self.max_learning_rate:.4g})"
        )

    def _settings(self) -> str:
        return ""

    def _steps_per_mode(self) -> Tensor:
        return self.learning_rate / self._kernel.examples * self._stiffness

    def _rate_for(self, step: float) -> float:
        """The learning rate at which the stiffest mode has learning_rate s / n = step."""
        largest = float(self._stiffness.max())
        return step * self._kernel.examples / largest if largest > 0 else math.inf

    def checked(self, times: Times) -> Moments:
        """The times, refused where there is no prediction."""
        return moments(times, self._kernel.matrix.device)

    def _horizon(self, power: Tensor, e_folds: float = 2 * math.log(OVERFLOW)) -> float:
        """A time by which every mode with power has settled, or has left all bounds."""
        factors = self._factors(self._steps_per_mode())
        alive = ~self._null & (power > 1e-30 * power.sum())
        speed = factors.log().abs()[alive & (factors != 1)]
        if speed.numel() == 0:
            return 1.0
        return e_folds * (1 + 1 / max(float(speed.min()), 1e-300))

    def filters(self, times: Tensor) -> Tensor:
        """(T, N) phi in every mode at `checked` times: alpha over the projection of y - f_0."""
        finite = torch.isfinite(times)[:, None]
        phi = self._filter(self._stiffness, torch.where(finite, times[:, None], 0.0))
        phi = phi.clamp(-OVERFLOW, OVERFLOW)
        # Rounding in a test kernel must not grow with time without bound.
        tolerance = self._system.tolerance
        phi = torch.where(self._null, phi.clamp(max=1 / tolerance if tolerance else OVERFLOW), phi)
        limit = torch.where(self._null, 0.0, 1 / self._stiffness)
        return torch.where(finite, phi, limit)

    def left(self, times: Tensor) -> Tensor:
        """(T, N) 1 - l phi, the part of y - f_0 that is left in every mode, at `checked` times."""
        finite = torch.isfinite(times)[:, None]
        left = self._remaining(self._stiffness, torch.where(finite, times[:, None], 0.0))
        left = torch.where(finite, left.clamp(-OVERFLOW, OVERFLOW), 0.0)
        positive = torch.where(self._null, 1.0, self._stiffness)
        left = left * (self._eigenvalues / positive) + self.ridge / positive
        return torch.where(self._null, 1.0, left)

    def _loss(self, left: Tensor, projections: Tensor) -> Tensor:
        power = projections.square().sum(dim=1)
        return left.square() @ power / (2 * self._kernel.examples)

    def projections(self, f0_train: ArrayLike | None = None) -> Tensor:
        """y - f_0 in the eigenmodes, in float64: (N, out), or (N, 1) for (n, n, out, out)."""
        return self._projections(self._layout.start(f0_train))

    def _projections(self, start: Tensor) -> Tensor:
        return self._system.vectors.mT @ self._kernel.flatten(self._targets - start)

    def _reach(self, test_set: TestSet, projections: Tensor, when: Moments) -> Tensor:
        """The test kernel in the eigenmodes, refused where a limit asked for does not exist."""
        reach = test_set.cross @ self._system.vectors
        if bool(torch.isinf(when.values).any()):
            self._check_reach(reach, projections)
        return reach

    def _moved(self, start: Tensor, columns: Tensor, when: Moments) -> Tensor:
        return self._layout.result(when.pick(start + self._kernel.unflatten(columns)))

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
