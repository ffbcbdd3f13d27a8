"""Decides whether a kernel matrix is computed by generated code."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Literal

import torch
from torch import fx

from tangency.infinite.evaluation import CompilationWarning
from tangency.infinite.fused.compiler import CompilerMissing
from tangency.infinite.fused.execution import FusedKernel
from tangency.infinite.fused.graph import NotFusable
from tangency.infinite.side import Side
from tangency.infinite.values.composite_of_two import CompositeOfTwo
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import Weight
from tangency.program.axes import size_of
from tangency.program.capture import Program
from tangency.program.geometry import ADAPTIVE_POOLS, POOLS
from tangency.program.operations import POINTWISE, base_name

__all__ = ["Fusion"]

PAYS = 0.6
"""Seconds of eager evaluation, over all calls, that tracing and compiling take as well."""

SECONDS = {True: 2e-8, False: 1.7e-7}
"""Of eager evaluation, per layer and entry of a covariance; without positions, or with them."""

SECONDS_OF_TWO = 8e-6
"""The same for a function of two Gaussians that is linear on cones."""

_JOINING = frozenset({"mean", "sum", *POOLS, *ADAPTIVE_POOLS})
"""Operations that join covariances at unequal positions."""


class Fusion:
    """Generated code for one output, made when it is needed.

    Args:
        output: the value.
        program: the whole program.
        compile: as for `InfiniteKernel`.
    """

    def __init__(self, output: Value, program: Program, compile: bool | Literal["auto"]) -> None:
        self._output = output
        self._program = program
        self._compile = compile
        self._kernels: dict[torch.dtype, FusedKernel | None] = {}
        self._spent: dict[torch.dtype, float] = {}

    def kernel(self, rows: Side, columns: Side) -> FusedKernel | None:
        """The code for two sides; None where it does not pay or does not exist."""
        if self._compile is False or not self._possible(rows, columns):
            return None
        if rows.dtype not in self._kernels:
            if self._compile == "auto" and not self._pays(rows, columns):
                return None
            self._kernels[rows.dtype] = self._attempt(rows, columns)
        return self._kernels[rows.dtype]

    def _possible(self, rows: Side, columns: Side) -> bool:
        types = {rows.dtype, columns.dtype}
        plain = rows.device.type == "cpu" and not (rows.smooth or columns.smooth)
        return plain and types in ({torch.float32}, {torch.float64}) and not self._masked

    @property
    def _masked(self) -> bool:
        """Whether an example differs from itself, as by dropout."""
        return any("dropout" in base_name(node) for node in self._random)

    @property
    def _random(self) -> list[fx.Node]:
        program = self._program
        return [n for n in program.axes if program.nature[n] == "random"]

    def _attempt(self, rows: Side, columns: Side) -> FusedKernel | None:
        try:
            return FusedKernel(self._output, rows, columns)
        except NotFusable:
            return None
        except CompilerMissing as error:
            warnings.warn(
                f"{error}; the kernel is evaluated eagerly, which gives the same result more "
                "slowly. Install a C compiler, or pass compile=False to be silent about it.",
                CompilationWarning,
                stacklevel=5,
            )
            return None

    def _pays(self, rows: Side, columns: Side) -> bool:
        """Whether eager evaluation, with what was spent on it before, would cost as much."""
        spent = self._spent.get(rows.dtype, 0.0) + self._seconds(rows, columns)
        self._spent[rows.dtype] = spent
        return spent >= PAYS

    def _seconds(self, rows: Side, columns: Side) -> float:
        """About how long eager evaluation takes."""
        nodes = self._random
        names = [base_name(node) for node in nodes]
        positions = max(size_of(self._program.atoms(n, "position")) for n in nodes)
        power = 2 if any(name in _JOINING for name in names) else 1
        layers = 1 + sum(name in POINTWISE for name in names)
        pairs = rows.count * columns.count / (2 if rows is columns else 1)
        entries: float = pairs * positions**power
        return entries * (SECONDS[positions == 1] * layers + SECONDS_OF_TWO * self._of_two)

    @cached_property
    def _of_two(self) -> int:
        """Number of functions of two Gaussians."""
        seen: set[Value] = set()
        stack = [self._output]
        while stack:
            value = stack.pop()
            if value not in seen:
                seen.add(value)
                stack += value.parts
                if isinstance(value, Weight):
                    stack += [piece for _, piece in value.source.pieces(frozenset())]
        return sum(isinstance(value, CompositeOfTwo) for value in seen)
