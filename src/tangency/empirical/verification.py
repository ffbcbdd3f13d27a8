"""A kernel held against plain autograd, in other company, a second time, and by its signs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical.costs import Layout
from tangency.empirical.entries import as_real
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["Check", "Verification", "verify"]

Kernel: TypeAlias = Callable[[Examples, Examples], Tensor]
Entry: TypeAlias = tuple[int, ...]
"""Place of one entry in a kernel: (i, j), (i, j, output) or (i, j, output, output)."""

_ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-4}
_ALLOWED_IN_HALF = 5e-2
_LARGEST_MATRIX = 512
"""Rows of the matrix whose eigenvalues are computed: a principal submatrix of a larger one."""


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: what was compared.
        deviation: the largest one found, relative to sqrt(K_ii K_jj) (to the largest eigenvalue,
            for negative ones).
        allowed: the largest one that rounding explains.
    """

    name: str
    deviation: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the deviation is allowed (NaN never is)."""
        return self.deviation <= self.allowed


@dataclass(frozen=True)
class Verification:
    """What `EmpiricalKernel.verify` found.

    Attributes:
        model: the module's type.
        dtype: of the kernel.
        examples: number of examples whose kernel was examined.
        entries: number of entries that were computed again by autograd.
        checks: what was compared.
    """

    model: str
    dtype: str
    examples: int
    entries: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all deviations are allowed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All attributes as plain Python objects."""
        return {**asdict(self), "ok": self.ok}

    def __repr__(self) -> str:
        rows = [
            f"  {c.name:<42} {c.deviation:9.1e}  (allowed {c.allowed:.0e})  "
            + ("ok" if c.ok else "FAILED")
            for c in self.checks
        ]
        title = (
            f"Verification of {self.model}, {self.dtype}: {self.entries} entries among "
            f"{self.examples} examples, largest relative deviations"
        )
        return "\n".join([title, *rows])


def verify(
    kernel: Kernel,
    outputs: Callable[[Examples], Tensor],
    parameters: Sequence[nn.Parameter],
    x: Examples,
    *,
    model: str,
    layout: Layout,
    entries: int,
    seed: int,
) -> Verification:
    """Examine `kernel` on some of the examples `x`.

    Args:
        kernel: the NTK between two sets of examples, in `layout`.
        outputs: the outputs that count of one example, shape (k,), for autograd.
        parameters: those that the NTK is summed over.
        x: the data, from which examples are drawn.
        model: its name.
        layout: of the kernel.
        entries: number of entries to compute again.
        seed: equal seeds draw equal examples and entries.

    Raises:
        InvalidInput: `entries` is no positive integer.
    """
    if isinstance(entries, bool) or not isinstance(entries, int) or entries < 1:
        raise InvalidInput(f"entries={entries!r}: must be a positive integer.")
    draw = random.Random(seed)
    n = examples.count(x)
    chosen = draw.sample(range(n), min(n, math.isqrt(entries - 1) + 3))
    pool = examples.take(x, torch.tensor(chosen))
    block = kernel(pool, pool)
    sample = draw.sample(range(block.numel()), min(entries, block.numel()))
    places = [_place(index, block.shape) for index in sample]
    scale = _scale(block, layout)
    again = torch.stack([_entry(outputs, parameters, pool, place) for place in places])
    index = tuple(torch.tensor(places, device=block.device).unbind(1))
    signs, largest = _eigenvalues(block.double(), layout)
    found = {
        "plain autograd": _deviation(block[index], again, scale[index]),
        "the same examples in other batches": _in_company(kernel, pool, block, scale),
        "computed twice, bit by bit": _deviation(kernel(pool, pool), block, scale),
        "symmetry": _deviation(block, _transposed(block), scale),
        "negative eigenvalues": float(_relative(signs.clamp_max(0).abs(), largest).max()),
    }
    allowed = dict.fromkeys(found, _ALLOWED.get(block.dtype, _ALLOWED_IN_HALF))
    allowed["computed twice, bit by bit"] = 0.0
    checks = tuple(Check(name, value, allowed[name]) for name, value in found.items())
    return Verification(model, str(block.dtype), len(chosen), len(places), checks)


def _place(index: int, shape: torch.Size) -> Entry:
    """Row and column examples and outputs of an entry, counted in the order of memory."""
    place: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        place.insert(0, rest)
    return tuple(place)


def _entry(
    outputs: Callable[[Examples], Tensor],
    parameters: Sequence[nn.Parameter],
    pool: Examples,
    place: Entry,
) -> Tensor:
    """One entry by plain autograd of the two examples, each alone; products in float64."""
    i, j, *which = place
    left = outputs(examples.take(pool, slice(i, i + 1)))
    right = outputs(examples.take(pool, slice(j, j + 1)))
    if not which:  # the trace: the mean over outputs
        terms = [_product(a, b, parameters) for a, b in zip(left, right, strict=True)]
        return torch.stack(terms).mean()
    return _product(left[which[0]], right[which[-1]], parameters)


def _product(a: Tensor, b: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Inner product of the gradients of two numbers, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for u, v in zip(_gradients(a, parameters), _gradients(b, parameters), strict=True):
        if u is not None and v is not None:
            total += (as_real(u).double() * as_real(v).double()).sum().to(total.device)
    return total


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)


def _scale(block: Tensor, layout: Layout) -> Tensor:
    """sqrt(K_ii K_jj), the size that an entry can have (Cauchy-Schwarz), for all entries.

    What lies below the rounding of the largest entry (a gradient of zero) is measured by that.
    """
    own = block.double().diagonal(dim1=0, dim2=1)  # (*outputs, p)
    if layout == "full":
        own = own.diagonal(dim1=0, dim2=1)  # (p, out)
        own = own.clamp_min(0).sqrt()
        scale = own[:, None, :, None] * own[None, :, None, :]
    else:
        own = own.movedim(-1, 0).clamp_min(0).sqrt()
        scale = own[:, None] * own[None]
    return scale + torch.finfo(block.dtype).eps * scale.max()


def _deviation(value: Tensor, reference: Tensor, scale: Tensor) -> float:
    return float(_relative((value.double() - reference.double()).abs(), scale).max())


def _relative(difference: Tensor, scale: Tensor) -> Tensor:
    """The ratio, and zero where there is no difference."""
    return torch.where(difference == 0, 0.0, difference / scale)


def _in_company(kernel: Kernel, pool: Examples, block: Tensor, scale: Tensor) -> float:
    """The first example alone, and all in another order with one of them twice."""
    n = examples.count(pool)
    backward = torch.arange(n - 1, -1, -1)
    deviations = []
    for rows in (torch.tensor([0]), torch.cat([backward, backward[:1]])):
        other = kernel(examples.take(pool, rows), examples.take(pool, backward))
        expected, size = (value[rows][:, backward] for value in (block, scale))
        deviations.append(_deviation(other, expected, size))
    return max(deviations)


def _transposed(block: Tensor) -> Tensor:
    swapped = block.transpose(0, 1)
    return swapped.transpose(2, 3) if block.dim() == 4 else swapped


def _eigenvalues(block: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Smallest and largest eigenvalue of the kernel matrix, or of that of each output."""
    p = len(block)
    if layout == "full":
        kept = block[:, :, : max(1, _LARGEST_MATRIX // p), : max(1, _LARGEST_MATRIX // p)]
        matrix = kept.transpose(1, 2).reshape(p * kept.shape[2], -1)
    else:
        matrix = block.movedim((0, 1), (-2, -1))
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((1,), torch.nan), matrix.new_full((1,), torch.nan)
    values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    return values[..., 0], values[..., -1]
