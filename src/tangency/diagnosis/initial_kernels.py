"""The kernels of a network at the start of training, empirical and infinite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.diagnosis.training_result import KernelForm
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples
from tangency.infinite import InfiniteKernel

__all__ = ["EmpiricalStart", "InfiniteStart", "empirical_start", "infinite_start"]

FULL_SIZE = 2000
"""Rows n * out of the largest training kernel that is taken whole: its factorisation takes
seconds."""

FULL_ENTRIES = 2 * 10**7
"""Entries of the whole training and test kernels together, at most."""


@dataclass(frozen=True, eq=False)
class EmpiricalStart:
    """The initial empirical NTK.

    Attributes:
        form: of `train` and `test_train`.
        train, test_train: (n, n) and (m, n), or these with (out, out) behind; for predictions.
        stiffening: largest eigenvalue of the whole kernel over that of `train`; 1 for "full".
    """

    form: KernelForm
    train: Tensor
    test_train: Tensor | None
    stiffening: float

    @property
    def trace(self) -> Tensor:
        """(n, n), mean over outputs."""
        return _mean_over_outputs(self.train)

    @property
    def trace_test_train(self) -> Tensor | None:
        """(m, n), mean over outputs."""
        return None if self.test_train is None else _mean_over_outputs(self.test_train)


@dataclass(frozen=True, eq=False)
class InfiniteStart:
    """The infinite-width kernels, (n, n) and (m, n); or None and the reason for it."""

    ntk: Tensor | None = None
    nngp: Tensor | None = None
    ntk_test_train: Tensor | None = None
    nngp_test_train: Tensor | None = None
    reason: str | None = None


def empirical_start(
    model: nn.Module, x: Examples, x_test: Examples | None, out: int
) -> EmpiricalStart:
    """The whole kernel where it is small enough, else its mean over outputs.

    Raises:
        InvalidInput: as `EmpiricalKernel`, or the kernel is zero.
    """
    n = examples.count(x)
    m = 0 if x_test is None else examples.count(x_test)
    is_small = n * out <= FULL_SIZE and n * (n + m) * out**2 <= FULL_ENTRIES
    form: KernelForm = "full" if is_small else "trace"
    kernel = EmpiricalKernel(model, output=form)
    train = kernel.ntk(x)
    if not bool(train.any()):
        raise InvalidInput(
            "the empirical NTK is zero on x: no parameter changes any output (dead units, a last "
            "layer and its input both at zero?), so there is nothing to train."
        )
    test_train = None if x_test is None else kernel.ntk(x_test, x)
    stiffening = 1.0 if is_small else _stiffening(model, x, out)
    return EmpiricalStart(form, train, test_train, stiffening)


def infinite_start(
    model: nn.Module,
    x: Examples,
    x_test: Examples | None,
    wanted: bool | Literal["auto"],
) -> InfiniteStart:
    """The infinite-width kernels of `model`, as `wanted` in `training_check`.

    Raises:
        TangencyError: there are none, and `wanted` is True.
    """
    if wanted is False:
        return InfiniteStart(reason="not asked for (infinite=False)")
    try:
        kernel = InfiniteKernel(model, x)
        pair = kernel.pair(x)
        if pair.ntk.dim() != 2:
            raise InvalidInput(
                f"the outputs have position axes (kernels of shape {tuple(pair.ntk.shape)}), "
                "so that they are not alike: there is no one kernel (n, n) for all of them."
            )
        cross = None if x_test is None else kernel.pair(x_test, x)
    except TangencyError as error:
        if wanted is True:
            raise
        return InfiniteStart(reason=str(error))
    return InfiniteStart(
        ntk=pair.ntk,
        nngp=pair.nngp,
        ntk_test_train=None if cross is None else cross.ntk,
        nngp_test_train=None if cross is None else cross.nngp,
    )


def _mean_over_outputs(kernel: Tensor) -> Tensor:
    if kernel.dim() == 2:
        return kernel
    return kernel.diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def _stiffening(model: nn.Module, x: Examples, out: int) -> float:
    """Largest eigenvalue of the whole kernel over that of its mean over outputs, on a few examples.

    Outputs share their hidden layers: in common directions the whole kernel is steeper than its
    mean, and gradient descent with it.
    """
    if out > FULL_SIZE:
        return float(out)  # what trace(K) = sum over outputs allows at most on one example
    few = examples.take(x, slice(0, max(1, FULL_SIZE // out)))
    whole = EmpiricalKernel(model, output="full").ntk(few)
    n = whole.shape[0]
    flat = whole.permute(0, 2, 1, 3).reshape(n * out, n * out)
    largest = [torch.linalg.eigvalsh(k.double())[-1] for k in (flat, _mean_over_outputs(whole))]
    return float(largest[0] / largest[1])
