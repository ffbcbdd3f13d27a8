"""`EmpiricalKernel`: the kernels of a module at its present parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from tangency import examples, tiles
from tangency.empirical.engine import Engine, prepare
from tangency.empirical.features import Features, nngp_block, ntk_block
from tangency.empirical.function import (
    differentiable_copy,
    named,
    refuse_training_effects,
    trainable,
)
from tangency.empirical.plan import MEMORY_BUDGET, Layout, tile_size
from tangency.empirical.recording import Recording
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.kernel_pair import KernelPair

__all__ = ["EmpiricalKernel"]

_LAYOUTS = ("full", "trace", "diagonal")
_Block = Callable[[Features, Features, Layout], Tensor]


class EmpiricalKernel:
    """Finite-width kernels of `model` at the parameters that it has when a method is called.

    NTK: Theta[i, j, a, b] = sum over parameters of df_a(x_i)/dtheta df_b(x'_j)/dtheta
    (Jacot, Gabriel and Hongler, 2018, eq. 8), exact up to rounding for every module that runs and
    differentiates. NNGP: f_a(x_i) f_b(x'_j), the one-network estimate whose mean over
    initialisations (and outputs) is the NNGP kernel at infinite width.

    Outputs of shape (n, *rest) are flattened to (n, out); (n,) means out = 1. The function of
    example i is what the module returns for `x[i : i + 1]`; modules that couple the examples of a
    batch are refused. Data are a tensor, or a tuple or list (positional arguments) or a dictionary
    (keyword arguments) of tensors with a common leading size n.

    Gradients at linear layers are kept in factors, (input, cotangent) at each site of the recorded
    graph, and contracted without ever forming an n x parameters matrix unless that is cheaper; all
    other parameters take a per-example Jacobian by `torch.func`, or one example at a time where
    that has no rule. Each path is held against plain autograd on three of the examples first.
    Large sets are computed in tiles, each tile's features within `plan.MEMORY_BUDGET` bytes.

    The module stays as it was: mode, `.grad`, buffers, hooks, `requires_grad` and the state of the
    random generator. Works under `torch.no_grad` and `torch.inference_mode` (a module *made* under
    inference mode cannot be differentiated, and is refused). Results carry no gradient and have
    the dtype of the outputs; half precision is accumulated in float32.

    Args:
        model: any module that returns one real tensor with one row per example.
        output: "full" gives kernels (n1, n2, out, out), "diagonal" (n1, n2, out), "trace" the mean
            over outputs (n1, n2), an integer that one output (n1, n2).
        parameters: name patterns (`fnmatch`, one or several) of the parameters that the NTK is
            summed over; None for all. Frozen parameters (requires_grad=False) never count.

    Raises:
        InvalidInput: `output` is none of these, or a pattern matches no parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        output: Literal["full", "trace", "diagonal"] | int = "trace",
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        is_index = isinstance(output, int) and not isinstance(output, bool)
        if not is_index and output not in _LAYOUTS:
            raise InvalidInput(
                f"output={output!r}: choose 'full', 'trace', 'diagonal' or the index of an output."
            )
        named(model, parameters)
        self.model = model
        self.output = output
        self.parameters = parameters
        self._recording = Recording(model)

    def __repr__(self) -> str:
        return (
            f"EmpiricalKernel({type(self.model).__name__}, output={self.output!r}, "
            f"parameters={self.parameters!r})"
        )

    def ntk(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """NTK between `x1` and `x2`; the exactly symmetric Gram matrix of `x1` without `x2`.

        Returns (n1, n2), or with further dimensions as `output` says.

        Raises:
            InvalidInput: data that are empty, not finite or of the wrong shape, a module that does
                not run on them, is random, couples examples or has no trainable parameter.
        """
        (kernel,) = self._gram(x1, x2, [ntk_block])
        return kernel

    def nngp(self, x1: Examples, x2: Examples | None = None) -> Tensor:
        """Products of outputs, in the layout of `ntk`. Raises as `ntk`."""
        (kernel,) = self._gram(x1, x2, [nngp_block])
        return kernel

    def pair(self, x1: Examples, x2: Examples | None = None) -> KernelPair:
        """Both kernels in one pass. Raises as `ntk`."""
        return KernelPair(*self._gram(x1, x2, [nngp_block, ntk_block]))

    def diagonal(self, x: Examples) -> KernelPair:
        """Both kernels of each example with itself: (n,), (n, out) or (n, out, out).

        Raises as `ntk`.
        """
        with self._prepared(x, None, gradients=True) as (engine, data, _):
            cotangents, layout = self._cotangents(engine, data), self._layout
            n = examples.count(data)
            size = tile_size(engine.bytes_per_example(len(cotangents)))
            parts = []
            steps = range(0, n, size)
            with tiles.progress("empirical kernel, diagonal", len(steps)) as advance:
                for i in steps:
                    batch = examples.take(data, slice(i, min(i + size, n)))
                    features = engine.features(batch, cotangents).batched(1)
                    blocks = [b(features, features, layout) for b in (nngp_block, ntk_block)]
                    parts.append([block[:, 0, 0].to(engine.dtype) for block in blocks])
                    advance()
            nngp, ntk = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
            return KernelPair(nngp, ntk)

    @property
    def _layout(self) -> Layout:
        if isinstance(self.output, int):
            return "trace"  # the mean over the one output
        return self.output

    def _cotangents(self, engine: Engine, x: Examples) -> Tensor:
        """The outputs that count as rows of an identity matrix, shape (k, out)."""
        identity = torch.eye(engine.out, dtype=engine.dtype, device=examples.tensors(x)[0].device)
        if not isinstance(self.output, int):
            return identity
        if not -engine.out <= self.output < engine.out:
            raise InvalidInput(
                f"output={self.output}, but {type(self.model).__name__} has {engine.out} outputs."
            )
        return identity[self.output][None]

    @contextmanager
    def _prepared(
        self, x1: Examples, x2: Examples | None, *, gradients: bool
    ) -> Iterator[tuple[Engine, Examples, Examples | None]]:
        """The engine for checked data, with autograd on and the random state put back after."""
        examples.check(x1, "x1")
        if x2 is not None:
            examples.check(x2, "x2", like=x1)
        refuse_training_effects(self.model)
        selected = named(self.model, self.parameters)
        parameters = trainable(selected) if gradients else {}
        tensors = (*examples.tensors(x1), *self.model.parameters())
        devices = {t.device for t in tensors if t.device.type == "cuda"}
        with (
            torch.random.fork_rng(devices=sorted(devices, key=str)),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            first = differentiable_copy(x1)
            second = None if x2 is None else differentiable_copy(x2)
            yield prepare(self.model, parameters, first, second, self._recording), first, second

    def _gram(
        self, x1: Examples, x2: Examples | None, blocks: Sequence[_Block]
    ) -> tuple[Tensor, ...]:
        with self._prepared(x1, x2, gradients=ntk_block in blocks) as (engine, first, second):
            cotangents = self._cotangents(engine, first)
            return _fill(engine, first, second, cotangents, self._layout, blocks)


def _fill(
    engine: Engine,
    x1: Examples,
    x2: Examples | None,
    cotangents: Tensor,
    layout: Layout,
    blocks: Sequence[_Block],
) -> tuple[Tensor, ...]:
    """The kernel matrices that `blocks` compute, tile by tile."""
    symmetric = x2 is None
    columns = x1 if x2 is None else x2
    out = len(cotangents)
    trailing = {"trace": (), "diagonal": (out,), "full": (out, out)}[layout]
    shape = (examples.count(x1), examples.count(columns), *trailing)
    kernels = tuple(cotangents.new_empty(shape) for _ in blocks)
    per_example = engine.bytes_per_example(out)
    size = tile_size(per_example)

    @lru_cache(maxsize=max(2, MEMORY_BUDGET // (size * per_example)))
    def features(of_rows: bool, start: int, stop: int) -> Features:
        batch = examples.take(x1 if of_rows else columns, slice(start, stop))
        return engine.features(batch, cotangents).batched(0)

    plan = tiles.plan(shape[0], shape[1], size, symmetric=symmetric)
    with tiles.progress("empirical kernel", len(plan)) as advance:
        for tile in plan:
            row = features(True, tile.rows.start, tile.rows.stop)
            column = features(symmetric, tile.columns.start, tile.columns.stop)
            for kernel, block in zip(kernels, blocks, strict=True):
                values = block(row, column, layout)[0]
                tiles.fill(kernel, tile, values.to(kernel.dtype), symmetric=symmetric)
            advance()
    return kernels
