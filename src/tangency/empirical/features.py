"""What the kernel needs to know of a set of examples: outputs and per-example gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.empirical import contraction
from tangency.empirical.costs import Layout
from tangency.empirical.gradients import Gradients, room, write

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


def joined(parts: Iterable[tuple[slice, Features]], n: int) -> Features:
    """The features of sets of examples, with their places among `n`, as those of one; only one set
    exists besides the result.
    """
    whole: Features | None = None
    for place, part in parts:
        if place == slice(0, n):
            return part
        if whole is None:
            outputs = part.outputs.new_empty(part.outputs.shape[0], n, part.outputs.shape[2])
            room_for = {
                name: [[room(term, n) for term in terms] for terms in pieces]
                for name, pieces in part.gradients.items()
            }
            whole = Features(outputs, room_for)
        whole.outputs[:, place] = part.outputs
        for name, pieces in part.gradients.items():
            for into, terms in zip(whole.gradients[name], pieces, strict=True):
                for memory, term in zip(into, terms, strict=True):
                    write(memory, place, term)
        del part, pieces, terms, term
    assert whole is not None
    return whole


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
