"""Gradient flow of the linearised network under any differentiable loss, by an ODE solver.

The parameters stay at theta - theta_0 = J^T alpha, where, for a loss L of the outputs,

    d alpha / dt = -learning_rate [grad L(f_0 + K alpha) + ridge / n alpha],   alpha(0) = 0

(Jacot, Gabriel & Hongler 2018, section 4; Lee et al. 2019, section 2.2). Knowing alpha, one knows
the outputs everywhere: f_0 + K_test_train alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tangency.analysis.dynamics.losses import LossFunction, LossName, objective
from tangency.analysis.dynamics.outputs import Layout
from tangency.analysis.dynamics.path import Path
from tangency.analysis.dynamics.prediction import Prediction
from tangency.analysis.dynamics.times import Moments, Times, moments
from tangency.analysis.matrix import ArrayLike, Kernel, Lazy, kernel_matrix
from tangency.analysis.numbers import check_rate, check_ridge
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["LossFlow"]

METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")


class LossFlow:
    """Gradient flow of the linearised network under any differentiable loss.

    A solution is kept: times that were asked for before cost nothing, and later ones go on from
    the last. `state` and `load_state` carry it from one process to another.

    Args:
        K_train: (n, n), acting on every output alike, or (n, n, out, out); tensor or array.
        y_train: real targets (n,) or (n, out); for "cross-entropy", and for a function, also
            classes (n,) as integers.
        loss: "squared" (1/(2n) sum_i |f(x_i) - y_i|^2), "cross-entropy" of the softmax,
            "logistic" (targets -1. and 1.), "huber" (of width 1), or a function
            f(outputs, targets) -> scalar, the mean over examples, of float64 tensors laid out as
            `y_train` ((n, outputs) for classes).
        learning_rate: positive; for a small one, one step of `torch.optim.SGD` with it takes one
            unit of time.
        ridge: weight decay towards the initial parameters: ridge/(2n) |theta - theta_0|^2 is
            added to the loss.
        outputs: number of outputs, where `y_train` holds classes and the kernel is (n, n); the
            largest class and one more unless given.
        method: of `scipy.integrate.solve_ivp`. Explicit ones ("DOP853", "RK45", "RK23") take about
            as many steps as gradient descent at its largest stable rate would; "LSODA", "BDF" and
            "Radau" take long ones late in training, at the price of an (n out, n out) Jacobian.
        rtol: relative tolerance of the solver.
        atol: its absolute tolerance, in units of the outputs.

    Raises:
        InvalidInput: a kernel that is not square, not symmetric, empty or holds NaN, targets that
            do not fit the kernel or the loss, or an argument out of range.
    """

    def __init__(
        self,
        K_train: Kernel,
        y_train: ArrayLike,
        loss: LossName | LossFunction,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
        *,
        outputs: int | None = None,
        method: str = "DOP853",
        rtol: float = 1e-6,
        atol: float = 1e-8,
    ) -> None:
        check_rate(learning_rate)
        check_ridge(ridge)
        if method not in METHODS:
            raise InvalidInput(f"method is {method!r}; SciPy has {', '.join(METHODS)}.")
        if not (rtol > 0 and atol > 0):
            raise InvalidInput(f"rtol={rtol} and atol={atol} must be positive.")
        self.learning_rate, self.ridge = float(learning_rate), float(ridge)
        self.method, self.rtol, self.atol = method, float(rtol), float(atol)
        self._kernel = kernel_matrix(K_train, "K_train")
        self._objective = objective(loss, y_train, self._kernel, outputs)
        self._layout = Layout(self._kernel, self._objective.out, self._objective.is_vector)
        # The solver moves scale * alpha, which is of the size of the outputs.
        self._scale = float(self._kernel.matrix.diagonal().mean()) or 1.0
        self._path = Path(torch.empty(0))
        self.evaluations = 0
        """Gradients of the loss taken so far."""

    def predict(
        self,
        times: Times,
        K_test_train: ArrayLike | Lazy | None = None,
        f0_train: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
    ) -> Prediction:
        """Outputs on the training set and on test examples after the time(s) `times`.

        Args:
            times: one time, or many in one dimension, finite.
            K_test_train: (m, n) or (m, n, out, out), as the training kernel.
            f0_train: initial outputs, (n,) or (n, out); zero unless given.
            f0_test: initial outputs on the m test examples; given if `f0_train` is.

        Raises:
            InvalidInput: times that are negative, infinite or NaN, shapes that do not fit, one of
                the initial outputs without the other, a loss that is not finite, or a solver that
                gave up.
        """
        when = self._times(times)
        test_set = self._layout.test_set(K_test_train, f0_test, f0_train is not None)
        start = self._begun(f0_train)
        alpha = self._solved(start, when)
        train = self._train(start, alpha)
        test = None
        if test_set is not None:
            moved = test_set.start + self._kernel.unflatten(test_set.cross @ alpha)
            test = self._layout.result(when.pick(moved))
        loss = torch.stack([self._objective.value(outputs) for outputs in train])
        return Prediction(
            times=when.given,
            train=self._layout.result(when.pick(train)),
            test=test,
            loss=self._kernel.result(when.pick(loss)),
        )

    def loss(self, times: Times, f0_train: ArrayLike | None = None) -> Tensor:
        """Training loss, without the ridge term: () or (T,). Arguments and errors as `predict`."""
        loss = self.predict(times, f0_train=f0_train).loss
        assert loss is not None
        return loss

    def time_to_loss(
        self, loss: float, f0_train: ArrayLike | None = None, *, until: float = 1e4
    ) -> float:
        """The first time at which the training loss is at most `loss`; infinite if not by `until`.

        Found on the solver's way, to its tolerance. The loss, without the ridge term, is looked at
        once in every step of the solver.

        Raises:
            InvalidInput: a loss that is NaN, a time `until` that is not positive, or as `predict`.
        """
        if not (math.isfinite(until) and until > 0) or math.isnan(loss):
            raise InvalidInput(f"loss={loss} must be a number, and until={until} positive.")
        start = self._begun(f0_train)
        known = [self._loss_at(start, state) for state in self._path.states]
        first = next((i for i, value in enumerate(known) if value <= loss), len(known))
        if first == 0:
            return 0.0
        reached = first < len(known)
        end = self._path.times[first] if reached else max(until, self._path.times[-1])
        if end == self._path.times[first - 1]:
            return math.inf
        solution = self._integrate(start, first - 1, end, level=loss)
        if len(solution.t_events[0]):
            time = float(solution.t_events[0][0])
            self._path.add(time, self._state(solution.y_events[0][0]))
            return time
        # Rounding: known to be below at the end, but never seen to cross.
        return end if reached else math.inf

    def figure(self, times: Times, f0_train: ArrayLike | None = None) -> Figure:
        """The loss over time and the course of some outputs.

        Raises:
            InvalidInput: as `predict`, or only one time.
            MissingDependency: Plotly is not installed.
        """
        figure = self.predict(times, f0_train=f0_train).figure()
        name = f"{self._objective.name}, learning rate {self.learning_rate:.3g}"
        figure.update_layout(title_text=f"Predicted training: {name}")
        return figure

    def state(self) -> dict[str, Any]:
        """The latest point of the solution: "time", "alpha" (N, columns) and "f0_train" (n, out).

        Raises:
            InvalidInput: nothing has been predicted yet.
        """
        if not self._path.times:
            raise InvalidInput("there is no solution yet: call predict first.")
        return {
            "time": self._path.times[-1],
            "alpha": self._path.states[-1] / self._scale,
            "f0_train": self._path.start,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, of the same kernel, targets and settings.

        Raises:
            InvalidInput: a state of another shape.
        """
        start, alpha = state["f0_train"], state["alpha"]
        if tuple(start.shape) != (self._kernel.examples, self._layout.out):
            raise InvalidInput(f"the state has outputs {tuple(start.shape)}: of another problem.")
        self._path = Path(start.double())
        self._path.add(0.0, torch.zeros_like(alpha, dtype=torch.float64))
        self._path.add(float(state["time"]), alpha.double() * self._scale)

    def to_dict(self) -> dict[str, Any]:
        """Settings, and the latest point of the solution if there is one."""
        return {
            "kind": type(self).__name__,
            "loss": self._objective.name,
            "learning_rate": self.learning_rate,
            "ridge": self.ridge,
            "examples": self._kernel.examples,
            "outputs": self._layout.out,
            "method": self.method,
            "rtol": self.rtol,
            "atol": self.atol,
            "evaluations": self.evaluations,
            "state": self.state() if self._path.times else None,
        }

    def __repr__(self) -> str:
        ridge = f", ridge={self.ridge:g}" if self.ridge else ""
        return (
            f"LossFlow({self._objective.name}, {self._kernel.examples} examples, "
            f"{self._layout.out} outputs, learning_rate={self.learning_rate:g}{ridge})"
        )

    def _times(self, times: Times) -> Moments:
        when = moments(times, self._kernel.matrix.device)
        if bool(torch.isinf(when.values).any()):
            raise InvalidInput(
                "under a general loss there is no closed form for the limit: take a finite time "
                "(with the cross-entropy of separable classes, the outputs grow for ever)."
            )
        return when

    def _begun(self, f0_train: ArrayLike | None) -> Tensor:
        """The start, (n, out), of which the path then is."""
        start = self._layout.start(f0_train)
        if not self._path.of(start):
            self._objective.check(start)
            self._path = Path(start)
            self._path.add(0.0, torch.zeros_like(self._kernel.flatten(start)))
        return start

    def _solved(self, start: Tensor, when: Moments) -> Tensor:
        """alpha at every time, (T, N, columns)."""
        for times in self._path.missing(when.values.tolist()):
            begin = self._path.index(times[0])
            solution = self._integrate(start, begin, times[-1], times=times)
            for time, flat in zip(times, solution.y.T, strict=True):
                self._path.add(time, self._state(flat))
        states = [self._path.states[self._path.index(time)] for time in when.values.tolist()]
        return torch.stack(states) / self._scale

    def _integrate(
        self,
        start: Tensor,
        begin: int,
        end: float,
        *,
        times: list[float] | None = None,
        level: float | None = None,
    ) -> Any:
        """SciPy's solution from a known state to `end`, or to where the loss falls to `level`."""

        def velocity(_: float, flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return self._velocity(start, self._state(flat) / self._scale)

        def above(_: float, flat: npt.NDArray[np.float64]) -> float:
            assert level is not None
            return self._loss_at(start, self._state(flat)) - level

        above.terminal = True  # type: ignore[attr-defined]
        solution = solve_ivp(
            velocity,
            (self._path.times[begin], end),
            self._path.states[begin].reshape(-1).cpu().numpy(),
            method=self.method,
            t_eval=times,
            events=None if level is None else above,
            rtol=self.rtol,
            atol=self.atol,
        )
        if not solution.success or not np.isfinite(solution.y).all():
            raise InvalidInput(
                f"the solver gave up after time {self._path.times[begin]:g}: {solution.message} Is "
                "the loss smooth and bounded from below?"
            )
        return solution

    def _velocity(self, start: Tensor, alpha: Tensor) -> npt.NDArray[np.float64]:
        self.evaluations += 1
        gradient = self._kernel.flatten(self._objective.gradient(self._train(start, alpha)))
        decay = self.ridge / self._kernel.examples * alpha
        velocity = -self.learning_rate * self._scale * (gradient + decay)
        found: npt.NDArray[np.float64] = velocity.reshape(-1).cpu().numpy()
        return found

    def _train(self, start: Tensor, alpha: Tensor) -> Tensor:
        """Outputs on the training set, (..., n, out)."""
        return start + self._kernel.unflatten(self._kernel.matrix @ alpha)

    def _loss_at(self, start: Tensor, state: Tensor) -> float:
        return float(self._objective.value(self._train(start, state / self._scale)))

    def _state(self, flat: npt.NDArray[np.float64]) -> Tensor:
        """A solver's vector as scale * alpha, (N, columns)."""
        like = self._path.states[0]
        return torch.from_numpy(flat.copy()).to(like.device).reshape(like.shape)
