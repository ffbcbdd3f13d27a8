"""One row of the coverage table: a network, data for it, and which of its outputs is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Architecture", "graphs", "images", "series", "tokens"]


@dataclass(frozen=True)
class Architecture:
    """A network that people write, and how its kernel is asked for.

    Attributes:
        name: first column of the table.
        source: where the network comes from: a library's own class, or this folder.
        make: builds the module, with random weights.
        data: two examples, as the module's forward takes them (a tensor, tuple or dictionary).
        output: which tensor of what the module returns (`InfiniteKernel`'s argument).
        options: further arguments of `InfiniteKernel`.
    """

    name: str
    source: str
    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    output: int | str | Callable[[Any], Tensor] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def images(size: int = 32, channels: int = 3) -> Callable[[], Tensor]:
    """Two images `(2, channels, size, size)`."""
    return lambda: torch.randn(2, channels, size, size)


def series(length: int = 6, features: int = 5) -> Callable[[], Tensor]:
    """Two sequences of vectors `(2, length, features)`."""
    return lambda: torch.randn(2, length, features)


def tokens(length: int = 6, vocabulary: int = 50) -> Callable[[], Tensor]:
    """Two sequences of token numbers `(2, length)`."""
    return lambda: torch.randint(vocabulary, (2, length))


def graphs(nodes: int = 6, features: int = 5) -> Callable[[], tuple[Tensor, Tensor]]:
    """Two graphs: features `(2, nodes, features)` and 0/1 symmetric adjacency `(2, nodes, nodes)`.

    Every graph holds a ring, so that no node is alone.
    """

    def data() -> tuple[Tensor, Tensor]:
        upper = (torch.rand(2, nodes, nodes) < 0.4).triu(1)
        ring = torch.eye(nodes, dtype=torch.bool).roll(1, 0)
        adjacency = upper | upper.mT | ring | ring.mT
        return torch.randn(2, nodes, features), adjacency.float()

    return data
