"""Networks trained from random starts: mean and covariance of their outputs at any time.

Infinitely wide networks start as a Gaussian process with the NNGP kernel K and train linearly in
f_0, by the NTK Theta. With A(t) = Theta_* phi(Theta, t), phi of `LinearizedTraining`,

    mean         mu_*(t) = A(t) y
    covariance   S_**(t) = K_** + A(t) K A(t)^T - A(t) K_{train *} - K_{* train} A(t)^T

(Lee et al. 2019, section 2.3; there for gradient flow). On the training set
A = Theta phi. Training the last layer only is the case Theta = K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency.analysis.dynamics.distribution import Distribution, Moment, RandomOutputs
from tangency.analysis.dynamics.memory import check_covariances
from tangency.analysis.dynamics.times import Moments, Times
from tangency.analysis.dynamics.training import LinearizedTraining
from tangency.analysis.matrix import ArrayLike, Kernel, KernelMatrix, Lazy, kernel_matrix
from tangency.analysis.matrix import cross_matrix as cross
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Ensemble"]


class Ensemble:
    """Infinitely wide networks, trained alike from random initialisations.

    Args:
        training: how each of them trains, with the NTK on the training set: `GradientFlow`,
            `GradientDescent`, `HeavyBall`, `Nesterov` or `MomentumFlow`. With the NNGP kernel in
            the NTK's place, only the last layer is trained.
        nngp_train: NNGP kernel on the training set, the covariance of the initial outputs, laid
            out as the NTK: (n, n) or (n, n, out, out).

    Raises:
        InvalidInput: NTK and NNGP kernel of different shapes, or an NNGP kernel that is not
            symmetric, holds NaN or has a negative diagonal.
    """

    def __init__(self, training: LinearizedTraining, nngp_train: Kernel) -> None:
        if not isinstance(training, LinearizedTraining):
            raise InvalidInput(
                f"training is a {type(training).__name__}, but must be a training in closed form, "
                "e.g. GradientFlow(ntk, y)."
            )
        self.training = training
        self._kernel = training.kernel
        self._nngp = kernel_matrix(nngp_train, "nngp_train")
        if self._nngp.shape != self._kernel.shape:
            raise InvalidInput(
                f"nngp_train has shape {self._nngp.shape}, but the NTK {self._kernel.shape}."
            )
        _check_variances(self._nngp.matrix.diagonal(), "nngp_train")
        vectors = self._kernel.eigensystem.vectors
        # The NNGP kernel in the eigenmodes of the NTK.
        self._start = vectors.mT @ self._nngp.matrix.to(vectors.device) @ vectors

    def predict(
        self,
        times: Times,
        ntk_test_train: ArrayLike | Lazy | None = None,
        nngp_test_train: ArrayLike | Lazy | None = None,
        nngp_test: Kernel | None = None,
        *,
        moment: Moment = "covariance",
    ) -> Distribution:
        """Mean and covariance over initialisations, after the time(s) `times`.

        Args:
            times: one time (number of steps), or many in one dimension; `math.inf` is the limit.
            ntk_test_train: NTK between m test and the training examples, (m, n) or
                (m, n, out, out).
            nngp_test_train: NNGP kernel between them.
            nngp_test: NNGP kernel among the test examples, (m, m) or (m, m, out, out).
            moment: "covariance", or "variance" where all covariances would not fit into memory.

        Raises:
            InvalidInput: as `LinearizedTraining.predict`; some of the test kernels without the
                others, or shapes that do not fit.
            SingularKernel: as `LinearizedTraining.predict`.
        """
        if moment not in ("covariance", "variance"):
            raise InvalidInput(f"moment is {moment!r}, but must be 'covariance' or 'variance'.")
        given = [k is not None for k in (ntk_test_train, nngp_test_train, nngp_test)]
        if any(given) and not all(given):
            raise InvalidInput(
                "a test distribution needs three kernels: ntk_test_train, nngp_test_train and "
                "nngp_test."
            )
        when = self.training.checked(times)
        if moment == "covariance":
            check_covariances(len(when.values), len(self._start))
        mean = self.training.predict(times, ntk_test_train)
        left = self.training.left(when.values)
        spread = _spread(self._modes, left, self._start, moment)
        train = self._outputs(mean.train, spread, when)
        test = None
        if ntk_test_train is not None and nngp_test_train is not None and nngp_test is not None:
            assert mean.test is not None
            blocks = self._test_blocks(when, ntk_test_train, nngp_test_train, nngp_test, moment)
            test = self._outputs(mean.test, blocks, when)
        return Distribution(when.given, train, test)

    def loss(self, times: Times) -> Tensor:
        """Mean over initialisations of the training loss 1/(2n) sum_i |f(x_i) - y_i|^2: () or (T,).

        Raises:
            InvalidInput: as `predict`.
        """
        when = self.training.checked(times)
        left = self.training.left(when.values)
        of_mean = self.training.loss(when.given).double()
        copies = self.training.outputs if self._kernel.outputs is None else 1
        spread = left.square() @ self._start.diagonal() * copies / (2 * self._kernel.examples)
        return self._kernel.result(of_mean + when.pick(spread).to(of_mean.device))

    def figure(
        self,
        times: Times,
        ntk_test_train: ArrayLike | Lazy | None = None,
        nngp_test_train: ArrayLike | Lazy | None = None,
        nngp_test: Kernel | None = None,
    ) -> Figure:
        """Mean and twice the standard deviation: over time, or over examples at one time.

        Arguments and errors as `predict`.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        return self.predict(
            times, ntk_test_train, nngp_test_train, nngp_test, moment="variance"
        ).figure()

    def to_dict(self) -> dict[str, Any]:
        """The training of each network."""
        return {"kind": type(self).__name__, "training": self.training.to_dict()}

    def __repr__(self) -> str:
        return f"Ensemble({self.training!r})"

    @property
    def _modes(self) -> Tensor:
        return self._kernel.eigensystem.vectors

    def _test_blocks(
        self,
        when: Moments,
        ntk_test_train: ArrayLike | Lazy,
        nngp_test_train: ArrayLike | Lazy,
        nngp_test: Kernel,
        moment: Moment,
    ) -> Tensor:
        """Covariance on the test examples, (T, M, M), or variances, (T, M)."""
        reach = cross(ntk_test_train, self._kernel, "ntk_test_train") @ self._modes
        joint = cross(nngp_test_train, self._kernel, "nngp_test_train") @ self._modes
        own = kernel_matrix(nngp_test, "nngp_test")
        _check_same_layout(own, self._kernel, len(reach), "nngp_test")
        if joint.shape != reach.shape:
            raise InvalidInput(
                f"nngp_test_train has {len(joint)} rows, but ntk_test_train {len(reach)}."
            )
        phi = self.training.filters(when.values)
        if moment == "covariance":
            check_covariances(len(when.values), len(reach))
        swept = _spread(reach, phi, self._start, moment)
        if moment == "variance":
            crossed = 2 * phi @ (reach * joint).mT
            return own.matrix.diagonal().to(swept.device) + swept - crossed
        crossed = (reach * phi[:, None, :]) @ joint.mT
        return own.matrix.to(swept.device) + swept - crossed - crossed.mT

    def _outputs(self, mean: Tensor, blocks: Tensor, when: Moments) -> RandomOutputs:
        """Outputs with covariance (T, M, M) or variances (T, M)."""
        full = blocks.dim() == 3
        variance = blocks.diagonal(dim1=-2, dim2=-1) if full else blocks
        variance = when.pick(variance.clamp(min=0))
        covariance = when.pick(blocks) if full else None
        out = self._kernel.outputs
        if out is not None:
            variance = variance.reshape(mean.shape)
            if covariance is not None:
                m = covariance.shape[-1] // out
                split = covariance.reshape(*covariance.shape[:-2], m, out, m, out)
                covariance = split.transpose(-3, -2)
        elif mean.dim() > variance.dim():
            variance = variance[..., None].expand(mean.shape)
        return RandomOutputs(
            mean,
            self._kernel.result(variance),
            None if covariance is None else self._kernel.result(covariance),
            None if when.is_scalar else when.values,
        )


def _spread(reach: Tensor, weights: Tensor, start: Tensor, moment: Moment) -> Tensor:
    """S = R diag(w) start diag(w) R^T for every row w of `weights`: (T, M, M), or (T, M) of it."""
    if moment == "variance":
        each = (reach * w for w in weights)
        return torch.stack([((side @ start) * side).sum(dim=1) for side in each])
    sides = reach * weights[:, None, :]
    spread: Tensor = sides @ start @ sides.mT
    return spread


def _check_variances(variances: Tensor, name: str) -> None:
    if bool((variances < 0).any()):
        raise InvalidInput(f"{name} has a negative diagonal: it is no covariance.")


def _check_same_layout(own: KernelMatrix, train: KernelMatrix, rows: int, name: str) -> None:
    if own.outputs != train.outputs or len(own.matrix) != rows:
        raise InvalidInput(
            f"{name} has shape {own.shape}, which does not fit the other kernels: it must be that "
            "of the test examples among themselves."
        )
    _check_variances(own.matrix.diagonal(), name)
