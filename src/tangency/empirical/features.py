"""What the kernel needs to know of a set of examples: outputs and per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.empirical import contraction
from tangency.empirical.plan import Layout
from tangency.empirical.sites import Factors

__all__ = ["Features", "nngp_block", "ntk_block"]


@dataclass(frozen=True)
class Features:
    """Outputs and gradients of n examples, of the `out` outputs that were asked for.

    Attributes:
        outputs: (n, out).
        factors: weight -> its gradients in factors.
        gradients: other parameter -> its gradients, (n, out, size).
    """

    outputs: Tensor
    factors: Mapping[str, Factors]
    gradients: Mapping[str, Tensor]

    def batched(self, dim: int) -> Features:
        """The same with the batch of problems of `contraction` at `dim`: 0 for one problem with
        all examples, 1 for one problem for each example. Half-precision numbers become float32.
        """

        def prepared(value: Tensor) -> Tensor:
            return value.to(torch.promote_types(value.dtype, torch.float32)).unsqueeze(dim)

        return Features(
            prepared(self.outputs),
            {
                name: Factors(prepared(f.inputs), prepared(f.cotangents))
                for name, f in self.factors.items()
            },
            {name: prepared(gradient) for name, gradient in self.gradients.items()},
        )


def nngp_block(rows: Features, columns: Features, layout: Layout) -> Tensor:
    """Products of outputs, shape (b, rows, columns, *outputs) as in `contraction`."""
    block = contraction.of_gradients(
        rows.outputs.unsqueeze(-1), columns.outputs.unsqueeze(-1), layout
    )
    return _mean(block, rows, layout)


def ntk_block(rows: Features, columns: Features, layout: Layout) -> Tensor:
    """Products of gradients summed over all parameters, shape as of `nngp_block`."""
    blocks = [
        contraction.of_factors(f, f if rows is columns else columns.factors[name], layout)
        for name, f in rows.factors.items()
    ]
    blocks += [
        contraction.of_gradients(gradient, columns.gradients[name], layout)
        for name, gradient in rows.gradients.items()
    ]
    if not blocks:  # no selected parameter reaches the outputs
        return torch.zeros_like(nngp_block(rows, columns, layout))
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return _mean(total, rows, layout)


def _mean(block: Tensor, rows: Features, layout: Layout) -> Tensor:
    return block / rows.outputs.shape[-1] if layout == "trace" else block
