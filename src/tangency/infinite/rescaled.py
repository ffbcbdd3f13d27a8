"""The same network at other scales of its parameters, without recording it again."""

from __future__ import annotations

import copy

from torch import nn

from tangency.infinite.exact import Evaluation
from tangency.infinite.init import Init
from tangency.infinite.kernel import InfiniteKernel
from tangency.infinite.lowering import Lowering
from tangency.infinite.parameters import module_parameters

__all__ = ["rescaled"]


def rescaled(kernel: InfiniteKernel, model: nn.Module, init: Init | str) -> InfiniteKernel:
    """The kernel of `model`, which `kernel` is of, at the moments of `init`.

    Recording a module takes most of the time that its kernel takes to make; a diagram over
    variances of the weights needs hundreds of them.

    Raises:
        InvalidInput: as `InfiniteKernel` for unusable `init`.
        UnsupportedOperation: as `InfiniteKernel`.
    """
    other = copy.copy(kernel)
    parameters = module_parameters(model, init, kernel.parametrization)
    known = kernel._lowering
    other._lowering = Lowering(kernel.program, parameters, sample=known.sample, like=known)
    positions = kernel.program.atoms(kernel.program.output, "position")
    compile = kernel._evaluation.compile
    other._evaluation = Evaluation(other._lower_output(), positions, kernel.program, compile)
    return other
