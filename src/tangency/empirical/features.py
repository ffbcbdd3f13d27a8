"""What the kernel needs to know of a set of examples: outputs and per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.empirical import contraction
from tangency.empirical.costs import Layout
from tangency.empirical.gradients import Gradients, concatenate

__all__ = ["Features", "joined", "nngp_block", "ntk_block", "ntk_blocks"]


@dataclass(frozen=True)
class Features:
    """Outputs and gradients of n examples, of the `out` outputs that were asked for.

    There is a leading batch of independent problems, as in `contraction`.

    Attributes:
        outputs: (b, n, out).
        gradients: parameter -> for each set of its entries, the terms of its gradients.
    """

    outputs: Tensor
    gradients: Mapping[str, Sequence[Sequence[Gradients]]]

    def part(self, examples: slice) -> Features:
        """The features of some of the examples."""
        return Features(
            self.outputs[:, examples],
            {
                name: [[term.part(examples) for term in terms] for terms in pieces]
                for name, pieces in self.gradients.items()
            },
        )

    def one_by_one(self) -> Features:
        """Each example as a problem of its own."""
        return Features(
            self.outputs.transpose(0, 1),
            {
                name: [[term.one_by_one() for term in terms] for terms in pieces]
                for name, pieces in self.gradients.items()
            },
        )


def joined(parts: Sequence[Features]) -> Features:
    """The features of several sets of examples as those of one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].gradients
    return Features(
        torch.cat([part.outputs for part in parts], dim=1),
        {
            name: [
                [concatenate([p.gradients[name][i][j] for p in parts]) for j in range(len(terms))]
                for i, terms in enumerate(pieces)
            ]
            for name, pieces in first.items()
        },
    )


def nngp_block(rows: Features, columns: Features, layout: Layout) -> Tensor:
    """Products of outputs, shape (b, rows, columns, *outputs) as in `contraction`."""
    block = contraction.of_explicit(
        rows.outputs.unsqueeze(-1), columns.outputs.unsqueeze(-1), layout
    )
    return _mean(block, rows, layout)


def ntk_blocks(rows: Features, columns: Features, layout: Layout) -> dict[str, Tensor]:
    """Products of the gradients of every parameter, shapes as of `nngp_block`."""
    return {
        name: _mean(_product(pieces, columns.gradients[name], layout), rows, layout)
        for name, pieces in rows.gradients.items()
        if pieces
    }


def ntk_block(rows: Features, columns: Features, layout: Layout) -> Tensor:
    """Products of gradients summed over all parameters, shape as of `nngp_block`."""
    total: Tensor | None = None
    for block in ntk_blocks(rows, columns, layout).values():
        total = block if total is None else total.add_(block)
    # No selected parameter may reach the outputs.
    return torch.zeros_like(nngp_block(rows, columns, layout)) if total is None else total


def _product(
    rows: Sequence[Sequence[Gradients]], columns: Sequence[Sequence[Gradients]], layout: Layout
) -> Tensor:
    total: Tensor | None = None
    for mine, yours in zip(rows, columns, strict=True):
        block = contraction.product(mine, yours, layout)
        total = block if total is None else total + block
    assert total is not None
    return total


def _mean(block: Tensor, rows: Features, layout: Layout) -> Tensor:
    return block / rows.outputs.shape[-1] if layout == "trace" else block
