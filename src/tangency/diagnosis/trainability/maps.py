"""What one block does to lengths, correlations and gradients, by the infinite-width kernel.

A state h (what blocks pass on) of width n is described by its lengths q_a = |h(x_a)|^2 / n and
the correlations c_ab = h(x_a) . h(x_b) / (n sqrt(q_a q_b)). The block is put behind a linear layer
without bias that draws Gaussian states with a given Gram matrix, and `InfiniteKernel` says what
comes out (Poole et al. 2016; Schoenholz et al. 2017):

    length map        q' = Q(q)
    correlation map   c' = C(c; q) = K' / Q(q)
    gradient gain     B(q, c) = dK' / dK at fixed lengths

Gradients pulled back through a block have second moments multiplied by B: for phi followed by
a dense layer B = w2 E[phi'(u) phi'(v)], and B(q, 1) is the chi_1 of the literature. B is the part
of the NTK that comes from below: the NTK of the block after a layer whose bias alone is trained,
and b2 = 0, in the standard parametrisation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tangency.diagnosis.trainability.repetition import AFFINE, RepeatedBlock
from tangency.diagnosis.trainability.segments import Segment
from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.examples import Examples
from tangency.infinite import AccuracyWarning, InfiniteKernel, Init
from tangency.infinite.init import measured_moment
from tangency.infinite.parameters import Parametrization
from tangency.infinite.rescaled import rescaled
from tangency.kernel_pair import KernelPair

__all__ = ["BlockMaps", "check_closed"]

INPUTS = 8
"""Dimension of the inputs that states are drawn from, at least: one recording serves them all."""

CLOSED = 1e-6
"""Relative difference between two blocks at once and one after the other that is rounding."""


@dataclass(frozen=True)
class _ProbeInit(Init):
    """An `Init` for parts of the user's module beside a layer "unit" with w2 = 1, b2 = 0.

    Attributes:
        measured: names in the user's module -> the parameters whose average moment counts, if the
            moments are those of the module's own parameters.
    """

    measured: Mapping[str, Sequence[Tensor]] | None = None

    def moment(self, name: str, role: str, fan_in: int, fan_out: int) -> float | Tensor:
        place, _, own = name.partition(".")
        if place == "unit":
            return 1.0 if own == "weight" else 0.0
        if self.measured is None:
            return super().moment(own, role, fan_in, fan_out)
        values = [measured_moment(own, p, role, fan_in) for p in self.measured[own]]
        return sum(values) / len(values)

    def check_overrides(self, model: nn.Module) -> None:
        """Patterns may be about other parts of the module."""


class _Probe(nn.Module):
    """Blocks behind a layer that draws Gaussian states, alike at all positions.

    What is returned is the state at the middle position, to which the border of a padded
    convolution does not reach through a few blocks.
    """

    def __init__(self, block: RepeatedBlock, inputs: int, count: int, trained: str) -> None:
        super().__init__()
        first = next(block.blocks[0].parameters())
        self.unit = nn.Linear(inputs, block.width, dtype=first.dtype, device=first.device)
        for k in range(count):
            self.add_module(f"block{k}", block.blocks[k % block.depth].renewed())
        self.positions, self.channels_first = block.positions, block.channels_first
        for name, parameter in self.named_parameters():
            parameter.requires_grad_((name == "unit.bias") == (trained == "stem"))
        self.unit.weight.requires_grad_(False)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for _ in self.positions:
            x = x.unsqueeze(1)
        h: Tensor = self.unit(x.expand(-1, *self.positions, -1))
        if self.channels_first and self.positions:
            h = h.movedim(-1, 1)
        for k in range(self.count):
            h = self.get_submodule(f"block{k}")(h)
        for size in self.positions:
            h = h.select(2 if self.channels_first else 1, size // 2)
        return h


class _Entry(nn.Module):
    """What comes before the first block, under a readout whose kernel is the mean Gram matrix."""

    def __init__(self, before: Segment, size: int) -> None:
        super().__init__()
        self.before = before.renewed()
        first = next(self.before.parameters(), torch.empty(0))
        self.unit = nn.Linear(size, 1, bias=False, dtype=first.dtype, device=first.device)
        self.unit.weight.requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        h: Tensor = self.unit(self.before(*inputs).flatten(1))
        return h


class BlockMaps:
    """Length map, correlation map and gradient gain of a block.

    Args:
        block: from `find_block` or `as_block`.
        init: "module" for the moments of the block's own parameters, averaged over repetitions, or
            an `Init`.

    Raises:
        UnsupportedOperation: the block has no infinite-width limit in closed form, or what it
            passes on is not described by lengths and correlations (see `check_closed`).
    """

    def __init__(self, block: RepeatedBlock, init: Init | str = "module") -> None:
        self.block = block
        self.init = init
        self.device = next(block.blocks[0].parameters()).device
        self._kernels: dict[tuple[int, str, str], tuple[InfiniteKernel, nn.Module]] = {}

    def at(self, init: Init | str) -> BlockMaps:
        """The maps with other moments; the recorded block is shared."""
        other = BlockMaps(self.block, init)
        for key, (kernel, probe) in self._kernels.items():
            other._kernels[key] = rescaled(kernel, probe, other._probe_init()), probe
        return other

    def lengths(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Q(q) and B(q, 1), of the shape of `q` (m,), float64; differentiable."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)  # diagonals are exact
            states = _planar(q, torch.ones_like(q)).to(self.device)
            diagonal = self._kernel(INPUTS, "stem").diagonal(states)
        return diagonal.nngp.to(q.device), diagonal.ntk.to(q.device)

    def entry(
        self, x: Sequence[Tensor], parametrization: Parametrization = "standard"
    ) -> KernelPair:
        """Gram matrix and NTK (n, n) of the states before the first block, mean over positions.

        `x` are the tensors of n examples, as the module is called with them.

        Raises:
            UnsupportedOperation: what comes before the block has no limit in closed form.
        """
        if self.block.before is None:
            rows = x[0].detach().double().flatten(1)
            return KernelPair(rows @ rows.mT / rows.shape[1], rows.new_zeros(len(rows), len(rows)))
        key = (0, "entry", parametrization)
        if key not in self._kernels:
            probe = _Entry(self.block.before, math.prod(self.block.state))
            self._kernels[key] = self._limit(probe, tuple(x), parametrization), probe
        return self._kernels[key][0].pair(tuple(x))

    def length_slope(self, q: float) -> float:
        """dQ/dq."""
        with torch.inference_mode(False), torch.enable_grad():
            at = torch.tensor([q], dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(self.lengths(at)[0].sum(), at)
        return float(slope)

    def correlations(self, q: float, c: Tensor) -> tuple[Tensor, Tensor]:
        """C(c; q) and its derivative B(q, c) q / Q(q), of the shape of `c` (m,), float64."""
        lengths = torch.full_like(c, q)
        pair = self._planar_pair(q, c)
        length, gain = self.lengths(lengths[:1])
        same = c == 1
        image = torch.where(same, 1.0, pair.nngp[0] / length)
        return image, torch.where(same, gain, pair.ntk[0]) * q / length

    def _planar_pair(self, q: float, c: Tensor, count: int = 1) -> KernelPair:
        """Both kernels (1, m) after `count` blocks of states of length q at correlations c."""
        lengths = torch.full_like(c, q)
        first, others = _planar(lengths[:1], torch.ones_like(c[:1])), _planar(lengths, c)
        kernel = self._kernel(INPUTS, "stem", count=count)
        pair = kernel.pair(first.to(self.device), others.to(self.device))
        return KernelPair(pair.nngp.to(c.device), pair.ntk.to(c.device))

    def gram(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """K' and B of the Gram matrix `K` (n, n) of states, both (n, n), float64."""
        return self._on_gram(K, "stem", "standard")

    def own_ntk(self, K: Tensor, parametrization: Parametrization = "standard") -> Tensor:
        """What the block's own parameters add to the NTK, (n, n), for states of Gram matrix `K`."""
        return self._on_gram(K, "blocks", parametrization)[1]

    def _on_gram(self, K: Tensor, trained: str, form: Parametrization) -> tuple[Tensor, Tensor]:
        inputs = max(INPUTS, len(K))
        rows = nn.functional.pad(_factor(K) * math.sqrt(inputs), (0, inputs - len(K)))
        pair = self._kernel(inputs, trained, form).pair(rows.to(self.device))
        return pair.nngp.to(K.device), pair.ntk.to(K.device)

    def _kernel(
        self, inputs: int, trained: str, form: Parametrization = "standard", count: int = 1
    ) -> InfiniteKernel:
        key = (inputs, trained, f"{form}{count}")
        if key not in self._kernels:
            probe = _Probe(self.block, inputs, count, trained)
            example = torch.ones(2, inputs, dtype=probe.unit.weight.dtype)
            example = example.to(probe.unit.weight.device)
            self._kernels[key] = self._limit(probe, example, form), probe
        return self._kernels[key][0]

    def _limit(self, probe: nn.Module, example: Examples, form: Parametrization) -> InfiniteKernel:
        init = self._probe_init()
        return InfiniteKernel(probe, example, init=init, parametrization=form, dtype=torch.float64)

    def _probe_init(self) -> _ProbeInit:
        if isinstance(self.init, Init):
            return _ProbeInit(self.init.weight, self.init.bias, self.init.overrides)
        if self.init != "module":
            raise InvalidInput(f'init is {self.init!r}; use "module" or an Init, e.g. Init.he().')
        lists = [list(block.parameters()) for block in self.block.blocks]
        measured = {
            name: [parameters[k] for parameters in lists]
            for block in self.block.blocks[:2]
            for k, (name, _) in enumerate(block.named_parameters())
        }
        before = self.block.before
        measured |= {} if before is None else {n: [p] for n, p in before.named_parameters()}
        return _ProbeInit(0.0, 0.0, {}, measured)


