"""How the states of given examples, and the NTK, go through the repetitions of a block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency import examples
from tangency.diagnosis.trainability.maps import BlockMaps
from tangency.diagnosis.trainability.repetition import RepeatedBlock
from tangency.empirical.function import differentiable_copy
from tangency.examples import Examples
from tangency.infinite.parameters import Parametrization

__all__ = ["Propagation", "inputs_of", "measured_states", "propagate"]

SETTLED = 1e-12
"""Relative change of the Gram matrix from one block to the next that ends the recursion."""

HUGE = 1e100
"""A length from which states are taken to explode, and the recursion ends."""


@dataclass(frozen=True, eq=False)
class Propagation:
    """States of n examples through L blocks.

    Attributes:
        lengths: (L + 1,) mean |h|^2 / width over examples, before the first block and after each.
        correlations: (L + 1,) mean cosine between different examples; NaN for one example.
        gains: (L,) factor by which squared gradients, mean over examples, change where they are
            pulled back through each block, from random cotangents at the last state.
        ntk: (L + 1, n, n) NTK of the states, or None if it was not asked for.
    """

    lengths: Tensor
    correlations: Tensor
    gains: Tensor
    ntk: Tensor | None = None

    @property
    def gradient(self) -> float:
        """ln of the factor by which squared gradients change from the last state to the first."""
        return float(self.gains.log().sum())


def propagate(
    maps: BlockMaps,
    gram: Tensor,
    depth: int,
    *,
    ntk: Tensor | None = None,
    parametrization: Parametrization = "standard",
) -> Propagation:
    """States of Gram matrix `gram` (n, n) through `depth` blocks in the limit of infinite width.

    With `ntk` (n, n), that of the states before, the NTK is carried along: the NTK after a block
    is that of its own parameters and B times the NTK before. States that settle or explode stay
    as they are from there on.
    """
    K, T = gram.double(), None if ntk is None else ntk.double()
    grams, gains, ntks = [K], [], [T]
    own = gain = torch.empty(0)
    moving = True
    for _ in range(depth):
        if moving:
            following, gain = maps.gram(K)
            own = own if T is None else maps.own_ntk(K, parametrization)
            finite = bool(torch.isfinite(following).all()) and float(following.max()) < HUGE
            change = float((following - K).abs().max()) if finite else 0.0
            moving = finite and change > SETTLED * float(K.abs().max())
            K = following if finite else K
        T = None if T is None else own + gain * T
        grams.append(K)
        gains.append(gain.diagonal())
        ntks.append(T)
    return Propagation(
        lengths=torch.stack([g.diagonal().mean() for g in grams]),
        correlations=torch.stack([mean_correlation(g) for g in grams]),
        gains=_mean_gains(torch.stack(gains)),
        ntk=None if ntk is None else torch.stack([t for t in ntks if t is not None]),
    )


def measured_states(block: RepeatedBlock, x: Examples, *, draws: int = 4) -> Propagation:
    """The same of the module as it stands, in evaluation mode: what theory is held against.

    Gains are those of random cotangents at the last state, pulled back block by block.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs_of(x)
        h = inputs[0].detach() if block.before is None else block.before(*inputs).detach()
        states = [h.clone().requires_grad_()]
        for part in block.blocks:
            states.append(part(states[-1]))
        grams = [_gram(state.detach()) for state in states]
        energies = torch.stack([_energies(states, seed) for seed in range(draws)]).mean(dim=0)
    return Propagation(
        lengths=torch.stack([g.diagonal().mean() for g in grams]),
        correlations=torch.stack([mean_correlation(g) for g in grams]),
        gains=energies[:-1] / energies[1:],
    )


def mean_correlation(K: Tensor) -> Tensor:
    """Mean cosine between different examples of Gram matrix `K` (n, n); NaN for n = 1."""
    n = len(K)
    sd = K.diagonal().clamp(min=1e-300).sqrt()
    cosines = K / (sd[:, None] * sd)
    return (
        (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
        if n > 1
        else K.new_tensor(math.nan)
    )


def _mean_gains(gains: Tensor) -> Tensor:
    """(L,) from the gains of every example, (L, n): ratios of energies averaged over examples."""
    energies = gains.clamp(min=1e-300).log().flip(0).cumsum(0).flip(0)
    means = torch.cat([energies, energies.new_zeros(1, energies.shape[1])]).logsumexp(dim=1)
    return (means[:-1] - means[1:]).exp()


def inputs_of(x: Examples) -> tuple[Tensor, ...]:
    """The examples as `RepeatedBlock.before` takes them."""
    return tuple(examples.tensors(differentiable_copy(examples.arguments(x))))


def _gram(h: Tensor) -> Tensor:
    rows = h.double().flatten(1)
    return rows @ rows.mT / rows.shape[1]


def _energies(states: list[Tensor], seed: int) -> Tensor:
    """(L + 1,) squared gradients of a random sum of the last state, in all states."""
    generator = torch.Generator().manual_seed(seed)
    last = states[-1]
    cotangent = torch.randn(last.shape, generator=generator).to(last)
    gradients = torch.autograd.grad(last, states, cotangent, retain_graph=True)
    return torch.stack([g.double().square().sum() for g in gradients])
