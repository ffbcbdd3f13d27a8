"""Outputs on training and test examples: how they are laid out, and where they start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.analysis.matrix import (
    ArrayLike,
    KernelMatrix,
    Lazy,
    Targets,
    cross_matrix,
    targets,
)
from tangency.errors import InvalidInput

__all__ = ["Layout", "TestSet"]


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test examples beside the training set.

    Attributes:
        cross: (m, N), or (m * out, N) for a kernel (n, n, out, out): test rows, training columns.
        start: (m, out), initial outputs.
    """

    __test__ = False  # nothing for pytest

    cross: Tensor
    start: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """Outputs (n, out), which the user sees as (n,) if the targets were given so."""

    kernel: KernelMatrix
    out: int
    is_vector: bool

    @classmethod
    def of(cls, kernel: KernelMatrix, labels: Targets) -> Layout:
        """That of the targets."""
        return cls(kernel, labels.values.shape[1], labels.is_vector)

    def start(self, f0_train: ArrayLike | None) -> Tensor:
        """Initial outputs (n, out) on the training set; zeros unless given."""
        if f0_train is None:
            like = self.kernel.matrix
            return torch.zeros(self.kernel.examples, self.out, dtype=like.dtype, device=like.device)
        return self._laid_out(targets(f0_train, self.kernel, "f0_train"), "f0_train")

    def test_set(
        self, K_test_train: ArrayLike | Lazy | None, f0_test: ArrayLike | None, starts_given: bool
    ) -> TestSet | None:
        """The test examples, None without a test kernel.

        Raises:
            InvalidInput: initial outputs on one of the two sets only, or a shape that does not fit.
        """
        if K_test_train is None:
            if f0_test is not None:
                raise InvalidInput("f0_test is given without K_test_train: pass both.")
            return None
        if starts_given != (f0_test is not None):
            missing = "f0_test" if starts_given else "f0_train"
            raise InvalidInput(
                f"{missing} is missing: pass the initial outputs of the same network on the "
                "training and on the test examples, or neither (a network that starts at zero)."
            )
        cross = cross_matrix(K_test_train, self.kernel)
        rows = int(K_test_train.shape[0])
        if f0_test is None:
            return TestSet(cross, cross.new_zeros(rows, self.out))
        start = targets(f0_test, self.kernel, "f0_test", rows)
        return TestSet(cross, self._laid_out(start, "f0_test"))

    def result(self, values: Tensor) -> Tensor:
        """Outputs (..., m, out) as the user sees them, in the dtype of the kernel."""
        return self.kernel.result(values[..., 0] if self.is_vector else values)

    def _laid_out(self, given: Targets, name: str) -> Tensor:
        if given.is_vector != self.is_vector or given.values.shape[1] != self.out:
            layout = "(n,)" if self.is_vector else f"(n, {self.out})"
            raise InvalidInput(f"{name} must be laid out as y_train, which is {layout}.")
        return given.values
