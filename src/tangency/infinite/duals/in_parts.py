"""Expansions of one function at very many standard deviations, some of them at a time.

An expansion integrates over hundreds of nodes for every standard deviation: for all positions of
all images at once, that takes more memory than the expansions themselves. How far it goes is
decided beforehand, for few standard deviations among which are the extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["PART", "joined", "parts", "representatives"]

PART = 1024
"""Standard deviations of a part."""

_FEW = 128
"""Representatives of one kind of standard deviation."""


def representatives(*sds: Tensor) -> Tensor:
    """Indices of few of N examples `(N,)`: along the order of each kind of standard deviation, the
    least and the largest among them.
    """
    chosen = []
    for sd in sds:
        steps = torch.linspace(0, len(sd) - 1, min(_FEW, len(sd)), device=sd.device).long()
        chosen.append(sd.detach().argsort()[steps])
    indices: Tensor = torch.cat(chosen).unique()
    return indices


def parts(*sds: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of vectors `(N,)` of equal length; with more of them, a node takes more memory."""
    size = max(1, PART // len(sds) ** 2)
    yield from zip(*(sd.split(size) for sd in sds), strict=True)


def joined(
    compute: Callable[..., dict[str, Tensor]], *sds: Tensor, shape: torch.Size
) -> dict[str, Tensor]:
    """What `compute` gives for each of the parts, `(*lead, part)`, as `(*lead, *shape)`."""
    whole: dict[str, Tensor] = {}
    start = 0
    for part in parts(*sds):
        stop = start + len(part[0])
        for name, values in compute(*part).items():
            if name not in whole:
                whole[name] = values.new_empty(*values.shape[:-1], len(sds[0]))
            whole[name][..., start:stop] = values
        start = stop
    return {name: values.unflatten(-1, shape) for name, values in whole.items()}