def check_closed(maps: BlockMaps, q: float = 1.0) -> None:
    """Two blocks at once must do what one does twice.

    They do not where lengths and correlations do not describe the state: a residual stream of
    ReLUs, say, whose mean matters to the next sum. What a layer of fresh weights passes on is
    Gaussian, and they do.

    Raises:
        UnsupportedOperation: they do not.
    """
    if maps.block.operations[-1] in AFFINE:
        return
    angles = torch.tensor([0.0, 0.6], dtype=torch.float64)
    lengths = torch.full_like(angles, q)
    once = maps._planar_pair(q, angles).nngp[0]
    length = maps.lengths(lengths[:1])[0]
    if not bool(torch.isfinite(length).all()) or float(length) <= 0:
        return
    (again, _), at = maps.correlations(float(length), once / length), maps.lengths(length)[0]
    together = maps._planar_pair(q, angles, count=2).nngp[0]
    error = float((again * at - together).abs().max() / at)
    if error > CLOSED:
        raise UnsupportedOperation(
            f"two blocks ({', '.join(maps.block.operations)}) at once and one after the other "
            f"differ by {error:.2g}: what the block passes on is not described by lengths and "
            "correlations alone (a sum with activations of nonzero mean, for example)."
        )


def _planar(q: Tensor, c: Tensor) -> Tensor:
    """(m, INPUTS): vectors of |x|^2 / INPUTS = q at correlation c with the first axis."""
    sine = ((1 - c) * (1 + c)).clamp(min=0).sqrt()
    rows = (INPUTS * q).sqrt()[:, None] * torch.stack([c, sine], dim=1)
    return nn.functional.pad(rows, (0, INPUTS - 2))


def _factor(K: Tensor) -> Tensor:
    """(n, n) rows with the Gram matrix `K`, also where it is singular."""
    values, vectors = torch.linalg.eigh(K.double())
    rows: Tensor = vectors * values.clamp(min=0).sqrt()
    # The lengths exactly: they decide over a fixed point.
    norms = K.diagonal().double().sqrt() / rows.norm(dim=1).clamp(min=1e-300)
    scaled: Tensor = rows * norms[:, None]
    return scaled
