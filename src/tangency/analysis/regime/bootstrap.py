"""How certain measures on a few examples are: the bootstrap over examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.analysis.matrix import Kernel, KernelMatrix, kernel_matrix
from tangency.errors import InvalidInput

__all__ = ["Resamples", "bootstrap"]

_LARGE = 1e290


@dataclass(frozen=True, eq=False)
class Resamples:
    """The measures of a verdict on B resampled sets of examples, each (B,) float64."""

    kernel_drift: Tensor
    kernel_alignment: Tensor
    prediction_error: Tensor


def bootstrap(
    K0: Kernel,
    K1: Kernel,
    errors: Sequence[tuple[Tensor, Tensor]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Resamples:
    """Kernel drift, alignment and prediction error on resampled examples (Efron 1979).

    Examples are drawn with replacement. What is resampled is a sum over pairs of examples: an
    example drawn several times makes no pairs with its copies, which would be diagonal entries in
    the place of entries between two examples.

    Args:
        K0, K1: (n, n) or (n, n, out, out), kernels of the same n examples at the beginning and end.
        errors: sets of examples (training, test), each with two tensors (m,): squared distance of
            prediction and outputs, and squared way of the outputs, for every example. The
            prediction error of a set is sqrt(sum missed / sum moved); the largest counts, and
            a set that moved less than the first is measured by the way of the first.
        resamples: B.
        seed: of the draws; the global random state plays no part.

    Raises:
        InvalidInput: kernels that do not belong together, no errors, or no resamples.
    """
    if resamples < 1 or not errors:
        raise InvalidInput(f"bootstrap needs resamples and errors: {resamples}, {len(errors)}.")
    generator = torch.Generator().manual_seed(seed)
    first, second = kernel_matrix(K0, "K0"), kernel_matrix(K1, "K1")
    if first.shape != second.shape:
        raise InvalidInput(f"K0 has shape {first.shape}, but K1 {second.shape}.")
    a, b = first.matrix.cpu(), second.matrix.cpu()
    counts = _counts(first.examples, resamples, generator)
    change, own, other, both = (
        _pairs(_over_outputs(m, first), counts) for m in ((b - a) ** 2, a * a, b * b, a * b)
    )
    return Resamples(
        kernel_drift=_ratio(change, own).sqrt(),
        kernel_alignment=_ratio(both, (own * other).sqrt()).clamp(-1, 1),
        prediction_error=_errors(errors, resamples, generator),
    )


def _counts(examples: int, resamples: int, generator: torch.Generator) -> Tensor:
    """(B, n): how often each example is drawn in n draws."""
    drawn = torch.randint(examples, (resamples, examples), generator=generator)
    ones = torch.ones(1, dtype=torch.float64).expand(resamples, examples)
    return torch.zeros(resamples, examples, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _over_outputs(squares: Tensor, kernel: KernelMatrix) -> Tensor:
    """(n, n) sums over pairs of outputs."""
    n, out = kernel.examples, kernel.outputs or 1
    return squares.reshape(n, out, n, out).sum(dim=(1, 3))


def _pairs(values: Tensor, counts: Tensor) -> Tensor:
    """(B,) sums over pairs of draws, without those of an example with its own copies."""
    own = values.diagonal()
    return ((counts @ values) * counts).sum(dim=1) - (counts.square() - counts) @ own


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.clamp(min=0) / whole, torch.inf)


def _errors(
    errors: Sequence[tuple[Tensor, Tensor]], resamples: int, generator: torch.Generator
) -> Tensor:
    found: list[Tensor] = []
    least = torch.zeros(resamples, dtype=torch.float64)
    for missed, moved in errors:
        counts = _counts(len(missed), resamples, generator)
        ways = (counts @ moved.detach().cpu().double()) / len(moved)
        least = ways if not found else least
        # Large instead of infinite: zero draws of an infinite miss are no miss.
        finite = missed.detach().cpu().double().clamp(max=_LARGE)
        misses = (counts @ finite) / len(missed)
        found.append(_ratio(misses, torch.maximum(ways, least)).sqrt())
    return torch.stack(found).amax(dim=0)
