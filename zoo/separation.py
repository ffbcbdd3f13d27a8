"""How well similarities of examples agree with their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Separation", "separation"]


@dataclass(frozen=True)
class Separation:
    """How well normalised similarities K_ij / sqrt(K_ii K_jj) agree with topics.

    Attributes:
        name: of the similarity.
        within, between: mean similarity of two sentences of the same and of different topics.
        ordered: share of pairs (one within, one between) in which the former is larger.
        neighbours: share of sentences whose nearest other one has the same topic.
        seconds: to compute the kernel.
    """

    name: str
    within: float
    between: float
    ordered: float
    neighbours: float
    seconds: float

    def row(self) -> str:
        """The Markdown row."""
        numbers = f"{self.within:.3f} | {self.between:.3f}"
        shares = f"{self.ordered:.3f} | {self.neighbours:.0%}"
        return f"| {self.name} | {numbers} | {shares} | {self.seconds:.1f} |"


def separation(name: str, seconds: float, kernel: Tensor, labels: Tensor) -> Separation:
    """Of the kernel (n, n) of examples with `labels` (n,)."""
    size = kernel.diagonal().sqrt()
    similarity = kernel / (size[:, None] * size)
    same = labels[:, None] == labels
    others = ~torch.eye(len(kernel), dtype=torch.bool)
    within, between = similarity[same & others], similarity[~same]
    nearest = similarity.masked_fill(~others, -torch.inf).argmax(1)
    return Separation(
        name,
        float(within.mean()),
        float(between.mean()),
        float((within[:, None] > between).float().mean()),
        float((labels[nearest] == labels).float().mean()),
        seconds,
    )
